#include "engine/model/cuda/step_candidates.h"

#include <algorithm>
#include <bit>

namespace assay {

void FillWanted(std::span<const RowCandidates> candidates, const CudaStepSizes& sizes,
                std::span<int32_t> ints) {
  const CudaBatchLayout at(sizes);
  for (size_t row = 0; row < candidates.size(); ++row) {
    ints[at.wanted + row] = static_cast<int32_t>(candidates[row].room.size());
    ints[at.scales + row] = std::bit_cast<int32_t>(candidates[row].scale);
  }
}

RowsWanted CountWanted(std::span<const RowCandidates> candidates) {
  RowsWanted wanted;
  for (size_t row = 0; row < candidates.size(); ++row) {
    if (!candidates[row].room.empty()) wanted.heads = row + 1;
    if (candidates[row].room.size() > 1) wanted.ranked = row + 1;
  }
  return wanted;
}

void TakeCandidates(const FoundCandidates& found, std::span<RowCandidates> candidates) {
  for (size_t row = 0; row < candidates.size(); ++row) {
    RowCandidates& to = candidates[row];
    if (to.room.empty()) continue;
    const float* const logits = found.logits + row * static_cast<size_t>(found.vocab);
    to.logits = reinterpret_cast<const std::byte*>(logits);
    to.undecided = found.heads[row].first.token < 0;  // whoever samples sees for himself
    if (to.undecided) continue;
    to.count = std::min(to.room.size(), static_cast<size_t>(found.vocab));
    to.sums = found.heads[row].sums;
    if (to.room.size() == 1) {
      to.room.front() = found.heads[row].first;
    } else {
      std::copy_n(found.ranked + row * kMostCandidates, to.count, to.room.begin());
    }
  }
}

}  // namespace assay
