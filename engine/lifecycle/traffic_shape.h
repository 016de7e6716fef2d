// Whether requests still look as they did when a version began to serve: how long they are, and
// which tokens they are made of. Population stability index against the first requests,
//
//   PSI = sum over buckets of (p - q) ln(p / q),   p, q with half a request added to every bucket;
//
// usual reading: below 0.1 the same, above 0.25 another population. Lengths fall into buckets of
// powers of two. Tokens fall into kTokenBuckets of equal mass by how often the first kLearn
// requests had them, and one for those that they had not; the next kBaseline requests are what
// later ones are compared with, so that a token's being new counts no more than it did then. What
// those requests are like is the norm, whatever it is.
//
// Two samples of one population differ, too: by sum(V_aa / p_a) on average, V the covariance of
// p - q. It is estimated over requests, each with the shares of its tokens, as the tokens of one
// request resemble one another (a cluster sample). Divided by it, the index is nearly a chi-square
// of sum(V_aa / p_a)^2 / sum(V_ab^2 / (p_a p_b)) degrees of freedom. Told is the index less that
// average, and 0 where chance explains it; once per kWindow requests. Requests are taken as
// independent of one another.
//
// Source: credit scoring's PSI; reference/quantization.md section 5.1; Rao and Scott 1984 (second-
// order correction), Wilson and Hilferty 1931. One thread uses it.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

namespace assay {

// Counts of the same buckets. Symmetric.
double StabilityIndex(std::span<const double> before, std::span<const double> now);

class TrafficShape {
 public:
  // kWindow requests are compared at a time.
  static constexpr int kLearn = 128, kBaseline = 256, kWindow = 128;
  static constexpr int kTokenBuckets = 12, kLengthBuckets = 24;

  void Add(std::span<const int32_t> tokens);
  // Of the last full window. nullopt: fewer than kLearn + kBaseline + kWindow requests.
  std::optional<double> length_psi() const { return length_psi_; }
  std::optional<double> token_psi() const { return token_psi_; }

 private:
  // Shares of requests that fall into buckets, summed over requests.
  struct Shares {
    explicit Shares(size_t buckets) : sum(buckets), products(buckets * buckets) {}
    void Add(std::span<const double> shares);     // [buckets], their sum is 1
    double Covariance(size_t a, size_t b) const;  // of the means
    double requests = 0;
    std::vector<double> sum;       // [buckets]
    std::vector<double> products;  // [buckets, buckets]
  };
  struct Sample {
    Shares lengths{kLengthBuckets};
    Shares tokens{kTokenBuckets + 1};  // of requests that have any
  };
  static double BeyondChance(const Shares& before, const Shares& now);
  void Learn();
  int64_t requests_ = 0;
  std::map<int32_t, int64_t> learning_;
  std::unordered_map<int32_t, int> bucket_;
  Sample baseline_, current_;
  std::optional<double> length_psi_, token_psi_;
};

}  // namespace assay
