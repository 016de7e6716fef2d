// Where rows become tokens.
#pragma once
#include <cstdint>

#include "base/cuda/simt.h"

namespace assay {

// The most likely token of each row of logits [rows, vocab], of equal ones the first; -1 where a
// logit is NaN or +infinity, or none is finite (engine/runtime/sampler.h refuses the same).
struct GreedyArgs {
  const float* logits = nullptr;
  int rows = 0, vocab = 0;
  int32_t* tokens = nullptr;  // [rows]
  float* logprobs = nullptr;  // [rows], natural logarithms; null: not wanted
};
ASSAY_LAUNCHER(int Greedy(const GreedyArgs& args, const LaunchContext& context))

}  // namespace assay
