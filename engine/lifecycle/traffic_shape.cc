#include "engine/lifecycle/traffic_shape.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace assay {
namespace {

// Deviations of a normal that chance may explain: one look in 30,000 goes beyond, so that 10,000
// requests, 2 figures and a look every 128, do with a chance of 0.5 %.
constexpr double kDeviations = 4;
constexpr double kPrior = 0.5;

// What chance may reach, in multiples of what it gives on average (Wilson and Hilferty).
double ChiSquareBound(double degrees) {
  const double variance = 2 / (9 * degrees);
  return std::pow(1 - variance + kDeviations * std::sqrt(variance), 3);
}

}  // namespace

double StabilityIndex(std::span<const double> before, std::span<const double> now) {
  const double prior = kPrior * static_cast<double>(before.size());
  const double all_before = std::accumulate(before.begin(), before.end(), prior);
  const double all_now = std::accumulate(now.begin(), now.end(), prior);
  double index = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    const double q = (before[i] + kPrior) / all_before, p = (now[i] + kPrior) / all_now;
    index += (p - q) * std::log(p / q);
  }
  return index;
}

void TrafficShape::Shares::Add(std::span<const double> shares) {
  ++requests;
  for (size_t a = 0; a < sum.size(); ++a) {
    if (shares[a] == 0) continue;
    sum[a] += shares[a];
    for (size_t b = 0; b < sum.size(); ++b) products[a * sum.size() + b] += shares[a] * shares[b];
  }
}

double TrafficShape::Shares::Covariance(size_t a, size_t b) const {
  if (requests < 2) return 0;
  return (products[a * sum.size() + b] / requests - sum[a] / requests * sum[b] / requests) /
         (requests - 1);
}

double TrafficShape::BeyondChance(const Shares& before, const Shares& now) {
  const size_t buckets = now.sum.size();
  const double prior = kPrior * static_cast<double>(buckets);
  const auto share = [&](size_t a) {
    return ((before.sum[a] + kPrior) / (before.requests + prior) +
            (now.sum[a] + kPrior) / (now.requests + prior)) /
           2;
  };
  double trace = 0, squares = 0;
  for (size_t a = 0; a < buckets; ++a) {
    for (size_t b = 0; b < buckets; ++b) {
      const double v = before.Covariance(a, b) + now.Covariance(a, b);
      if (a == b) trace += v / share(a);
      squares += v * v / (share(a) * share(b));
    }
  }
  const double index = StabilityIndex(before.sum, now.sum);
  // Requests that are all alike leave nothing to chance.
  const double bound = squares > 0 ? trace * ChiSquareBound(trace * trace / squares) : 0;
  return index > bound ? index - trace : 0;
}

void TrafficShape::Add(std::span<const int32_t> tokens) {
  const int64_t number = requests_++;
  if (number < kLearn) {
    for (const int32_t token : tokens) ++learning_[token];
    if (requests_ == kLearn) Learn();
    return;
  }
  Sample& sample = number < kLearn + kBaseline ? baseline_ : current_;
  std::array<double, kLengthBuckets> length{};
  length[static_cast<size_t>(
      std::min(static_cast<int>(std::bit_width(tokens.size())), kLengthBuckets - 1))] = 1;
  sample.lengths.Add(length);
  std::array<double, kTokenBuckets + 1> shares{};
  for (const int32_t token : tokens) {
    const auto found = bucket_.find(token);
    const int bucket = found == bucket_.end() ? kTokenBuckets : found->second;
    shares[static_cast<size_t>(bucket)] += 1 / static_cast<double>(tokens.size());
  }
  if (!tokens.empty()) sample.tokens.Add(shares);
  if (current_.lengths.requests < kWindow) return;
  length_psi_ = BeyondChance(baseline_.lengths, current_.lengths);
  token_psi_ = BeyondChance(baseline_.tokens, current_.tokens);
  current_ = {};
}

// The most frequent tokens first, as long as a bucket has room.
void TrafficShape::Learn() {
  std::vector<std::pair<int64_t, int32_t>> by_count;
  int64_t all = 0, before = 0;
  for (const auto& [token, count] : learning_) {
    by_count.emplace_back(-count, token);
    all += count;
  }
  std::sort(by_count.begin(), by_count.end());
  for (const auto& [negative, token] : by_count) {
    bucket_[token] = static_cast<int>(before * kTokenBuckets / all);
    before -= negative;
  }
  learning_.clear();
}

}  // namespace assay
