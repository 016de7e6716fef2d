// Rounding to nearest on a grid whose ranges are clipped: outliers lose, all others gain steps.
//
//   mse         per group, least sum |w - q|^2.4 (llm-compressor "mse")
//   imatrix     per group, errors weighted by the sum of x^2 (llm-compressor "imatrix_mse")
//   awq_clip    per group, least error of the group's part of the output (AWQ auto_clip)
//   percentile  per group, the range that holds that share of |w|
//   kl          one fraction for all groups: least KL divergence of the histogram of |w| / absmax
//   of
//               its group, by the calibrators' entropy criterion
#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "quant/methods/activation_range.h"
#include "quant/methods/clip_search.h"
#include "quant/methods/roundings/roundings.h"

namespace assay {
namespace {

using Kind = OptionSpec::Kind;

absl::StatusOr<QuantizedTensor> EncodeShrunk(TensorView w, const QuantScheme& scheme,
                                             std::span<const float> shrink) {
  ASSIGN_OR_RETURN(QuantizedTensor grid, scheme.Fit(w, {.shrink = shrink}));
  return scheme.EncodeOn(w, std::move(grid));
}

// fn(values of the group, index of the group) over all groups of w.
template <typename F>
void ForEachGroup(TensorView w, const QuantScheme& scheme, const F& fn) {
  const int64_t k = w.shape[1], group = scheme.group(w.shape), groups = (k + group - 1) / group;
  for (int64_t row = 0; row < w.shape[0]; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * group, end = std::min(begin + group, k);
      fn(std::span<const float>(w.as<float>() + row * k + begin, static_cast<size_t>(end - begin)),
         row * groups + g);
    }
  }
}
int64_t NumGroups(TensorView w, const QuantScheme& scheme) {
  const int64_t group = scheme.group(w.shape);
  return w.shape[0] * ((w.shape[1] + group - 1) / group);
}

float AbsmaxOf(std::span<const float> values) {
  float absmax = 0;
  for (const float v : values) absmax = std::max(absmax, std::fabs(v));
  return absmax;
}

class Searched final : public Rounding {
 public:
  Searched(std::string name, const ClipSearch& search) : name_(std::move(name)), search_(search) {}
  std::string_view name() const override { return name_; }
  StatisticsNeed needs() const override {
    if (search_.error == ClipSearch::Error::kWeight) return StatisticsNeed::kNothing;
    return search_.error == ClipSearch::Error::kSquares ? StatisticsNeed::kSquares
                                                        : StatisticsNeed::kHessian;
  }
  absl::StatusOr<QuantizedTensor> Quantize(TensorView w, const QuantScheme& scheme,
                                           const InputStatistics* input,
                                           const RoundingContext& context) const override {
    RETURN_IF_ERROR(CheckStatistics(name_, needs(), w.shape, input));
    ClipSearch search = search_;
    search.pool = context.pool;
    ASSIGN_OR_RETURN(const std::vector<float> shrink, SearchShrink(w, scheme, input, search));
    return EncodeShrunk(w, scheme, shrink);
  }

 private:
  const std::string name_;
  const ClipSearch search_;
};

class Percentile final : public Rounding {
 public:
  Percentile(std::string name, double percent) : name_(std::move(name)), percent_(percent) {}
  std::string_view name() const override { return name_; }
  StatisticsNeed needs() const override { return StatisticsNeed::kNothing; }
  absl::StatusOr<QuantizedTensor> Quantize(TensorView w, const QuantScheme& scheme,
                                           const InputStatistics*,
                                           const RoundingContext&) const override {
    RETURN_IF_ERROR(scheme.Encode(w).status());  // w is a finite matrix that the scheme takes
    std::vector<float> shrink(NumGroups(w, scheme));
    std::vector<float> sorted;
    ForEachGroup(w, scheme, [&](std::span<const float> values, int64_t index) {
      sorted.clear();
      for (const float v : values) sorted.push_back(std::fabs(v));
      std::sort(sorted.begin(), sorted.end());
      // Linear between ranks, as numpy.percentile.
      const double rank = percent_ / 100 * static_cast<double>(sorted.size() - 1);
      const auto below = static_cast<size_t>(rank);
      const size_t above = std::min(below + 1, sorted.size() - 1);
      const double value =
          sorted[below] + (rank - static_cast<double>(below)) * (sorted[above] - sorted[below]);
      // A group of mostly zeros keeps its range: nothing would be left of it.
      shrink[index] = value > 0 ? static_cast<float>(value / sorted.back()) : 1.0f;
    });
    return EncodeShrunk(w, scheme, shrink);
  }

