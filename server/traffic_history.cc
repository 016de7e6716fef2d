#include "server/traffic_history.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace assay {
namespace {

constexpr double kLeastSeconds = 1e-4;

}  // namespace

int64_t TrafficHistory::NumberOf(absl::Time time) {
  return absl::ToUnixSeconds(time) / absl::ToInt64Seconds(kStep);
}

TrafficHistory::Step& TrafficHistory::Series::At(int64_t number) {
  Step& step = ring[static_cast<size_t>(number) % ring.size()];
  if (step.number < number) {
    step = {};
    step.number = number;
  }
  return step;
}

void TrafficHistory::Add(const std::string& model, int64_t version, const Request& request,
                         absl::Time now) {
  const double seconds = std::max(absl::ToDoubleSeconds(request.total), kLeastSeconds);
  const auto bucket = static_cast<size_t>(
      std::clamp<double>(4 * std::log2(seconds / kLeastSeconds), 0, kBuckets - 1));
  const int64_t number = std::max<int64_t>(0, NumberOf(now));
  const int64_t first =
      std::clamp<int64_t>(NumberOf(now - request.total), number - kPoints + 1, number);
  MutexLock lock(mu_);
  if (series_.size() >= kMost && !series_.contains({model, version})) {
    series_.erase(std::min_element(
        series_.begin(), series_.end(),
        [](const auto& a, const auto& b) { return a.second.last < b.second.last; }));
  }
  Series& series = series_[{model, version}];
  series.last = std::max(series.last, number);
  Step& step = series.At(number);
  ++step.requests;
  if (!request.ok) ++step.failed;
  if (request.ok) ++step.latencies[bucket];
  for (int64_t n = first; request.tokens > 0 && n <= number; ++n) {
    series.At(n).tokens += request.tokens / static_cast<double>(number - first + 1);
  }
}

absl::Duration TrafficHistory::Quantile(const Step& step, double q) {
  const auto count = std::accumulate(step.latencies.begin(), step.latencies.end(), uint64_t{0});
  if (count == 0) return absl::ZeroDuration();
  const auto rank = static_cast<uint64_t>(std::ceil(q * static_cast<double>(count)));
  uint64_t seen = 0;
  int bucket = 0;
  for (; bucket < kBuckets - 1; ++bucket) {
    seen += step.latencies[static_cast<size_t>(bucket)];
    if (seen >= rank) break;
  }
  return absl::Seconds(kLeastSeconds * std::exp2((bucket + 0.5) / 4));
}

std::vector<TrafficPoint> TrafficHistory::Last(const std::string& model, int64_t version,
                                               absl::Time now) const {
  std::vector<TrafficPoint> points(kPoints);
  const int64_t first = NumberOf(now) - static_cast<int64_t>(kPoints);
  MutexLock lock(mu_);
  const auto found = series_.find({model, version});
  if (found == series_.end()) return points;
  for (const Step& step : found->second.ring) {
    const int64_t place = step.number - first;
    if (step.number < 0 || place < 0 || place >= static_cast<int64_t>(kPoints)) continue;
    points[static_cast<size_t>(place)] = {step.requests, step.failed, step.tokens,
                                          Quantile(step, 0.5), Quantile(step, 0.99)};
  }
  return points;
}

}  // namespace assay
