// What models on a GPU do to get their weights there. Pure but for the device.
#pragma once
#include <string>

#include "engine/model/model.h"
#include "quant/kernels/cuda/cuda_linear.h"

namespace assay {

inline const float* Floats(const Buffer& buffer) {
  return reinterpret_cast<const float*>(buffer.data());
}

// FailedPrecondition: the slot's linear is not on a GPU; otherwise as Bind (forward_parts.h).
absl::StatusOr<const CudaLinear*> LinearOnGpu(const LinearSlot& slot, const LinearMap& linears);

// Copies to one device, and counts their bytes.
class WeightUploads {
 public:
  explicit WeightUploads(CudaDevice& device) : device_(device) {}
  // ResourceExhausted, or the device's error.
  absl::Status Copy(std::span<const std::byte> from, Buffer& to);
  absl::Status Copy(const Tensor& from, Buffer& to);  // an empty one: nothing
  size_t bytes() const { return bytes_; }

 private:
  CudaDevice& device_;
  size_t bytes_ = 0;
};

}  // namespace assay
