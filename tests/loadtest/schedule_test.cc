#include "loadtest/schedule.h"

#include <gmock/gmock.h>

#include <cmath>

#include "tests/support/status_matchers.h"

namespace assay::load {
namespace {

using testing::HasSubstr;

Scenario OnePhase(Arrivals arrivals, double seconds, uint64_t seed = 1) {
  Scenario out;
  out.seed = seed;
  out.kinds = {{.name = "a", .model = "m"}};
  out.phases = {{.name = "p", .duration = absl::Seconds(seconds), .arrivals = std::move(arrivals)}};
  return out;
}

std::vector<PlannedRequest> Planned(const Scenario& scenario, double capacity = 0) {
  auto plan = PlanPhase(scenario, 0, capacity);
  EXPECT_OK(plan);
  return *std::move(plan);
}

struct Moments {
  double mean = 0, variance = 0;
};

// Of the number of arrivals in one second at 100 per second, over so many seeds.
Moments CountMoments(Arrivals::Process process, int seeds) {
  double sum = 0, squares = 0;
  for (int seed = 1; seed <= seeds; ++seed) {
    const auto count =
        static_cast<double>(Planned(OnePhase({.process = process, .rate = {100}}, 1, seed)).size());
    sum += count;
    squares += count * count;
  }
  const double mean = sum / seeds;
  return {mean, (squares - seeds * mean * mean) / (seeds - 1)};
}

// Counts of a Poisson process have mean and variance m = 100. Over n = 1000 seeds the mean has
// standard error sqrt(m / n) = 0.32, the sample variance sqrt((2 m^2 + m) / n) = 4.5. Five of
// each: 1.6 and 22.5.
constexpr int kSeeds = 1000;
constexpr double kMeanBound = 1.6, kVarianceBound = 22.5;

TEST(ScheduleTest, PoissonCountsHaveTheMeanAndVarianceOfTheory) {
  const Moments seen = CountMoments(Arrivals::Process::kPoisson, kSeeds);
  EXPECT_NEAR(seen.mean, 100, kMeanBound);
  EXPECT_NEAR(seen.variance, 100, kVarianceBound);
}

TEST(ScheduleTest, TheBoundOnTheVarianceCatchesConstantArrivals) {
  const Moments seen = CountMoments(Arrivals::Process::kConstant, 10);
  EXPECT_NEAR(seen.mean, 100, kMeanBound);
  EXPECT_GT(std::abs(seen.variance - 100), kVarianceBound);
}

TEST(ScheduleTest, PoissonGapsAreExponential) {
  const auto plan = Planned(OnePhase({.rate = {1000}}, 100));
  double sum = 0, squares = 0;
  for (size_t i = 1; i < plan.size(); ++i) {
    const double gap =
        static_cast<double>(plan[i].offset_us - plan[i - 1].offset_us) / 1e3;  // in mean gaps
    EXPECT_GE(gap, 0);
    sum += gap;
    squares += gap * gap;
  }
  // Mean 1, second moment 2; n = 100,000: standard errors sqrt(1 / n) = 0.0032 and sqrt((24 - 4) /
  // n) = 0.014; five of each. Gaps are cut to whole microseconds, which moves either by less than
  // 0.001.
  const auto n = static_cast<double>(plan.size() - 1);
  EXPECT_NEAR(sum / n, 1, 0.017);
  EXPECT_NEAR(squares / n, 2, 0.072);
}

TEST(ScheduleTest, TheSameSeedIsTheSamePlan) {
  const auto a = Planned(OnePhase({.rate = {50}}, 10, 7)),
             b = Planned(OnePhase({.rate = {50}}, 10, 7));
  const auto c = Planned(OnePhase({.rate = {50}}, 10, 8));
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].offset_us, b[i].offset_us);
    EXPECT_EQ(a[i].seed, b[i].seed);
    EXPECT_EQ(TextOf(a[i]), TextOf(b[i]));
  }
  EXPECT_NE(a[0].offset_us, c[0].offset_us);
  EXPECT_NE(TextOf(a[0]), TextOf(a[1]));
}

TEST(ScheduleTest, ReplayIsExact) {
  Arrivals arrivals{.process = Arrivals::Process::kReplay};
  arrivals.replay = {{0, -1}, {1500, -1}, {1500, -1}, {999999, -1}, {1000001, -1}};
  const auto plan = Planned(OnePhase(arrivals, 1));
  std::vector<int64_t> offsets;
  for (const PlannedRequest& request : plan) offsets.push_back(request.offset_us);
  EXPECT_EQ(offsets, (std::vector<int64_t>{0, 1500, 1500, 999999}));  // the last is after the phase
}

