#include "server/traffic_history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace assay {
namespace {

constexpr absl::Time kNow = absl::FromUnixSeconds(1000000);

TEST(TrafficHistoryTest, CountsRequestsInTheStepInWhichTheyEnd) {
  TrafficHistory history;
  history.Add("m", 1, {.total = absl::Milliseconds(10)}, kNow);
  history.Add("m", 1, {.total = absl::Milliseconds(10), .ok = false}, kNow + absl::Seconds(1));
  const auto points = history.Last("m", 1, kNow + TrafficHistory::kStep);
  ASSERT_EQ(points.size(), TrafficHistory::kPoints);
  EXPECT_EQ(points.back().requests, 2);
  EXPECT_EQ(points.back().failed, 1);
  EXPECT_EQ(points.front().requests, 0);
  EXPECT_EQ(history.Last("m", 2, kNow + TrafficHistory::kStep).back().requests, 0);
}

TEST(TrafficHistoryTest, QuantilesAreWithinTheWidthOfABucket) {
  TrafficHistory history;
  for (int i = 0; i < 98; ++i) history.Add("m", 1, {.total = absl::Milliseconds(10)}, kNow);
  for (int i = 0; i < 2; ++i) history.Add("m", 1, {.total = absl::Seconds(2)}, kNow);
  const TrafficPoint point = history.Last("m", 1, kNow + TrafficHistory::kStep).back();
  // A bucket spans 2^(1/4): its middle is within 2^(1/8) = 9.1 % of what it holds.
  EXPECT_NEAR(absl::ToDoubleSeconds(point.p50), 0.010, 0.00095);
  EXPECT_NEAR(absl::ToDoubleSeconds(point.p99), 2, 0.19);
}

TEST(TrafficHistoryTest, TokensAreSpreadOverTheTimeOfTheirRequest) {
  TrafficHistory history;
  history.Add("m", 1, {.total = absl::Seconds(15), .tokens = 100}, kNow);
  const auto points = history.Last("m", 1, kNow + TrafficHistory::kStep);
  for (size_t i = 1; i <= 4; ++i) EXPECT_DOUBLE_EQ(points[points.size() - i].tokens, 25);
  EXPECT_EQ(points[points.size() - 5].tokens, 0);
}

TEST(TrafficHistoryTest, WhatIsOldGoes) {
  TrafficHistory history;
  history.Add("m", 1, {}, kNow);
  for (const TrafficPoint& point : history.Last("m", 1, kNow + absl::Minutes(6)))
    EXPECT_EQ(point.requests, 0);
}

TEST(TrafficHistoryTest, TheVersionThatWasIdleLongestMakesRoom) {
  TrafficHistory history;
  for (size_t i = 0; i <= TrafficHistory::kMost; ++i) {
    history.Add("m", static_cast<int64_t>(i), {},
                kNow + (i == 0 ? absl::Seconds(0) : TrafficHistory::kStep));
  }
  const absl::Time after = kNow + 2 * TrafficHistory::kStep;
  EXPECT_EQ(history.Last("m", 0, after)[TrafficHistory::kPoints - 2].requests, 0);
  EXPECT_EQ(history.Last("m", 1, after).back().requests, 1);
}

}  // namespace
}  // namespace assay
