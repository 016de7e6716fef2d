#include "engine/runtime/queue_limit.h"

#include <gmock/gmock.h>

#include <deque>
#include <random>
#include <vector>

#include "base/retry_after.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using ::testing::HasSubstr;
using Code = absl::StatusCode;

const absl::Time kStart = absl::UnixEpoch();

// `steps` calls, `gap` apart, each of which starts `started` of a queue that stays `waiting` long.
void Serve(QueueRate& rate, absl::Time& now, int steps, absl::Duration gap, int started,
           int waiting) {
  for (int i = 0; i < steps; ++i) {
    now += gap;
    rate.Observe(now, started, waiting);
  }
}

TEST(QueueRateTest, SteadyStartsGiveTheirRate) {
  QueueRate rate;
  absl::Time now = kStart;
  rate.Observe(now, 0, 10);
  Serve(rate, now, 200, absl::Milliseconds(20), 2, 10);  // 100 a second
  EXPECT_NEAR(absl::ToDoubleSeconds(rate.ExpectedWait(50)), 0.5, 1e-6);
  EXPECT_EQ(rate.ExpectedWait(0), absl::ZeroDuration());
}

TEST(QueueRateTest, NothingIsSaidBeforeItIsKnown) {
  QueueRate rate;
  absl::Time now = kStart;
  rate.Observe(now, 0, 100);
  Serve(rate, now, 3, absl::Seconds(1), 1, 100);
  EXPECT_EQ(rate.ExpectedWait(100), absl::ZeroDuration());
  Serve(rate, now, 2, absl::Seconds(1), 1, 100);
  EXPECT_GT(rate.ExpectedWait(100), absl::Seconds(90));
}

// Requests that come once a second and start at once say nothing about how many could be served.
TEST(QueueRateTest, TimeWithoutAQueueDoesNotCount) {
  QueueRate rate;
  absl::Time now = kStart;
  rate.Observe(now, 0, 10);
  Serve(rate, now, 100, absl::Milliseconds(10), 1, 10);
  Serve(rate, now, 1000, absl::Seconds(1), 1, 0);
  EXPECT_EQ(rate.ExpectedWait(10), absl::ZeroDuration());  // nobody waited: it may start at once
  rate.Observe(now, 0, 10);
  // The one gap of a second with which the queue went away is in it: 1 of 32 starts.
  EXPECT_LT(rate.ExpectedWait(10), absl::Seconds(1));
  Serve(rate, now, 100, absl::Milliseconds(10), 1, 10);
  // Of that second (31/32)^100 = 4.2 % are left, beside 32 starts in 0.32 s: 0.362 s.
  EXPECT_NEAR(absl::ToDoubleSeconds(rate.ExpectedWait(32)), 0.362, 0.005);
}

TEST(QueueRateTest, AChangeOfSpeedIsSeenWithinTwoWindows) {
  QueueRate rate;
  absl::Time now = kStart;
  rate.Observe(now, 0, 10);
  Serve(rate, now, 200, absl::Milliseconds(10), 1, 10);
  Serve(rate, now, 64, absl::Milliseconds(100), 1, 10);
  // (31/32)^64 = 13 % of the weight is still the old rate's: 0.13 * 0.01 + 0.87 * 0.1 = 0.088.
  EXPECT_NEAR(absl::ToDoubleSeconds(rate.ExpectedWait(1)), 0.088, 0.002);
}

TEST(QueueRateTest, AModelThatStandsStillGetsSlower) {
  QueueRate rate;
  absl::Time now = kStart;
  rate.Observe(now, 0, 10);
  Serve(rate, now, 200, absl::Milliseconds(10), 1, 10);
  const absl::Duration before = rate.ExpectedWait(10);
  Serve(rate, now, 60, absl::Seconds(1), 0, 10);
  // 32 starts in 0.32 s became 32 in 60.32 s.
  EXPECT_GT(rate.ExpectedWait(10), 100 * before);
}

