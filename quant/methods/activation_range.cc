#include "quant/methods/activation_range.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "quant/methods/sensitivity.h"

namespace assay {
namespace {

constexpr std::array<std::string_view, 7> kMethods = {
    "minmax", "moving_average", "percentile", "mse", "entropy", "histogram", "auto"};
constexpr double kDefaultPercentile = 99.99;
constexpr int64_t kStartBin = 128;  // the search begins here, as the reference tools' does
constexpr double kAutoThreshold = 50;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// KL(P || Q) where P keeps bins [0, kept) with all that lies beyond in the last, and Q is P's own
// bins (unclipped) merged into `levels`, each spread over its non-empty bins.
double Divergence(std::span<const double> bins, int64_t kept, int64_t levels, double beyond) {
  double p_total = beyond, q_total = 0;
  for (int64_t i = 0; i < kept; ++i) p_total += bins[i];
  q_total = p_total - beyond;
  if (q_total <= 0) return kInfinity;
  double divergence = 0;
  for (int64_t first = 0; first < kept;) {
    const int64_t level = first * levels / kept;
    int64_t last = first, occupied = 0;
    double mass = 0;
    for (; last < kept && last * levels / kept == level; ++last) {
      mass += bins[last];
      occupied += bins[last] != 0;
    }
    for (int64_t i = first; i < last; ++i) {
      const double p = bins[i] + (i == kept - 1 ? beyond : 0);
      if (p == 0) continue;
      if (bins[i] == 0) return kInfinity;
      const double q = mass / static_cast<double>(occupied) / q_total;
      divergence += p / p_total * std::log(p / p_total / q);
    }
    first = last;
  }
  return divergence;
}

// Expected squared error of rounding the histogram to 2^bits points over bins [first, last]:
// uniform density in a bin, integrated piecewise as torch.ao's HistogramObserver does.
class GreedySearch {
 public:
  GreedySearch(const Histogram& histogram, int bits)
      : h_(histogram), points_(static_cast<double>(1 << bits)) {}

  double Error(int64_t first, int64_t last) const {
    const double width = h_.width();
    const double step = width * static_cast<double>(last - first + 1) / points_;
    const double middle = 2 * Cube(step / 2) / 3;  // over a whole step
    double error = 0;
    for (size_t bin = 0; bin < h_.counts().size(); ++bin) {
      const double density = h_.counts()[bin] / width;
      if (density == 0) continue;
      const double begin = static_cast<double>(static_cast<int64_t>(bin) - first) * width;
      const double end = begin + width;
      const double of_begin = std::clamp(std::floor(begin / step), 0.0, points_ - 1);
      const double of_end = std::clamp(std::floor(end / step), 0.0, points_ - 1);
      error += density * (Cube(step / 2) - Cube(begin - (of_begin + 0.5) * step)) / 3;
      error += density * (of_end - of_begin - 1) * middle;
      error += density * (Cube(end - (of_end + 0.5) * step) + Cube(step / 2)) / 3;
    }
    return error;
  }

  ActivationRange Run() const {
    const std::vector<double>& counts = h_.counts();
    std::vector<double> cumulative(counts.size());
    std::partial_sum(counts.begin(), counts.end(), cumulative.begin());
    const double total = cumulative.back();
    int64_t first = 0, last = static_cast<int64_t>(counts.size()) - 1;
    double least = kInfinity;
    constexpr double kStep = 1e-5;  // of the mass, at either end
    for (double below = 0, above = 1; below < above;) {
      int64_t left = first, right = last;
      while (left < last && cumulative[left] < (below + kStep) * total) ++left;
      while (right > first && cumulative[right] > (above - kStep) * total) --right;
      int64_t next_first = first, next_last = last;
      if (left - first > last - right) {
        next_first = left;
        below += kStep;
      } else {
        next_last = right;
        above -= kStep;
      }
      if (next_first == first && next_last == last) continue;
      const double error = Error(next_first, next_last);
      if (error > least) break;
      least = error;
      first = next_first;
      last = next_last;
    }
    return {h_.edge(first), h_.edge(last + 1)};
  }

