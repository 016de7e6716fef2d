// W ~ L1 L2 + R: the low-rank part of a weight, which stays in 16 bit while the residual R is
// quantized (SVDQuant, arXiv:2411.05007; reference/quantization 1.13). Thread-safe.
#pragma once
#include <vector>

#include "base/tensor.h"
#include "base/thread_pool.h"

namespace assay {

struct LowRank {
  int64_t rank = 0;
  std::vector<float> left;      // L1 [n, rank]: orthonormal columns
  std::vector<float> right;     // L2 [rank, k]: largest singular values first
  std::vector<float> residual;  // W - L1 L2 [n, k]
};

struct LowRankOptions {
  int64_t rank = 32;
  int64_t iterations =
      6;  // of the power iteration: errors of the subspace fall with (s_r+8/s_r)^2 each
  uint64_t seed = 0;
  ThreadPool* pool = nullptr;
};

// The best rank-r approximation up to the power iteration's error (randomized subspace iteration,
// Halko, Martinsson, Tropp 2011, algorithm 4.4), in f64. w [n, k] f32. InvalidArgument: not a
// finite f32 matrix; rank outside [1, min(n, k)].
absl::StatusOr<LowRank> FactorLowRank(TensorView w, const LowRankOptions& options);

}  // namespace assay
