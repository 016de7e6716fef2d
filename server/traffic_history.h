// Requests per version over the last five minutes, in steps of five seconds: what the status page
// draws. Fed by requests as they end, so nothing samples; bounded: kPoints steps of kMost versions,
// 20 KB each. Thread-safe.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/mutex.h"

namespace assay {

// One step. Latencies are of requests that succeeded, within 10 %; 0 when there was none.
struct TrafficPoint {
  int64_t requests = 0, failed = 0;
  double tokens = 0;  // generated, spread over the time that their request took
  absl::Duration p50, p99;
};

class TrafficHistory {
 public:
  static constexpr absl::Duration kStep = absl::Seconds(5);
  static constexpr size_t kPoints = 60;
  static constexpr size_t kMost = 64;  // versions; the one that was idle longest makes room

  struct Request {
    absl::Duration total;
    bool ok = true;
    int tokens = 0;
  };
  void Add(const std::string& model, int64_t version, const Request& request, absl::Time now)
      ABSL_LOCKS_EXCLUDED(mu_);
  // kPoints complete steps, oldest first; the step of `now` is not among them.
  std::vector<TrafficPoint> Last(const std::string& model, int64_t version, absl::Time now) const
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Latencies by quarters of an octave, from 0.1 ms to 105 s.
  static constexpr int kBuckets = 81;
  struct Step {
    int64_t number = -1;  // since the epoch
    int64_t requests = 0, failed = 0;
    double tokens = 0;
    std::array<uint32_t, kBuckets> latencies{};
  };
  struct Series {
    int64_t last = 0;
    std::array<Step, kPoints + 1> ring;
    Step& At(int64_t number);
  };
  static int64_t NumberOf(absl::Time time);
  static absl::Duration Quantile(const Step& step, double q);

  mutable Mutex mu_;
  std::map<std::pair<std::string, int64_t>, Series> series_ ABSL_GUARDED_BY(mu_);
};

}  // namespace assay
