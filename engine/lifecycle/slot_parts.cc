#include "engine/lifecycle/slot_parts.h"

#include <fnmatch.h>

#include <algorithm>

#include "quant/methods/low_rank.h"

namespace assay {
namespace {

constexpr uint64_t kSigns = 1;  // the seed of every rotation's signs: artifacts carry the signs

bool Rotates(const Recipe& recipe, const LinearSlot& slot) {
  return std::any_of(recipe.rotate_inputs.begin(), recipe.rotate_inputs.end(),
                     [&slot](const std::string& glob) {
                       return fnmatch(glob.c_str(), slot.name.c_str(), 0) == 0;
                     });
}

}  // namespace

absl::StatusOr<std::optional<HadamardRotation>> InputRotation(const Recipe& recipe,
                                                              const LinearSlot& slot) {
  if (slot.kind == LinearSlot::Kind::kEmbedding || !Rotates(recipe, slot)) return std::nullopt;
  return HadamardRotation::Create(slot.shape[1], kSigns);
}

absl::StatusOr<SlotParts> TakeParts(const Recipe& recipe, const LinearSlot& slot, Tensor& weight,
                                    ThreadPool& pool) {
  SlotParts parts;
  if (slot.kind == LinearSlot::Kind::kEmbedding) return parts;
  const std::span<float> values(weight.data<float>(),
                                static_cast<size_t>(weight.shape().elements()));
  ASSIGN_OR_RETURN(parts.rotation, InputRotation(recipe, slot));
  if (parts.rotation.has_value()) parts.rotation->RotateRows(values);
  const int64_t rank = std::min<int64_t>(recipe.low_rank, std::min(slot.shape[0], slot.shape[1]));
  if (rank == 0) return parts;
  ASSIGN_OR_RETURN(const LowRank factors,
                   FactorLowRank(weight.view(), {.rank = rank, .pool = &pool}));
  ASSIGN_OR_RETURN(parts.branch, MakeLowRankBranch(factors.left, factors.right, rank));
  SubtractLowRank(*parts.branch, values);
  return parts;
}

absl::Status WriteParts(SlotParts parts, QuantizedTensor& w) {
  if (parts.rotation.has_value()) RETURN_IF_ERROR(WriteInputRotation(*parts.rotation, w));
  if (parts.branch.has_value()) WriteLowRank(*std::move(parts.branch), w);
  return absl::OkStatus();
}

}  // namespace assay
