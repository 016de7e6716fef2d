// Where rows of logits become what is sampled from.
#pragma once
#include <cstdint>

#include "base/cuda/simt.h"
#include "engine/ops/candidates.h"

namespace assay {

// Of a row: its sums and the first of its ranking, whose token is -1 where a logit is NaN or
// +infinity, or none is finite (engine/runtime/sampler.h refuses the same); no sums then.
struct RowHead {
  LogitSums sums;
  RankedLogit first;
};

struct TopCandidatesArgs {
  const float* logits = nullptr;    // [rows, vocab]
  int rows = 0, vocab = 0;          // at least one logit
  const int32_t* wanted = nullptr;  // [rows] 0: nothing; 1: the head; more: kMostCandidates, too
  const float* scales = nullptr;    // [rows] of LogitSums::scaled
  RowHead* heads = nullptr;         // [rows]
  // [rows, kMostCandidates] in the ranking's order; of a vocabulary of fewer, that many.
  RankedLogit* ranked = nullptr;
};
// A row's results depend on that row alone. Zeros of either sign are +0 in results.
ASSAY_LAUNCHER(int TopCandidates(const TopCandidatesArgs& args, const LaunchContext& context))

}  // namespace assay
