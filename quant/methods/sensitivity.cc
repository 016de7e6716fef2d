#include "quant/methods/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace assay {

double RangeParm(const InputStatistics& input) {
  const double range = std::max(std::fabs(static_cast<double>(input.tensor_min())),
                                std::fabs(static_cast<double>(input.tensor_max())));
  return input.shifted_std() > 0 ? range / input.shifted_std() : 0;
}

double KurtosisScore(const InputStatistics& input) { return input.kurtosis(); }

absl::StatusOr<double> QuantileScore(const InputStatistics& input) {
  if (!input.options().histogram || input.tokens() == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("the quantile score needs a histogram of calibration data: histogram=",
                     input.options().histogram, " tokens=", input.tokens()));
  }
  const double range = std::max(std::fabs(static_cast<double>(input.tensor_min())),
                                std::fabs(static_cast<double>(input.tensor_max())));
  if (range == 0) return 0.0;
  const double spread = input.histogram().Quantile(0.75) - input.histogram().Quantile(0.25);
  if (spread <= 0) return std::numeric_limits<double>::infinity();
  return 2 * range / 254 / spread;
}

absl::StatusOr<int64_t> ParseDisableLevel(std::string_view level) {
  int64_t count = 0;
  const std::string digits(level.substr(std::min<size_t>(1, level.size())));
  const bool is_number = !digits.empty() && std::all_of(digits.begin(), digits.end(), [](char c) {
    return c >= '0' && c <= '9';
  });
  if (level.empty() || level[0] != 'L' || !is_number || (digits[0] == '0' && digits.size() > 1) ||
      !absl::SimpleAtoi(digits, &count)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a disable level is L followed by a number of layers, as in L10: ", std::string(level)));
  }
  return count;
}

std::vector<std::string> LayersToKeep(std::span<const LayerScore> layers,
                                      std::span<const std::string> skip, FallbackLimits limits) {
  std::vector<const LayerScore*> order;
  for (const LayerScore& layer : layers) {
    if (std::find(skip.begin(), skip.end(), layer.layer) == skip.end()) order.push_back(&layer);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const LayerScore* a, const LayerScore* b) { return a->score > b->score; });
  std::vector<std::string> kept, inputs_done;
  for (const LayerScore* next : order) {
    if (static_cast<int64_t>(kept.size()) >= limits.wanted) break;
    if (std::find(inputs_done.begin(), inputs_done.end(), next->input) != inputs_done.end())
      continue;
    inputs_done.push_back(next->input);
    std::vector<std::string> together;
    for (const LayerScore* layer : order) {
      if (layer->input == next->input) together.push_back(layer->layer);
    }
    if (static_cast<int64_t>(kept.size() + together.size()) > limits.most) continue;
    kept.insert(kept.end(), together.begin(), together.end());
  }
  return kept;
}

}  // namespace assay
