#include "base/clock.h"

#include <chrono>

#include "absl/time/clock.h"

namespace assay {
namespace {

class SystemClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
};

class MonotonicClock final : public Clock {
 public:
  absl::Time Now() const override {
    return absl::UnixEpoch() +
           absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
};

}  // namespace

const Clock& RealClock() {
  static const SystemClock* const clock = new SystemClock;
  return *clock;
}

const Clock& SteadyClock() {
  static const MonotonicClock* const clock = new MonotonicClock;
  return *clock;
}

}  // namespace assay
