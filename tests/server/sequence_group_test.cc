#include "server/sequence_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "server/work_gate.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(SequenceGroupTest, EndsOnceWhenTheLastRowHasEnded) {
  SequenceGroup group;
  std::vector<absl::Status> ends;
  group.SubmitAll(
      {3, 3}, [](size_t row) { return SequenceId{row + 10}; }, [](SequenceId) {},
      [&ends](const absl::Status& status) { ends.push_back(status); });
  group.Ended(absl::OkStatus());
  group.Ended(absl::OkStatus());
  EXPECT_THAT(ends, IsEmpty());
  group.Ended(absl::OkStatus());
  EXPECT_THAT(ends, ElementsAre(IsOk()));
}

TEST(SequenceGroupTest, RowsThatEndDuringSubmissionDoNotEndTheGroupEarly) {
  SequenceGroup group;
  int ends = 0, submitted = 0;
  group.SubmitAll(
      {2, 2},
      [&](size_t row) {
        ++submitted;
        group.Ended(absl::OkStatus());
        EXPECT_EQ(ends, 0);
        return SequenceId{row};
      },
      [](SequenceId) {}, [&ends](const absl::Status&) { ++ends; });
  EXPECT_EQ(submitted, 2);
  EXPECT_EQ(ends, 1);
}

TEST(SequenceGroupTest, ARefusedRowCancelsTheOthersAndIsTheError) {
  SequenceGroup group;
  std::vector<SequenceId> cancelled;
  absl::Status end;
  group.SubmitAll(
      {3, 3},
      [](size_t row) -> absl::StatusOr<SequenceId> {
        if (row == 1) return absl::ResourceExhaustedError("queue is full");
        return SequenceId{row + 10};
      },
      [&cancelled](SequenceId id) { cancelled.push_back(id); },
      [&end](const absl::Status& status) { end = status; });
  EXPECT_THAT(cancelled, ElementsAre(10));
  EXPECT_OK(end);  // row 0 has not ended yet
  group.Ended(absl::CancelledError("row 0"));
  EXPECT_THAT(end, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("queue is full")));
}

TEST(SequenceGroupTest, CancelBeforeSubmissionSubmitsNothing) {
  SequenceGroup group;
  group.Cancel();
  int submitted = 0;
  absl::Status end;
  group.SubmitAll(
      {2, 2}, [&](size_t row) { return SequenceId{row + ++submitted}; }, [](SequenceId) {},
      [&end](const absl::Status& status) { end = status; });
  EXPECT_EQ(submitted, 0);
  EXPECT_THAT(end, StatusIs(absl::StatusCode::kCancelled));
}

// An engine with a queue of a few places that ends its rows one by one.
struct SmallEngine {
  size_t places;
  std::vector<size_t> waiting, submitted;
  absl::StatusOr<SequenceId> Submit(size_t row) {
    if (waiting.size() == places) return absl::ResourceExhaustedError("queue is full");
    waiting.push_back(row);
    submitted.push_back(row);
    return SequenceId{row};
  }
  void EndOne(SequenceGroup& group) {
    waiting.erase(waiting.begin());
    group.Ended(absl::OkStatus());
  }
};

TEST(SequenceGroupTest, MoreRowsThanTheQueueHoldsGoInWindows) {
  SmallEngine engine{4, {}, {}};
  SequenceGroup group;
  std::vector<absl::Status> ends;
  group.SubmitAll(
      {10, 3}, [&engine](size_t row) { return engine.Submit(row); }, [](SequenceId) {},
      [&ends](const absl::Status& status) { ends.push_back(status); });
  EXPECT_THAT(engine.submitted, ElementsAre(0, 1, 2));
  engine.EndOne(group);
  EXPECT_THAT(engine.submitted, ElementsAre(0, 1, 2, 3));
  while (!engine.waiting.empty()) engine.EndOne(group);
  EXPECT_THAT(engine.submitted, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
  EXPECT_THAT(ends, ElementsAre(IsOk()));
}

TEST(SequenceGroupTest, ALaterRowWaitsWhileOthersFillTheQueue) {
  SmallEngine engine{3, {}, {}};
  SequenceGroup group;
  std::vector<absl::Status> ends;
  group.SubmitAll(
      {5, 3}, [&engine](size_t row) { return engine.Submit(row); }, [](SequenceId) {},
      [&ends](const absl::Status& status) { ends.push_back(status); });
  engine.places = 2;  // somebody else has taken the place that is about to become free
  engine.EndOne(group);
  EXPECT_THAT(engine.submitted, ElementsAre(0, 1, 2));
  while (!engine.waiting.empty()) engine.EndOne(group);
  EXPECT_THAT(engine.submitted, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(ends, ElementsAre(IsOk()));
}

TEST(SequenceGroupTest, ACancelledGroupSubmitsNoLaterWindow) {
  SmallEngine engine{3, {}, {}};
  SequenceGroup group;
  std::vector<SequenceId> cancelled;
  std::vector<absl::Status> ends;
  group.SubmitAll(
      {5, 2}, [&engine](size_t row) { return engine.Submit(row); },
      [&cancelled](SequenceId id) { cancelled.push_back(id); },
      [&ends](const absl::Status& status) { ends.push_back(status); });
  group.Cancel();
  EXPECT_THAT(cancelled, ElementsAre(0, 1));
  while (!engine.waiting.empty()) engine.EndOne(group);  // too late to cancel them
  EXPECT_THAT(engine.submitted, ElementsAre(0, 1));
  EXPECT_THAT(ends, ElementsAre(StatusIs(absl::StatusCode::kCancelled)));
}

TEST(WorkGateTest, RefusesAfterCloseAndWaitsForTheLastTicket) {
  WorkGate gate;
  ASSERT_OK_AND_ASSIGN(WorkGate::Ticket ticket, gate.Enter());
  gate.Close();
  EXPECT_THAT(gate.Enter(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("draining")));
  EXPECT_EQ(gate.active(), 1);
  EXPECT_FALSE(gate.WaitIdle(std::chrono::steady_clock::now()));
  std::thread worker(
      [moved = std::move(ticket)]() mutable { const WorkGate::Ticket held = std::move(moved); });
  EXPECT_TRUE(gate.WaitIdle(std::chrono::steady_clock::now() + std::chrono::minutes(1)));
  worker.join();
}

}  // namespace
}  // namespace assay
