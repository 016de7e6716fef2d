// The GPUs of a process as backends of models: found once, at the start, each tried with a kernel
// before it counts.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/model/backend.h"
#include "engine/model/cuda/cuda_llama.h"
#include "quant/kernels/cuda/cuda_kernel.h"

namespace assay {

// The world that backends live in: the driver's, or in tests the emulator's.
struct CudaWorld {
  const CudaRuntime& runtime;
  const CudaLinearKernels& linear;
  const CudaOpsKernels& ops;
  bool has_cublas_lt = false;  // to be looked for: CublasLt::Load
};
// nullptr: this binary was built without a CUDA toolkit.
const CudaWorld* DriverWorld();

class GpuBackend final : public ModelBackend {
 public:
  // Status codes of CudaDevice::Open; Unimplemented: older than compute capability 7.5; whatever
  // the first kernel says: a binary without code for this architecture finds out here.
  // `lt_directory`: of the choices among cuBLASLt's algorithms; made where it is missing; empty:
  // they are timed anew.
  static absl::StatusOr<std::unique_ptr<GpuBackend>> Open(const CudaWorld& world, int index,
                                                          std::string_view profile,
                                                          const std::string& lt_directory);

  CudaDevice& device() const override { return *device_; }
  absl::Status Takes(const ModelSpec& spec) const override;
  absl::Status TakesKv(const KvFormat& format) const override { return CudaTakesKv(format); }
  absl::Status Supports(const QuantScheme& scheme, const Shape& shape,
                        ActivationMode activation) const override;
  // On the device (cuda_encode.h); on the host what has no kernel or finds no memory there.
  absl::StatusOr<QuantizedTensor> Encode(const QuantScheme& scheme,
                                         TensorView weight) const override;
  absl::StatusOr<QuantizedLinear> MakeLinear(const QuantizedTensor& w, Tensor bias,
                                             ActivationMode activation) const override;
  absl::StatusOr<std::unique_ptr<const Model>> Build(const ModelFamily& family,
                                                     const ModelSpec& spec,
                                                     const Checkpoint& checkpoint,
                                                     LinearMap linears) const override;
  std::string fingerprint() const override;  // GPU, profile, driver and runtime
  absl::Status health() const override { return device_->health(); }
  Half half() const { return half_; }
  bool has_cublas_lt() const { return lt_ != nullptr; }

 private:
  GpuBackend(const CudaWorld& world, std::unique_ptr<CudaDevice> device,
             std::unique_ptr<LtProducts> lt);
  CudaBackend backend() const { return {*device_, world_.linear, half_, lt_.get()}; }

  const CudaWorld world_;
  const std::unique_ptr<CudaDevice> device_;
  const std::unique_ptr<LtProducts> lt_;  // null: own kernels alone
  const Half half_;                       // bf16 from compute capability 8.0 on
  const CudaLinearKernel kernel_;
};

class Gpus {
 public:
  struct Options {
    // "auto": all that there are; "none"; or names, comma-separated: "cuda:0,cuda:2".
    std::string devices = "auto";
    // Plays a weaker device ("sm86"): ParseCudaProfile. Empty: what each is.
    std::string profile;
    std::string lt_directory;  // GpuBackend::Open
  };
  struct Found {
    std::string name;  // "cuda:0"
    CudaProperties properties;
    CudaProfile profile;
    std::unique_ptr<GpuBackend> backend;  // null: cannot be used
    std::string why_not;
  };

  Gpus() = default;
  // `world` may be null. InvalidArgument: options that name what does not exist. A device that
  // cannot be used is no error unless it was asked for by name.
  static absl::StatusOr<Gpus> Open(const CudaWorld* world, const Options& options);

  const std::vector<Found>& all() const { return all_; }  // in the driver's order
  // Why there are none, in words; empty: there are, or nobody asked.
  const std::string& why_none() const { return why_none_; }

 private:
  std::vector<Found> all_;
  std::string why_none_;
};

}  // namespace assay
