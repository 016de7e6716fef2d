// Whether requests still look as they did when a version began to serve: how long they are, and
// which tokens they are made of. Population stability index against the first requests,
//
//   PSI = sum over buckets of (p - q) ln(p / q),   p, q with half a count added to every bucket;
//
// usual reading: below 0.1 the same, above 0.25 another population. Lengths fall into buckets of
// powers of two. Tokens fall into kTokenBuckets of equal mass by how often the first kLearn
// requests had them, and one for those that they had not; the next kBaseline requests are what
// later ones are compared with, so that a token's being new counts no more than it did then.
//
// Source: credit scoring's PSI; reference/quantization.md section 5.1. One thread uses it.
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
  // kWindow requests: the last kWindow to 2 kWindow are looked at.
  static constexpr int kLearn = 128, kBaseline = 256, kWindow = 128;
  static constexpr int kTokenBuckets = 12, kLengthBuckets = 24;

  void Add(std::span<const int32_t> tokens);
  // nullopt: fewer than kLearn + kBaseline + kWindow requests.
  std::optional<double> length_psi() const;
  std::optional<double> token_psi() const;

 private:
  struct Counts {
    std::array<double, kLengthBuckets> lengths{};
    std::array<double, kTokenBuckets + 1> tokens{};
  };
  void Learn();
  int64_t requests_ = 0;
  std::map<int32_t, int64_t> learning_;
  std::unordered_map<int32_t, int> bucket_;
  Counts baseline_, previous_, current_;
};

}  // namespace assay
