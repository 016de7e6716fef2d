// Where tokens become rows, and rows tokens.
#pragma once
#include <cstdint>

#include "base/cuda/simt.h"

namespace assay {

// stream[row] = table[token] for tokens inside [0, vocab); zeros for padding (token < 0). With
// `positions` and `types` (BERT): + position_table[position] + type_table[type].
struct EmbedArgs {
  const int32_t* tokens = nullptr;  // [rows]
  const float* table = nullptr;     // [vocab, width]
  const int32_t* positions = nullptr;
  const float* position_table = nullptr;
  const int32_t* types = nullptr;
  const float* type_table = nullptr;
  int rows = 0, width = 0, vocab = 0;  // width: a multiple of 4
  float* stream = nullptr;             // [rows, width]
};
ASSAY_LAUNCHER(int Embed(const EmbedArgs& args, const LaunchContext& context))

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
