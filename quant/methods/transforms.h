// Per-channel scales that move difficulty between a linear's input and its weight without changing
// the function: y = (x / s) (W diag(s))^T. What produces x (a norm, v_proj, up_proj) takes the 1 /
// s. Pure: the engine decides which layers form a fold group and applies the scales to all of them.
//
// Sources: SmoothQuant (arXiv:2211.10438), AWQ (arXiv:2306.00978, AutoAWQ's duo scaling),
// msModelSlim's Iterative and Flex Smooth (reference/quantization 1.7, 1.8, 2.2). Thread-safe.
#pragma once
#include <span>
#include <vector>

#include "quant/methods/input_statistics.h"
#include "quant/scheme.h"

namespace assay {

// All consumers of one input. A consumer that is left out would compute something else afterwards.
struct SharedInput {
  std::vector<TensorView> weights;  // each [n_i, k] f32
  const InputStatistics* input = nullptr;
  // [k]: the producer's channel behind each channel of the input, where several share one (v_proj's
  // heads under grouped queries); such channels get one scale. Empty: each its own.
  std::span<const int32_t> producer_channel;
};

struct ScaleChoice {
  std::vector<float> scales;   // [k], positive
  double alpha = 0, beta = 0;  // exponents found; AWQ: alpha = its ratio
  double error = 0;            // of the objective, at these scales
  double plain_error = 0;      // with s = 1
};

// All of them: FailedPrecondition: no tokens, or what else is missing; InvalidArgument: no weights,
// shapes that do not fit, a producer_channel outside [0, k).

// s = max|x|^alpha / max|W|^(1 - alpha), at least 1e-5; W over all consumers. alpha in [0, 1]: 0.5
// is SmoothQuant's default, 0.9 Iterative Smooth's.
absl::StatusOr<std::vector<float>> SmoothQuantScales(const SharedInput& group, double alpha);

// Which activation grid the search quantizes to: the best alpha differs between them.
enum class ActivationScope { kToken, kTensor };
struct SmoothSearch {
  ActivationScope scope = ActivationScope::kToken;  // int8: symmetric per row, or asymmetric static
  double step = 0.05;
  bool allow_plain = true;  // s = 1 where nothing found is better
  ThreadPool* pool = nullptr;
};
// The alpha in {0, step, ..., 1} of least relative output error with int8 weights per row and int8
// activations. Needs sample rows.
absl::StatusOr<ScaleChoice> SearchSmoothQuant(const SharedInput& group, const SmoothSearch& search);
// Flex Smooth: s = max|x|^alpha / max|W|^beta; first alpha with beta = 1 - alpha, then beta.
absl::StatusOr<ScaleChoice> FlexSmooth(const SharedInput& group, const SmoothSearch& search);

struct AwqSearch {
  const QuantScheme* scheme = nullptr;
  int64_t grid = 20;
  bool duo = true;  // also divides by the weight's mean magnitude
  ThreadPool* pool = nullptr;
};
// s = mean|x|^r (/ mean|w|^(1 - r) with duo), normalised to geometric mean of extremes 1, r in
// {0, 1/grid, ...}: least output error of all consumers rounded to nearest in the scheme. Uses the
// Hessian where collected, else sample rows. The clip part of AWQ is the rounding "awq_clip".
absl::StatusOr<ScaleChoice> AwqScales(const SharedInput& group, const AwqSearch& search);

// w [n, k] times s [k]; w [n, k], row i divided by s[i]; in place.
void ScaleColumns(std::span<float> w, std::span<const float> s);
void DivideRows(std::span<float> w, std::span<const float> s);

}  // namespace assay
