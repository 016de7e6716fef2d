#include "engine/ops/ops.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "engine/ops/cpu/cpu_ops.h"

namespace assay {

std::optional<Activation> FindActivation(std::string_view hf_name) {
  if (hf_name == "silu" || hf_name == "swish") return Activation::kSilu;
  if (hf_name == "gelu" || hf_name == "gelu_python") return Activation::kGelu;
  if (hf_name == "gelu_new" || hf_name == "gelu_pytorch_tanh" || hf_name == "gelu_fast" ||
      hf_name == "gelu_accurate") {
    return Activation::kGeluTanh;
  }
  if (hf_name == "relu") return Activation::kRelu;
  if (hf_name == "tanh") return Activation::kTanh;
  return std::nullopt;
}

absl::StatusOr<const Ops*> OpsFor(const Device& device) {
  if (device.kind() == DeviceKind::kCpu) return &HostCpuOps();
  return absl::UnimplementedError(
      absl::StrCat("this build computes on the CPU only: device=", std::string(device.name())));
}

}  // namespace assay
