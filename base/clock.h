// Time enters the libraries through this interface, so that tests own it.
#pragma once
#include "absl/time/time.h"

namespace assay {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

const Clock& RealClock();  // absl::Now()
// For how long things take: its zero means nothing, and nobody sets it, as the host's is set.
const Clock& SteadyClock();

}  // namespace assay
