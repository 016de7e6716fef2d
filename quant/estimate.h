// What a figure that was measured on some documents says about all of them. Documents are the unit,
// because positions inside one are not independent. All sums in double. Pure functions.
//
// Two intervals, both 95 %: Student's t, mean -+ t(0.975, n-1) s / sqrt(n), which is right for few
// documents of similar kind; and the bootstrap over documents (percentile; Efron and Tibshirani
// 1993, chapter 13), which follows a skewed distribution but is narrow for few documents. Decisions
// look at the farther bound of the two.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace assay {

struct Estimate {
  double mean = 0, low = 0, high = 0;
};
// Mean of per-document values with its t interval; low = high = mean for fewer than two.
Estimate EstimateMean(std::span<const double> values);
// sum(numerators) / sum(denominators), for documents of different length: t interval of the
// linearised ratio (Cochran 1977, section 6.3). Equal sizes, positive denominators.
Estimate EstimateRatio(std::span<const double> numerators, std::span<const double> denominators);
// Two-sided 95 % quantile of Student's t. 0 degrees of freedom or fewer: infinity.
double StudentT975(int degrees_of_freedom);
// Linear interpolation between order statistics (numpy's default); 0 for no values. `q` in [0, 1].
double Quantile(std::vector<double> values, double q);

// Resamples are the same for every call with the same seed and number of documents, so that figures
// of one set are resampled together. Random numbers: splitmix64 modulo the number of documents.
struct Bootstrap {
  int resamples = 2000;
  uint64_t seed = 20261122;
};
// As EstimateRatio, the interval from resampled documents.
Estimate BootstrapRatio(std::span<const double> numerators, std::span<const double> denominators,
                        const Bootstrap& bootstrap);
Estimate BootstrapMean(std::span<const double> values, const Bootstrap& bootstrap);
// Quantile `q` of the values of all documents together; the interval from resampled documents.
// `values`: document after document, sizes[i] of the i-th; their sum is values.size().
Estimate BootstrapQuantile(std::span<const double> values, std::span<const int> sizes, double q,
                           const Bootstrap& bootstrap);
// The farther bounds of both.
Estimate Wider(const Estimate& a, const Estimate& b);

}  // namespace assay