TEST(ScheduleTest, BurstsAreWhereTheyBelong) {
  Arrivals arrivals{.process = Arrivals::Process::kBurst, .rate = {10}, .peak = {1000}};
  arrivals.every = absl::Seconds(5);
  arrivals.length = absl::Seconds(1);
  int64_t inside = 0, outside = 0;
  for (const PlannedRequest& request : Planned(OnePhase(arrivals, 100))) {
    ++(request.offset_us % 5000000 < 1000000 ? inside : outside);
  }
  // 20 bursts of 1000: Poisson of mean 20,000, five standard deviations are 707; between them 800,
  // 141.
  EXPECT_NEAR(static_cast<double>(inside), 20000, 707);
  EXPECT_NEAR(static_cast<double>(outside), 800, 141);
}

TEST(ScheduleTest, SilenceBetweenBurstsIsSilent) {
  Arrivals arrivals{.process = Arrivals::Process::kBurst, .rate = {0}, .peak = {100}};
  arrivals.every = absl::Seconds(2);
  arrivals.length = absl::Seconds(1);
  const auto plan = Planned(OnePhase(arrivals, 10));
  EXPECT_NEAR(static_cast<double>(plan.size()), 500, 112);  // five standard deviations of Poisson
  for (const PlannedRequest& request : plan) EXPECT_LT(request.offset_us % 2000000, 1000000);
}

TEST(ScheduleTest, AMultipleOfTheCapacityNeedsOne) {
  const Scenario scenario = OnePhase({.rate = {2, true}}, 10);
  EXPECT_EQ(OfferedRate(scenario.phases[0], 50), 100);
  EXPECT_NEAR(static_cast<double>(Planned(scenario, 50).size()), 1000, 158);  // 5 sqrt(1000)
  EXPECT_THAT(PlanPhase(scenario, 0, 0),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("capacity")));
}

TEST(ScheduleTest, RefusesPlansThatFitNoMemory) {
  EXPECT_THAT(PlanPhase(OnePhase({.rate = {1e6}}, 86400), 0, 0),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("'p'")));
}

TEST(ScheduleTest, KindsComeByWeight) {
  Scenario scenario = OnePhase({}, 1);
  scenario.kinds = {{.name = "a", .weight = 3}, {.name = "b", .weight = 1}};
  RequestSampler sampler(scenario, 1);
  int first = 0;
  for (int i = 0; i < 10000; ++i) first += sampler.Next(0).kind == 0;
  EXPECT_NEAR(first, 7500, 217);  // binomial, 5 sqrt(10000 * 0.75 * 0.25)
}

TEST(ScheduleTest, LengthsFollowTheirDistribution) {
  Scenario scenario = OnePhase({}, 1);
  scenario.kinds[0].prompt_words = {Distribution::Shape::kUniform, 5, 8};
  scenario.kinds[0].answer_tokens = {Distribution::Shape::kLognormal, 20, 1.0, 60};
  RequestSampler sampler(scenario, 1);
  int counts[9] = {}, below = 0, at_most = 0;
  for (int i = 0; i < 10000; ++i) {
    const PlannedRequest request = sampler.Next(0);
    ASSERT_TRUE(request.prompt_words >= 5 && request.prompt_words <= 8) << request.prompt_words;
    ++counts[request.prompt_words];
    ASSERT_TRUE(request.answer_tokens >= 1 && request.answer_tokens <= 60);
    below += request.answer_tokens < 20;
    at_most += request.answer_tokens == 60;
  }
  for (int words = 5; words <= 8; ++words) EXPECT_NEAR(counts[words], 2500, 217);
  // P(below 19.5) = Phi(ln(19.5 / 20)) = 0.490; P(at least 59.5) = 1 - Phi(ln(59.5 / 20)) = 0.138.
  // 5 sigma.
  EXPECT_NEAR(below, 4900, 250);
  EXPECT_NEAR(at_most, 1380, 173);
}

TEST(ScheduleTest, TextsHaveTheirWords) {
  const std::string text = TextOf({.prompt_words = 5, .seed = 3});
  EXPECT_EQ(std::count(text.begin(), text.end(), ' '), 4);
}

TEST(ScheduleTest, ScalingMultipliesRatesButNotMultiplesOfTheCapacity) {
  Scenario scenario = OnePhase({.rate = {10}}, 10);
  scenario.phases.push_back(
      {.name = "x", .duration = absl::Seconds(1), .arrivals = {.rate = {2, true}}});
  scenario.phases.push_back({.name = "c",
                             .duration = absl::Seconds(1),
                             .arrivals = {.process = Arrivals::Process::kClosed, .clients = 4}});
  Arrivals replay{.process = Arrivals::Process::kReplay};
  replay.replay = {{1000, -1}};
  scenario.phases.push_back({.name = "r", .duration = absl::Seconds(2), .arrivals = replay});
  Scale(scenario, 2);
  EXPECT_EQ(scenario.phases[0].arrivals.rate.value, 20);
  EXPECT_EQ(scenario.phases[1].arrivals.rate.value, 2);
  EXPECT_EQ(scenario.phases[2].arrivals.clients, 8);
  EXPECT_EQ(scenario.phases[3].arrivals.replay[0].offset_us, 500);
  EXPECT_EQ(scenario.phases[3].duration, absl::Seconds(1));
}

}  // namespace
}  // namespace assay::load
