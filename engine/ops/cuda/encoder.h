// Both ends of an encoder: where tokens become rows, and rows the vectors or labels of sequences.
// All in f32, as on the CPU.
#pragma once
#include <cstdint>

#include "base/cuda/simt.h"
#include "engine/ops/cuda/norm.h"

namespace assay {

// stream[row] = words[row] + type_table[types[row]] + position_table[positions[row]]; zeros for
// padding (positions[row] < 0).
struct EmbedArgs {
  const float* words = nullptr;  // [rows, words_stride]: what Expand looked up
  int words_stride = 0;          // a multiple of 4
  const int32_t *positions = nullptr, *types = nullptr;          // [rows]
  const float *position_table = nullptr, *type_table = nullptr;  // [.., width]; no types: null
  int rows = 0, width = 0;                                       // width: a multiple of 4
  float* stream = nullptr;                                       // [rows, width]
};
ASSAY_LAUNCHER(int Embed(const EmbedArgs& args, const LaunchContext& context))

// out[s] = the mean of rows first_rows[s] to first_rows[s] + lengths[s] - 1, summed in their order;
// with `first`: the first of them. With `normalize`: divided by its L2 norm, at least 1e-12.
struct PoolArgs {
  const float* stream = nullptr;                            // [.., width]
  const int32_t *first_rows = nullptr, *lengths = nullptr;  // [sequences]; lengths from 1 on
  bool first = false, normalize = false;
  int sequences = 0, width = 0;
  float* out = nullptr;  // [sequences, width]
};
ASSAY_LAUNCHER(int Pool(const PoolArgs& args, const LaunchContext& context))

// y = gate(x W^T + bias), for the few rows of a classification head. The sum of a number is the
// same whatever `rows` is.
struct DenseArgs {
  const float* x = nullptr;       // [.., k]
  const int32_t* pick = nullptr;  // [rows]: which rows of x; null: all
  const float* w = nullptr;       // [n, k]
  const float* bias = nullptr;    // [n]
  int rows = 0, n = 0, k = 0;
  Gate gate = Gate::kNone;
  float* y = nullptr;  // [rows, n]
};
ASSAY_LAUNCHER(int Dense(const DenseArgs& args, const LaunchContext& context))

}  // namespace assay