 private:
  static double Cube(double x) { return x * x * x; }
  const Histogram& h_;
  const double points_;
};

ActivationRange Symmetric(double absmax) { return {-absmax, absmax}; }

absl::StatusOr<double> ParsePercentile(std::string_view text) {
  double percentile = kDefaultPercentile;
  if (!text.empty() && (!absl::SimpleAtod(std::string(text), &percentile) || !(percentile > 0) ||
                        percentile > 100)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a percentile lies in (0, 100]: percentile=", std::string(text)));
  }
  return percentile;
}

}  // namespace

double AbsmaxByPercentile(const Histogram& absolute, double percentile) {
  const double wanted = percentile / 100 * absolute.total();
  double sum = 0;
  int64_t i = 0;
  for (; i < static_cast<int64_t>(absolute.counts().size()); ++i) {
    sum += absolute.counts()[i];
    if (sum >= wanted) break;
  }
  return absolute.edge(i);
}

double AbsmaxByMse(const Histogram& absolute, int bits) {
  const double most = (1 << (bits - 1)) - 1;
  const auto size = static_cast<int64_t>(absolute.counts().size());
  double best = absolute.high(), least = kInfinity;
  for (int64_t i = std::min(kStartBin, size - 1); i < size; ++i) {
    const double absmax = absolute.edge(i) + absolute.width() / 2, scale = most / absmax;
    double error = 0;
    for (int64_t j = 0; j < size; ++j) {
      const double centre = absolute.edge(j) + absolute.width() / 2;
      const double rounded = std::min(std::nearbyint(centre * scale), most) / scale;
      error += (rounded - centre) * (rounded - centre) * absolute.counts()[j];
    }
    if (error >= least) continue;
    least = error;
    best = absmax;
  }
  return best;
}

double AbsmaxByEntropy(const Histogram& absolute, int bits) {
  std::vector<double> bins = absolute.counts();
  const auto size = static_cast<int64_t>(bins.size());
  if (size > 1) bins[0] = bins[1];  // zeros say nothing about the range
  double beyond = 0;
  double least = kInfinity;
  int64_t best = size;
  // From the top down, so that "beyond" is a running sum; the first minimum met is the last one.
  for (int64_t kept = size; kept >= std::min(kStartBin, size); --kept) {
    const double divergence = Divergence(bins, kept, int64_t{1} << (bits - 1), beyond);
    if (divergence < least) {
      least = divergence;
      best = kept;
    }
    beyond += bins[kept - 1];
  }
  return absolute.edge(best);
}

ActivationRange RangeByHistogram(const Histogram& histogram, int bits) {
  return GreedySearch(histogram, bits).Run();
}

std::span<const std::string_view> AllActivationRanges() { return kMethods; }

absl::Status CheckActivationRange(std::string_view method) {
  const size_t equals = method.find('=');
  const std::string_view name = method.substr(0, equals);
  if (std::find(kMethods.begin(), kMethods.end(), name) == kMethods.end() ||
      (equals != std::string_view::npos && name != "percentile")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "no method of this name finds activation ranges: ", std::string(method),
        "; known: ", absl::StrJoin(kMethods, ", ", [](std::string* out, std::string_view known) {
          absl::StrAppend(out, std::string(known));
        })));
  }
  if (name != "percentile") return absl::OkStatus();
  return ParsePercentile(equals == std::string_view::npos ? "" : method.substr(equals + 1))
      .status();
}

absl::StatusOr<ActivationRange> FindActivationRange(const InputStatistics& input,
                                                    std::string_view method) {
  RETURN_IF_ERROR(CheckActivationRange(method));
  const size_t equals = method.find('=');
  const std::string_view name = method.substr(0, equals);
  const std::string_view value = equals == std::string_view::npos ? "" : method.substr(equals + 1);
  if (input.tokens() == 0)
    return absl::FailedPreconditionError("an activation range needs calibration: tokens=0");
  if (name == "minmax") return ActivationRange{input.tensor_min(), input.tensor_max()};
  if (name == "moving_average") return ActivationRange{input.moving_min(), input.moving_max()};
  if (!input.options().histogram) {
    return absl::FailedPreconditionError(
        absl::StrCat("this activation range needs a histogram: ", std::string(method)));
  }
  if (name == "percentile") {
    ASSIGN_OR_RETURN(const double percentile, ParsePercentile(value));
    return Symmetric(AbsmaxByPercentile(input.absolute_histogram(), percentile));
  }
  if (name == "mse") return Symmetric(AbsmaxByMse(input.absolute_histogram()));
  if (name == "entropy") return Symmetric(AbsmaxByEntropy(input.absolute_histogram()));
  if (name == "auto" && RangeParm(input) > kAutoThreshold)
    return ActivationRange{input.tensor_min(), input.tensor_max()};
  return RangeByHistogram(input.histogram());
}

}  // namespace assay
