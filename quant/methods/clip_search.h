// How much of each group's range to keep: the fraction whose rounding error is least, group by
// group, over a grid that always contains 1 (no clipping). Sources: llm-compressor's mse and
// imatrix_mse observers, AWQ's auto_clip (reference/quantization 1.2, 1.7). Thread-safe.
#pragma once
#include <vector>

#include "quant/methods/rounding.h"

namespace assay {

struct ClipSearch {
  enum class Error {
    kWeight,   // sum |w - q|^norm
    kSquares,  // sum_j (sum_t x_tj^2) |w_j - q_j|^norm: importance-weighted
    kOutput,   // sum_t (sum_j x_tj (w_j - q_j))^2 over the group's j: AWQ
  };
  Error error = Error::kWeight;
  double norm = 2.4;        // kOutput: always 2
  int64_t grid = 100;       // fractions 1 - i / grid ...
  double max_shrink = 0.2;  // ... for i / grid < max_shrink
  ThreadPool* pool = nullptr;
};

// [n, groups] for FitOptions::shrink. `input` may be null for kWeight. InvalidArgument: a scheme
// that cannot be clipped; FailedPrecondition: missing statistics.
absl::StatusOr<std::vector<float>> SearchShrink(TensorView w, const QuantScheme& scheme,
                                                const InputStatistics* input,
                                                const ClipSearch& search);

}  // namespace assay
