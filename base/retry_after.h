// When a client that got a status may come again, where that is known better than by its code: a
// payload of the status, in whole milliseconds.
#pragma once
#include <optional>

#include "absl/time/time.h"
#include "base/status.h"

namespace assay {

void SetRetryAfter(absl::Duration after, absl::Status& status);  // rounded up
std::optional<absl::Duration> RetryAfter(const absl::Status& status);

}  // namespace assay