 private:
  const std::string name_;
  const double percent_;
};

class Kl final : public Rounding {
 public:
  std::string_view name() const override { return "kl"; }
  StatisticsNeed needs() const override { return StatisticsNeed::kNothing; }
  absl::StatusOr<QuantizedTensor> Quantize(TensorView w, const QuantScheme& scheme,
                                           const InputStatistics*,
                                           const RoundingContext&) const override {
    RETURN_IF_ERROR(scheme.Encode(w).status());
    std::vector<float> relative;
    relative.reserve(w.shape.elements());
    ForEachGroup(w, scheme, [&](std::span<const float> values, int64_t) {
      const float absmax = AbsmaxOf(values);
      if (absmax == 0) return;
      for (const float v : values) relative.push_back(std::fabs(v) / absmax);
    });
    Histogram histogram;
    histogram.Add({relative, 0, 1, true});
    const int bits = std::clamp(static_cast<int>(scheme.bits_per_weight(w.shape)), 2, 8);
    const double kept = relative.empty() ? 1 : AbsmaxByEntropy(histogram, bits);
    const std::vector<float> shrink(NumGroups(w, scheme),
                                    static_cast<float>(std::clamp(kept, 1e-3, 1.0)));
    return EncodeShrunk(w, scheme, shrink);
  }
};

constexpr std::array<OptionSpec, 3> kMseOptions = {{{"norm", Kind::kNumber, 2.4, 1, 4, {}},
                                                    {"max_shrink", Kind::kNumber, 0.2, 0, 0.95, {}},
                                                    {"grid", Kind::kNumber, 100, 1, 1000, {}}}};
constexpr std::array<OptionSpec, 3> kImatrixOptions = {
    {{"norm", Kind::kNumber, 2, 1, 4, {}},
     {"max_shrink", Kind::kNumber, 0.2, 0, 0.95, {}},
     {"grid", Kind::kNumber, 100, 1, 1000, {}}}};
constexpr std::array<OptionSpec, 2> kAwqClipOptions = {
    {{"max_shrink", Kind::kNumber, 0.5, 0, 0.95, {}}, {"grid", Kind::kNumber, 20, 1, 1000, {}}}};
constexpr std::array<OptionSpec, 1> kPercentileOptions = {
    {{"percent", Kind::kNumber, 99.9, 50, 100, {}}}};

}  // namespace

const RoundingFamily kMseRounding = {
    "mse", [] { return std::span<const OptionSpec>(kMseOptions); },
    [](const MethodOptions& o) -> std::unique_ptr<const Rounding> {
      return std::make_unique<Searched>(o.spelling(),
                                        ClipSearch{.error = ClipSearch::Error::kWeight,
                                                   .norm = o.number("norm"),
                                                   .grid = static_cast<int64_t>(o.number("grid")),
                                                   .max_shrink = o.number("max_shrink")});
    }};
const RoundingFamily kImatrixRounding = {
    "imatrix", [] { return std::span<const OptionSpec>(kImatrixOptions); },
    [](const MethodOptions& o) -> std::unique_ptr<const Rounding> {
      return std::make_unique<Searched>(o.spelling(),
                                        ClipSearch{.error = ClipSearch::Error::kSquares,
                                                   .norm = o.number("norm"),
                                                   .grid = static_cast<int64_t>(o.number("grid")),
                                                   .max_shrink = o.number("max_shrink")});
    }};
const RoundingFamily kAwqClipRounding = {
    "awq_clip", [] { return std::span<const OptionSpec>(kAwqClipOptions); },
    [](const MethodOptions& o) -> std::unique_ptr<const Rounding> {
      return std::make_unique<Searched>(o.spelling(),
                                        ClipSearch{.error = ClipSearch::Error::kOutput,
                                                   .norm = 2,
                                                   .grid = static_cast<int64_t>(o.number("grid")),
                                                   .max_shrink = o.number("max_shrink")});
    }};
const RoundingFamily kPercentileRounding = {
    "percentile", [] { return std::span<const OptionSpec>(kPercentileOptions); },
    [](const MethodOptions& o) -> std::unique_ptr<const Rounding> {
      return std::make_unique<Percentile>(o.spelling(), o.number("percent"));
    }};
const RoundingFamily kKlRounding = {
    "kl", [] { return std::span<const OptionSpec>(); },
    [](const MethodOptions&) -> std::unique_ptr<const Rounding> { return std::make_unique<Kl>(); }};

}  // namespace assay
