#include "quant/policy/plan_solver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

PlanProblem RandomProblem(uint32_t seed, int layers, int options) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<uint64_t> bytes(1, 50);
  std::uniform_real_distribution<double> figure(0, 1);
  PlanProblem problem;
  for (int i = 0; i < layers; ++i) {
    std::vector<PlanOption> layer;
    for (int o = 0; o < options; ++o) {
      layer.push_back({bytes(random), figure(random), figure(random), o == options - 1});
    }
    problem.push_back(layer);
  }
  return problem;
}

// Every plan there is.
void ForEachPlan(const PlanProblem& problem, const std::function<void(const PlanPoint&)>& look) {
  PlanPoint point;
  point.choice.assign(problem.size(), 0);
  for (;;) {
    PlanPoint plan{point.choice};
    for (size_t i = 0; i < problem.size(); ++i) {
      const PlanOption& option = problem[i][static_cast<size_t>(point.choice[i])];
      plan.bytes += option.bytes;
      plan.error += option.error;
      plan.seconds += option.seconds;
      plan.fallback += option.fallback ? 1 : 0;
    }
    look(plan);
    size_t i = 0;
    while (i < problem.size() && ++point.choice[i] == static_cast<int>(problem[i].size())) {
      point.choice[i++] = 0;
    }
    if (i == problem.size()) return;
  }
}

TEST(PlanSolverTest, TheFrontierIsThatOfAllPlans) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const PlanProblem problem = RandomProblem(seed, 6, 4);
    const int most = static_cast<int>(seed % 4);
    ASSERT_OK_AND_ASSIGN(const std::vector<PlanPoint> frontier, PlanFrontier(problem, most));
    ASSERT_FALSE(frontier.empty());
    ForEachPlan(problem, [&](const PlanPoint& plan) {
      if (plan.fallback > most) return;
      const bool covered = std::any_of(frontier.begin(), frontier.end(), [&](const auto& point) {
        return point.bytes <= plan.bytes && point.error <= plan.error + 1e-12;
      });
      EXPECT_TRUE(covered) << plan.bytes << " " << plan.error;
    });
    for (const PlanPoint& point : frontier) EXPECT_LE(point.fallback, most);
    for (size_t i = 1; i < frontier.size(); ++i) {
      EXPECT_LT(frontier[i - 1].bytes, frontier[i].bytes);
      EXPECT_GT(frontier[i - 1].error, frontier[i].error);
    }
  }
}

TEST(PlanSolverTest, TheFewestBytesInsideAnErrorAndTheLeastErrorInsideBytes) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const PlanProblem problem = RandomProblem(seed, 6, 3);
    constexpr double kError = 2.5;
    constexpr uint64_t kBytes = 120;
    uint64_t fewest = ~uint64_t{0};
    double least = 1e9;
    ForEachPlan(problem, [&](const PlanPoint& plan) {
      if (plan.error <= kError) fewest = std::min(fewest, plan.bytes);
      if (plan.bytes <= kBytes) least = std::min(least, plan.error);
    });
    const absl::StatusOr<PlanPoint> small = SolvePlan(problem, {.max_error = kError});
    ASSERT_EQ(small.ok(), fewest != ~uint64_t{0});
    if (small.ok()) {
      EXPECT_EQ(small->bytes, fewest);
      EXPECT_LE(small->error, kError);
    }
    const absl::StatusOr<PlanPoint> accurate = SolvePlan(problem, {.max_bytes = kBytes});
    ASSERT_EQ(accurate.ok(), least < 1e9);
    if (accurate.ok()) {
      EXPECT_NEAR(accurate->error, least, 1e-12);
      EXPECT_LE(accurate->bytes, kBytes);
    }
  }
}

// Taking the layer of most error per byte first would spend the bytes on layer 0 and have none
// left for layer 1, which needs all of them.
TEST(PlanSolverTest, GreedyWouldBeWrongHere) {
  const PlanProblem problem = {{{0, 6}, {5, 0}}, {{0, 10}, {10, 0}}};
  ASSERT_OK_AND_ASSIGN(const PlanPoint point, SolvePlan(problem, {.max_bytes = 10}));
  EXPECT_THAT(point.choice, ElementsAre(0, 1));
  EXPECT_EQ(point.error, 6);
}

TEST(PlanSolverTest, TimeIsALimitToo) {
  // The smallest plan is slow; a fast one of the same error is larger.
  const PlanProblem problem = {{{10, 1, 5}, {20, 1, 1}, {30, 0.5, 1}},
                               {{10, 1, 5}, {20, 1, 1}, {30, 0.5, 1}}};
  ASSERT_OK_AND_ASSIGN(const PlanPoint slow, SolvePlan(problem, {.max_error = 2}));
  EXPECT_EQ(slow.bytes, 20u);
  ASSERT_OK_AND_ASSIGN(const PlanPoint fast,
                       SolvePlan(problem, {.max_error = 2, .max_seconds = 6}));
  EXPECT_LE(fast.seconds, 6);
  EXPECT_LE(fast.error, 2);
  EXPECT_THAT(SolvePlan(problem, {.max_seconds = 1}),
              StatusIs(StatusCode::kNotFound, HasSubstr("the fastest takes 2")));
}

TEST(PlanSolverTest, AsLargeAsAModel) {
  const PlanProblem problem = RandomProblem(7, 300, 6);
  ASSERT_OK_AND_ASSIGN(const std::vector<PlanPoint> frontier, PlanFrontier(problem, 20));
  EXPECT_GT(frontier.size(), 100u);
  uint64_t smallest = 0;
  for (const auto& layer : problem) {
    uint64_t least = ~uint64_t{0};
    for (const PlanOption& option : layer) {
      if (!option.fallback) least = std::min(least, option.bytes);
    }
    smallest += least;
  }
  EXPECT_LE(frontier.front().bytes, smallest);
  for (const PlanPoint& point : frontier) {
    EXPECT_LE(point.fallback, 20);
    ASSERT_EQ(point.choice.size(), problem.size());
  }
}

TEST(PlanSolverTest, WhatCannotBeIsSaid) {
  const PlanProblem problem = {{{10, 1}, {20, 0.5}}};
  EXPECT_THAT(SolvePlan(problem, {.max_bytes = 9}),
              StatusIs(StatusCode::kNotFound, HasSubstr("max_bytes=9: the smallest has 10")));
  EXPECT_THAT(SolvePlan(problem, {.max_error = 0.25}),
              StatusIs(StatusCode::kNotFound, HasSubstr("the most accurate has 0.5 in 20")));
  EXPECT_THAT(SolvePlan({{}}, {}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("layer=0")));
  EXPECT_THAT(SolvePlan({{{1, -1}}}, {}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("error=-1")));
  EXPECT_THAT(SolvePlan({{{1, std::numeric_limits<double>::quiet_NaN()}}}, {}),
              StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(SolvePlan({{{1, 1, 0, true}}}, {.max_fallback = 0}),
              StatusIs(StatusCode::kNotFound, HasSubstr("max_fallback=0")));
}

}  // namespace
}  // namespace assay
