#include "engine/lifecycle/traffic_shape.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace assay {
namespace {

template <size_t n>
std::array<double, n> Sum(const std::array<double, n>& a, const std::array<double, n>& b) {
  std::array<double, n> sum;
  for (size_t i = 0; i < n; ++i) sum[i] = a[i] + b[i];
  return sum;
}

}  // namespace

double StabilityIndex(std::span<const double> before, std::span<const double> now) {
  constexpr double kPrior = 0.5;
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

void TrafficShape::Add(std::span<const int32_t> tokens) {
  const int64_t number = requests_++;
  if (number < kLearn) {
    for (const int32_t token : tokens) ++learning_[token];
    if (requests_ == kLearn) Learn();
    return;
  }
  const int64_t later = number - kLearn - kBaseline;
  if (later >= 0 && later % kWindow == 0) {
    previous_ = current_;
    current_ = {};
  }
  Counts& counts = later < 0 ? baseline_ : current_;
  const int width = std::bit_width(tokens.size());
  counts.lengths[static_cast<size_t>(std::min(width, kLengthBuckets - 1))] += 1;
  for (const int32_t token : tokens) {
    const auto found = bucket_.find(token);
    const int bucket = found == bucket_.end() ? kTokenBuckets : found->second;
    counts.tokens[static_cast<size_t>(bucket)] += 1;
  }
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

std::optional<double> TrafficShape::length_psi() const {
  if (requests_ < kLearn + kBaseline + kWindow) return std::nullopt;
  return StabilityIndex(baseline_.lengths, Sum(previous_.lengths, current_.lengths));
}

std::optional<double> TrafficShape::token_psi() const {
  if (requests_ < kLearn + kBaseline + kWindow) return std::nullopt;
  return StabilityIndex(baseline_.tokens, Sum(previous_.tokens, current_.tokens));
}

}  // namespace assay
