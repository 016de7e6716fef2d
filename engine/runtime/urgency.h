// The order in which waiting requests are served.
#pragma once
#include <algorithm>

#include "absl/time/time.h"

namespace assay {

// Earliest first; equals in order of arrival. Earliest deadline first, but nobody waits for ever:
// a request counts as due half a minute after it arrived, so no newcomer with a deadline further
// away than now can overtake one that has waited that long.
inline absl::Time Urgency(absl::Time arrival, absl::Time deadline) {
  return std::min(deadline, arrival + absl::Seconds(30));
}

}  // namespace assay
