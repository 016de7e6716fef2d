// Who may join an engine's queue: bounded in length and, where asked for, in time, so that under
// overload the requests that are taken are answered while their clients still want the answer.
#pragma once
#include "absl/time/time.h"
#include "base/status.h"

namespace assay {

// How fast waiting requests leave the queue. The rate is starts per second of the time during
// which somebody waited: what starts at once says how fast requests come, not how many could be
// served. The last kWindow starts count, older ones fade, whatever time they took: a model that
// starts one request in a minute is known as well as one that starts a thousand in a second, and
// one that stands still gets slower with every second.
//
// Thread rule: none; the caller locks.
class QueueRate {
 public:
  static constexpr double kWindow = 32;  // starts
  static constexpr double kEnough = 4;   // starts before which nothing is said

  // At `now`, `started` requests had left the queue since the last call, and `waiting` are in it.
  void Observe(absl::Time now, int started, int waiting);
  // How long somebody would wait behind `ahead` others; zero: nobody waits, or the rate is unknown.
  absl::Duration ExpectedWait(int ahead) const;

 private:
  int waiting_ = 0;  // at last_
  absl::Time last_;
  double starts_ = 0;  // faded
  absl::Duration elapsed_ = absl::ZeroDuration();
};

struct QueueLimits {
  int max_waiting = 256;
  // No request waits longer: one that would is refused at once, one that has is ended.
  absl::Duration max_wait = absl::InfiniteDuration();
};

// A request at the door.
struct Newcomer {
  absl::Time arrival;
  absl::Time deadline = absl::InfiniteFuture();
  // A later row of a request that was taken: waits as long as it must.
  bool follows = false;
};

// OK; DeadlineExceeded: it is past already; or ResourceExhausted with the figures and a time to
// come again (SetRetryAfter): `waiting` requests are there, of which the rate says how long they
// take.
absl::Status CheckQueue(const QueueLimits& limits, const QueueRate& rate, int waiting,
                        const Newcomer& newcomer);

// When the newcomer must have left the queue.
absl::Time StartBy(const QueueLimits& limits, const Newcomer& newcomer);
// What ends a request that has not.
absl::Status WaitedTooLong(absl::Duration waited);

}  // namespace assay
