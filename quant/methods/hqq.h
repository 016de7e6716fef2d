// Half-quadratic quantization: zero points that minimise sum |w - q|^p, p < 1, which forgives
// outliers (Badri and Shaji 2023; hqq/core/optimize.py, optimize_weights_proximal_legacy, operation
// for operation; reference/quantization 1.10). Thread-safe.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace assay {

struct HqqProblem {
  std::span<const float> w;       // [groups, group]
  std::span<const float> scales;  // [groups]: w ~ (code - zero) * scale; 0 = group left alone
  int64_t group = 0;
  float levels = 15;  // codes 0 .. levels
};
struct HqqOptions {
  float norm = 0.7f, beta = 10;
  int64_t iterations = 20;
};
// [groups] in units of codes, not rounded; `zeros` are where to begin. Stops early when the mean
// |w - q| over all groups no longer falls.
std::vector<float> HqqZeros(const HqqProblem& problem, std::vector<float> zeros,
                            const HqqOptions& options);

}  // namespace assay
