#include "engine/runtime/queue_limit.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/retry_after.h"

namespace assay {
namespace {

constexpr absl::Duration kSoonest = absl::Milliseconds(100), kLatest = absl::Seconds(10);

// Half of the queue will have left then.
absl::Status Refuse(std::string_view message, absl::Duration expected) {
  absl::Status refused = absl::ResourceExhaustedError(std::string(message));
  SetRetryAfter(std::clamp(expected / 2, kSoonest, kLatest), refused);
  return refused;
}

std::string Rounded(absl::Duration duration) {
  return absl::FormatDuration(
      absl::Floor(duration + absl::Microseconds(500), absl::Milliseconds(1)));
}

}  // namespace

void QueueRate::Observe(absl::Time now, int started, int waiting) {
  if (waiting_ > 0) {
    const double fade = std::pow(1 - 1 / kWindow, started);
    starts_ = starts_ * fade + started;
    elapsed_ = elapsed_ * fade + std::max(absl::ZeroDuration(), now - last_);
  }
  last_ = now;
  waiting_ = waiting;
}

absl::Duration QueueRate::ExpectedWait(int ahead) const {
  // Who arrived since the last call may start at once if nobody waited then.
  if (waiting_ == 0 || starts_ < kEnough) return absl::ZeroDuration();
  return elapsed_ * (ahead / starts_);
}

absl::Status CheckQueue(const QueueLimits& limits, const QueueRate& rate, int waiting,
                        const Newcomer& newcomer) {
  const absl::Duration expected = rate.ExpectedWait(waiting);
  if (waiting >= limits.max_waiting) {
    return Refuse(
        absl::StrCat("the queue is full: waiting=", waiting, " max_queue=", limits.max_waiting),
        expected);
  }
  if (newcomer.follows) return absl::OkStatus();
  if (newcomer.deadline <= newcomer.arrival) {
    return absl::DeadlineExceededError("the deadline passed before the request was queued");
  }
  if (expected > limits.max_wait) {
    return Refuse(absl::StrCat("the queue is too long: waiting=", waiting, " would take ",
                               Rounded(expected), ", max_queue_wait=", Rounded(limits.max_wait)),
                  expected);
  }
  if (expected > newcomer.deadline - newcomer.arrival) {
    return Refuse(absl::StrCat("the deadline would pass in the queue: waiting=", waiting,
                               " would take ", Rounded(expected), ", deadline in ",
                               Rounded(newcomer.deadline - newcomer.arrival)),
                  expected);
  }
  return absl::OkStatus();
}

absl::Time StartBy(const QueueLimits& limits, const Newcomer& newcomer) {
  return newcomer.follows ? absl::InfiniteFuture() : newcomer.arrival + limits.max_wait;
}

absl::Status WaitedTooLong(absl::Duration waited) {
  return Refuse(
      absl::StrCat("waited ", Rounded(waited), " in the queue, longer than max_queue_wait"),
      waited);
}

}  // namespace assay
