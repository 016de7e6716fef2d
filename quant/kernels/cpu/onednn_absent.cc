// What onednn_int8.cc and onednn_matmul.cc are in a build without oneDNN.
#include "quant/kernels/cpu/onednn_int8.h"
#include "quant/kernels/cpu/onednn_matmul.h"
#include "quant/kernels/kernels.h"

namespace assay {
namespace {

constexpr char kAbsent[] = "this binary was built without oneDNN";

class Absent final : public LinearKernel {
 public:
  std::string_view name() const override { return "onednn_int8"; }
  absl::Status Supports(const LinearProblem&) const override {
    return absl::UnimplementedError(kAbsent);
  }
  absl::StatusOr<std::unique_ptr<const PackedWeight>> Pack(const QuantizedTensor&,
                                                           ActivationMode) const override {
    return absl::UnimplementedError(kAbsent);
  }
  size_t scratch_bytes(const LinearProblem&, int64_t) const override { return 0; }
  void Run(const PackedWeight&, const LinearArgs&, ComputeContext&) const override {}
  void DecodeRow(const PackedWeight&, int64_t, std::span<float>) const override {}
};

}  // namespace

std::unique_ptr<LinearKernel> MakeOnednnInt8Kernel(const OnednnInt8Options&) {
  return std::make_unique<Absent>();
}
bool HasOnednn() { return false; }

absl::StatusOr<std::shared_ptr<const OnednnMatmul>> OnednnMatmul::Get(const Options&) {
  return absl::UnimplementedError(kAbsent);
}

const LinearKernel& OnednnInt8Kernel() {
  static const Absent kernel;
  return kernel;
}

}  // namespace assay
