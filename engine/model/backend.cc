#include "engine/model/backend.h"

#include "absl/strings/str_cat.h"
#include "base/cpu_info.h"

namespace assay {
namespace {

class CpuModelBackend final : public ModelBackend {
 public:
  Device& device() const override { return CpuDevice(); }
  absl::Status Takes(const ModelSpec&) const override { return absl::OkStatus(); }
  absl::Status TakesKv(const KvFormat& format) const override {
    if (IsKvDType(format.dtype)) return absl::OkStatus();
    return absl::UnimplementedError(absl::StrCat(
        "the KV cache on the CPU is f32, f16, i8 or u4: kv=", std::string(Name(format.dtype))));
  }
  absl::Status Supports(const QuantScheme&, const Shape&, ActivationMode) const override {
    return absl::OkStatus();  // the reference kernel takes all
  }
  absl::StatusOr<QuantizedTensor> Encode(const QuantScheme& scheme,
                                         TensorView weight) const override {
    return scheme.Encode(weight);
  }
  absl::StatusOr<QuantizedLinear> MakeLinear(const QuantizedTensor& w, Tensor bias,
                                             ActivationMode activation) const override {
    return QuantizedLinear::Create(w, std::move(bias), {.activation = activation});
  }
  absl::StatusOr<std::unique_ptr<const Model>> Build(const ModelFamily& family,
                                                     const ModelSpec& spec,
                                                     const Checkpoint& checkpoint,
                                                     LinearMap linears) const override {
    return family.build(spec, checkpoint, std::move(linears));
  }
  std::string fingerprint() const override { return HostCpu().isa(); }
  absl::Status health() const override { return absl::OkStatus(); }
};

}  // namespace

const ModelBackend& CpuBackend() {
  static const CpuModelBackend* const backend = new CpuModelBackend;  // as CpuDevice()
  return *backend;
}

}  // namespace assay
