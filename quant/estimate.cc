#include "quant/estimate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

namespace assay {
namespace {

double Sum(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// splitmix64 (Steele, Lea, Flood 2014).
uint64_t NextRandom(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace

double StudentT975(int degrees_of_freedom) {
  static constexpr std::array<double, 30> kTable = {
      12.706204736174694, 4.302652729749462,  3.1824463052837078, 2.7764451051977934,
      2.5705818356363146, 2.4469118511449786, 2.364624251592784,  2.306004135204166,
      2.262157162798205,  2.228138851986274,  2.200985160091639,  2.1788128296672284,
      2.1603686564627913, 2.144786687917804,  2.131449545559776,  2.1199052992212546,
      2.1098155778333156, 2.1009220402410382, 2.0930240544083087, 2.085963447265864,
      2.0796138447276795, 2.0738730679040254, 2.0686576104190486, 2.0638985616280245,
      2.0595385527532972, 2.0555294386428735, 2.0518305164802846, 2.0484071417952454,
      2.045229642132703,  2.0422724563012378};
  if (degrees_of_freedom < 1) return std::numeric_limits<double>::infinity();
  if (degrees_of_freedom <= 30) return kTable[static_cast<size_t>(degrees_of_freedom - 1)];
  // Cornish-Fisher expansion around the normal quantile (Abramowitz and Stegun 26.7.5).
  constexpr double z = 1.959963984540054;
  const double n = degrees_of_freedom, z3 = z * z * z, z5 = z3 * z * z, z7 = z5 * z * z;
  return z + (z3 + z) / (4 * n) + (5 * z5 + 16 * z3 + 3 * z) / (96 * n * n) +
         (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * n * n * n);
}

Estimate EstimateMean(std::span<const double> values) {
  const size_t n = values.size();
  if (n == 0) return {};
  double mean = 0;
  for (const double value : values) mean += value;
  mean /= static_cast<double>(n);
  if (n < 2) return {mean, mean, mean};
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const double deviation = std::sqrt(squares / static_cast<double>(n - 1));
  const double half =
      StudentT975(static_cast<int>(n) - 1) * deviation / std::sqrt(static_cast<double>(n));
  return {mean, mean - half, mean + half};
}

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const double rank = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<ptrdiff_t>(std::floor(rank));
  std::nth_element(values.begin(), values.begin() + below, values.end());
  const double low = values[static_cast<size_t>(below)];
  if (static_cast<size_t>(below) + 1 == values.size()) return low;
  const double high = *std::min_element(values.begin() + below + 1, values.end());
  return low + (high - low) * (rank - static_cast<double>(below));
}

Estimate EstimateRatio(std::span<const double> numerators, std::span<const double> denominators) {
  const size_t n = numerators.size();
  if (n == 0) return {};
  const double total = Sum(denominators), ratio = Sum(numerators) / total;
  if (n < 2) return {ratio, ratio, ratio};
  double squares = 0;
  for (size_t i = 0; i < n; ++i) {
    const double residual = numerators[i] - ratio * denominators[i];
    squares += residual * residual;
  }
  const auto count = static_cast<double>(n);
  const double half = StudentT975(static_cast<int>(n) - 1) *
                      std::sqrt(squares / (count - 1) / count) / (total / count);
  return {ratio, ratio - half, ratio + half};
}

Estimate BootstrapRatio(std::span<const double> numerators, std::span<const double> denominators,
                        const Bootstrap& bootstrap) {
  const size_t n = numerators.size();
  if (n == 0) return {};
  const double ratio = Sum(numerators) / Sum(denominators);
  if (n < 2) return {ratio, ratio, ratio};
  uint64_t state = bootstrap.seed;
  std::vector<double> ratios(static_cast<size_t>(bootstrap.resamples));
  for (double& resampled : ratios) {
    double numerator = 0, denominator = 0;
    for (size_t i = 0; i < n; ++i) {
      const auto document = static_cast<size_t>(NextRandom(state) % n);
      numerator += numerators[document];
      denominator += denominators[document];
    }
    resampled = numerator / denominator;
  }
  return {ratio, Quantile(ratios, 0.025), Quantile(ratios, 0.975)};
}

Estimate BootstrapMean(std::span<const double> values, const Bootstrap& bootstrap) {
  const std::vector<double> ones(values.size(), 1.0);
  return BootstrapRatio(values, ones, bootstrap);
}

Estimate BootstrapQuantile(std::span<const double> values, std::span<const int> sizes, double q,
                           const Bootstrap& bootstrap) {
  const double whole = Quantile({values.begin(), values.end()}, q);
  if (sizes.size() < 2) return {whole, whole, whole};
  struct Value {
    double value;
    size_t document;
  };
  std::vector<Value> sorted;  // from the largest
  for (size_t d = 0; d < sizes.size(); ++d) {
    for (int i = 0; i < sizes[d]; ++i) sorted.push_back({values[sorted.size()], d});
  }
  std::sort(sorted.begin(), sorted.end(),
            [](const Value& a, const Value& b) { return a.value > b.value; });
  uint64_t state = bootstrap.seed;
  std::vector<double> quantiles(static_cast<size_t>(bootstrap.resamples));
  std::vector<int64_t> times(sizes.size());
  for (double& quantile : quantiles) {
    std::fill(times.begin(), times.end(), 0);
    int64_t count = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const auto document = static_cast<size_t>(NextRandom(state) % sizes.size());
      ++times[document];
      count += sizes[document];
    }
    if (count == 0) continue;  // only documents without values
    // The order statistics around the rank, counted from the top.
    const double rank = (1 - q) * static_cast<double>(count - 1);
    const auto above = static_cast<int64_t>(std::floor(rank));
    const int64_t below = std::min(above + 1, count - 1);
    double high = 0, low = 0;
    int64_t seen = 0;
    for (const Value& value : sorted) {
      const int64_t end = seen + times[value.document];
      if (seen <= above && above < end) high = value.value;
      if (seen <= below && below < end) {
        low = value.value;
        break;
      }
      seen = end;
    }
    quantile = high + (low - high) * (rank - static_cast<double>(above));
  }
  return {whole, Quantile(quantiles, 0.025), Quantile(quantiles, 0.975)};
}

Estimate Wider(const Estimate& a, const Estimate& b) {
  return {a.mean, std::isnan(a.low) || a.low < b.low ? a.low : b.low,
          std::isnan(a.high) || a.high > b.high ? a.high : b.high};
}

}  // namespace assay
