// The latest traced observation of each bucket of a histogram. Thread-safe; only requests that are
// traced come here.
#pragma once
#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/mutex.h"
#include "engine/metrics.h"

namespace assay {

struct Exemplar {
  TraceId trace;  // none: no exemplar
  double value = 0;
  absl::Time at;
};

class Exemplars {
 public:
  // `upper_bounds` rise; one more bucket, without a bound, follows.
  explicit Exemplars(std::vector<double> upper_bounds)
      : upper_bounds_(std::move(upper_bounds)), latest_(upper_bounds_.size() + 1) {}

  void Keep(double value, TraceId trace, absl::Time now) ABSL_LOCKS_EXCLUDED(mu_) {
    const auto bound = std::lower_bound(upper_bounds_.begin(), upper_bounds_.end(), value);
    MutexLock lock(mu_);
    latest_[static_cast<size_t>(bound - upper_bounds_.begin())] = {trace, value, now};
  }
  std::vector<Exemplar> Latest() const ABSL_LOCKS_EXCLUDED(mu_) {  // [buckets]
    MutexLock lock(mu_);
    return latest_;
  }

 private:
  const std::vector<double> upper_bounds_;
  mutable Mutex mu_;
  std::vector<Exemplar> latest_ ABSL_GUARDED_BY(mu_);
};

}  // namespace assay
