// A GPU's linear layers behind the interface that all kernels have (quant/linear.h): for models
// that run on it, which take the CudaLinear out, and for checks of single layers, whose operands
// are copied there and back.
#pragma once
#include "quant/kernels/cuda/cuda_linear.h"

namespace assay {

class CudaLinearKernel final : public LinearKernel {
 public:
  CudaLinearKernel(std::string name, const CudaBackend& backend)
      : name_(std::move(name)), backend_(backend) {}
  std::string_view name() const override { return name_; }
  absl::Status Supports(const LinearProblem& p) const override;
  absl::StatusOr<std::unique_ptr<const PackedWeight>> Pack(
      const QuantizedTensor& w, ActivationMode activation) const override;
  size_t scratch_bytes(const LinearProblem&, int64_t) const override { return 0; }
  // Through host memory: slow, and NaN where the device fails (its health() says why).
  void Run(const PackedWeight& w, const LinearArgs& args, ComputeContext& context) const override;
  void DecodeRow(const PackedWeight& w, int64_t row, std::span<float> out) const override;

 private:
  absl::Status TryRun(const CudaLinear& w, const LinearArgs& args) const;
  absl::Status TryDecodeRow(const CudaLinear& w, int64_t row, std::span<float> out) const;
  friend absl::StatusOr<QuantizedLinear> MakeCudaQuantizedLinear(const CudaLinearKernel&,
                                                                 const QuantizedTensor&,
                                                                 const Tensor&, ActivationMode);
  const std::string name_;
  const CudaBackend backend_;
};

// A layer of a model on the kernel's device, which outlives it; `bias` [n] f32 or empty. Status
// codes of CudaLinear::Create.
absl::StatusOr<QuantizedLinear> MakeCudaQuantizedLinear(const CudaLinearKernel& kernel,
                                                        const QuantizedTensor& w,
                                                        const Tensor& bias,
                                                        ActivationMode activation);

}  // namespace assay