TEST(CheckQueueTest, RefusesByLengthByTimeAndByDeadlineWithTheFigures) {
  QueueRate rate;
  absl::Time now = kStart;
  rate.Observe(now, 0, 10);
  Serve(rate, now, 200, absl::Milliseconds(100), 1, 10);  // ten a second
  const QueueLimits limits{.max_waiting = 50, .max_wait = absl::Seconds(2)};
  const Newcomer patient{.arrival = now};
  EXPECT_OK(CheckQueue(limits, rate, 20, patient));
  const absl::Status late = CheckQueue(limits, rate, 21, patient);
  EXPECT_THAT(late, StatusIs(Code::kResourceExhausted,
                             HasSubstr("waiting=21 would take 2.1s, max_queue_wait=2s")));
  EXPECT_EQ(RetryAfter(late), absl::Milliseconds(1050));
  EXPECT_THAT(CheckQueue(limits, rate, 50, patient),
              StatusIs(Code::kResourceExhausted, HasSubstr("waiting=50 max_queue=50")));
  const Newcomer hasty{.arrival = now, .deadline = now + absl::Seconds(1)};
  EXPECT_OK(CheckQueue(limits, rate, 10, hasty));
  EXPECT_THAT(
      CheckQueue(limits, rate, 11, hasty),
      StatusIs(Code::kResourceExhausted, HasSubstr("waiting=11 would take 1.1s, deadline in 1s")));
  // Too late already, whatever waits: that is no overload.
  EXPECT_THAT(CheckQueue(limits, rate, 0, {.arrival = now, .deadline = now}),
              StatusIs(Code::kDeadlineExceeded, HasSubstr("before the request was queued")));
  // Nobody is refused for time where no bound is set, or as a row of a request that was taken.
  EXPECT_OK(CheckQueue({.max_waiting = 50}, rate, 49, patient));
  EXPECT_OK(CheckQueue(limits, rate, 49, {.arrival = now, .follows = true}));
  EXPECT_THAT(CheckQueue(limits, rate, 50, {.arrival = now, .follows = true}),
              StatusIs(Code::kResourceExhausted, HasSubstr("max_queue=50")));
}

TEST(CheckQueueTest, WhoIsTakenMustStartInTime) {
  const QueueLimits limits{.max_waiting = 50, .max_wait = absl::Seconds(2)};
  EXPECT_EQ(StartBy(limits, {.arrival = kStart}), kStart + absl::Seconds(2));
  EXPECT_EQ(StartBy(limits, {.arrival = kStart, .follows = true}), absl::InfiniteFuture());
  EXPECT_EQ(StartBy({.max_waiting = 50}, {.arrival = kStart}), absl::InfiniteFuture());
  EXPECT_THAT(WaitedTooLong(absl::Milliseconds(2003)),
              StatusIs(Code::kResourceExhausted, HasSubstr("waited 2.003s")));
}

// A server of a hundred requests a second under ten times that load, in virtual time.
struct Overload {
  int served = 0, late = 0, refused = 0;
};
Overload Simulate(const QueueLimits& limits) {
  constexpr absl::Duration kStep = absl::Milliseconds(10);
  std::minstd_rand random(7);
  std::poisson_distribution<int> arrivals(10);  // in a step that serves one
  QueueRate rate;
  std::deque<absl::Time> queue;
  Overload seen;
  absl::Time now = kStart;
  for (int step = 0; step < 3000; ++step, now += kStep) {
    int waiting = static_cast<int>(queue.size());
    for (int i = arrivals(random); i > 0; --i) {
      if (!CheckQueue(limits, rate, waiting, {.arrival = now}).ok()) {
        ++seen.refused;
        continue;
      }
      queue.push_back(now);
      ++waiting;
    }
    int started = 0;
    if (!queue.empty()) {
      ++(now - queue.front() <= absl::Milliseconds(600) ? seen.served : seen.late);
      queue.pop_front();
      started = 1;
    }
    rate.Observe(now, started, static_cast<int>(queue.size()));
  }
  return seen;
}

TEST(CheckQueueTest, UnderOverloadWhatIsTakenIsServedInTime) {
  const Overload seen = Simulate({.max_waiting = 256, .max_wait = absl::Milliseconds(500)});
  // One request in a step, all the time: 3000 but for the first ones, taken before the rate was
  // known (at most max_waiting of them, and they are late).
  EXPECT_GE(seen.served, 2700);
  EXPECT_LE(seen.late, 256);
  EXPECT_GT(seen.refused, 26000);
}

TEST(CheckQueueTest, WithoutABoundInTimeAllAreLate) {
  const Overload seen = Simulate({.max_waiting = 256});
  EXPECT_LT(seen.served, 100);
  EXPECT_GT(seen.late, 2700);
}

}  // namespace
}  // namespace assay
