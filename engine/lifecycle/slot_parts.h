// What a recipe takes out of a weight before its codes are found (quant/linear_parts.h): a rotation
// of its input that is applied while serving, a low-rank branch. Thread-safe.
#pragma once
#include <optional>

#include "engine/model/model.h"
#include "quant/linear_parts.h"
#include "quant/policy/policy.h"

namespace assay {

// What was taken out, to be put beside the codes.
struct SlotParts {
  std::optional<HadamardRotation> rotation;
  std::optional<LowRankBranch> branch;
};
// The rotation of the slot's input, where recipe.rotate_inputs names it. Unimplemented: no Hadamard
// matrix of order k.
absl::StatusOr<std::optional<HadamardRotation>> InputRotation(const Recipe& recipe,
                                                              const LinearSlot& slot);
// `weight` [n, k] f32 becomes what is left for the codes: rotated where recipe.rotate_inputs names
// the slot, less the best approximation of rank recipe.low_rank. Embedding tables stay as they are.
// Unimplemented: no Hadamard matrix of order k; InvalidArgument: NaN or infinity in the weight.
absl::StatusOr<SlotParts> TakeParts(const Recipe& recipe, const LinearSlot& slot, Tensor& weight,
                                    ThreadPool& pool);
// ResourceExhausted.
absl::Status WriteParts(SlotParts parts, QuantizedTensor& w);

}  // namespace assay
