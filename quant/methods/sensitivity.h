// How hard a layer's input is to quantize, and which layers to keep in high precision
// (reference/quantization 2.3: msModelSlim's range_parm, analyze metrics and disable_level).
// Thread-safe.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "quant/methods/input_statistics.h"

namespace assay {

// max(|min|, |max|) / shifted_std; 0 for a constant input.
double RangeParm(const InputStatistics& input);
// E[(x - mean)^4] / var^2 - 3.
double KurtosisScore(const InputStatistics& input);
// 2 absmax / 254 / (Q3 - Q1). FailedPrecondition without a histogram or tokens; infinite when half
// of the values are equal.
absl::StatusOr<double> QuantileScore(const InputStatistics& input);

// "L10" -> 10, "L0" -> 0 (^L((?!0)\d+|0)$). InvalidArgument otherwise.
absl::StatusOr<int64_t> ParseDisableLevel(std::string_view level);

struct LayerScore {
  std::string layer;
  std::string input;  // layers with the same input (q, k, v) have the same score and go together
  double score = 0;
};
struct FallbackLimits {
  int64_t wanted = 0;  // layers, of disable_level
  int64_t most = 0;    // layers that the policy allows
};
// The `wanted` layers of highest score, in order of score (ties: the given order), with all layers
// that share an input with one of them; an input whose layers would exceed `most` is left out.
// Layers for which `skip` holds (those kept by name already, the output head) are not counted.
std::vector<std::string> LayersToKeep(std::span<const LayerScore> layers,
                                      std::span<const std::string> skip, FallbackLimits limits);

}  // namespace assay
