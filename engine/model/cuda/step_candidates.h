// What a step on a GPU finds of rows of which only candidates are wanted (RowCandidates of
// model.h): how the device is told, and how its answer is read. Pure; any thread.
#pragma once
#include <span>

#include "engine/model/cuda/cuda_batch.h"
#include "engine/model/model.h"
#include "engine/ops/cuda/top_candidates.h"

namespace assay {

// REQUIRES: ints [CudaBatchLayout(sizes).end] is filled by FillCudaBatch; no more candidates than
// sizes.logit_rows.
void FillWanted(std::span<const RowCandidates> candidates, const CudaStepSizes& sizes,
                std::span<int32_t> ints);

// Of the first rows, how many have to leave the device for the last that is wanted.
struct RowsWanted {
  size_t heads = 0, ranked = 0;
};
RowsWanted CountWanted(std::span<const RowCandidates> candidates);

// As the device left them: heads [rows] and ranked [rows, kMostCandidates], as far as they are
// wanted.
struct FoundCandidates {
  const RowHead* heads = nullptr;
  const RankedLogit* ranked = nullptr;
  const float* logits = nullptr;  // [rows, vocab] on the device
  int vocab = 0;
};
void TakeCandidates(const FoundCandidates& found, std::span<RowCandidates> candidates);

}  // namespace assay
