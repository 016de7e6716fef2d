#include "engine/model/cuda/cuda_weights.h"

#include "absl/strings/str_cat.h"
#include "engine/model/families/forward_parts.h"

namespace assay {

absl::StatusOr<const CudaLinear*> LinearOnGpu(const LinearSlot& slot, const LinearMap& linears) {
  ASSIGN_OR_RETURN(const BoundLinear bound, Bind(slot, linears));
  if (bound.linear == nullptr || bound.linear->problem().device != DeviceKind::kCuda)
    return absl::FailedPreconditionError(absl::StrCat("the layer is not on a GPU: ", slot.name));
  return static_cast<const CudaLinear*>(&bound.linear->weight());
}

absl::Status WeightUploads::Copy(std::span<const std::byte> from, Buffer& to) {
  ASSIGN_OR_RETURN(to, device_.Allocate(from.size()));
  bytes_ += from.size();
  return device_.Upload(from, to);
}

absl::Status WeightUploads::Copy(const Tensor& from, Buffer& to) {
  if (from.empty()) return absl::OkStatus();
  return Copy({from.data<std::byte>(), from.bytes()}, to);
}

}  // namespace assay
