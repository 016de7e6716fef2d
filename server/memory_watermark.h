// Sheds load before the kernel kills: where the memory that this process may have is nearly used
// up, requests are refused until there is room again. Looks at most ten times a second.
//
// Thread rule: any thread.
#pragma once
#include <cstdint>
#include <functional>

#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/status.h"

namespace assay {

// Of the host's memory, or of what the cgroup allows if less: what is used, 0..1.
double UsedMemoryShare();

// Of gRPC's buffers, in bytes: what was asked for, at most a quarter of `memory` (0: not known).
// Messages that are not whole yet lie there, whoever sends them: the watermark frees none of it.
uint64_t QuotaWithin(uint64_t memory, uint64_t wanted);

class MemoryWatermark {
 public:
  // `share` 0: never refuses. `clock` outlives this.
  MemoryWatermark(double share, const Clock& clock, std::function<double()> used = UsedMemoryShare)
      : share_(share), clock_(clock), used_(std::move(used)) {}

  // ResourceExhausted, with a time to come again (SetRetryAfter).
  absl::Status Check() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  const double share_;
  const Clock& clock_;
  const std::function<double()> used_;
  Mutex mu_;
  absl::Time looked_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Time logged_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  double now_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace assay
