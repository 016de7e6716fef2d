#include "engine/lifecycle/traffic_sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <latch>
#include <random>
#include <thread>
#include <vector>

#include "tests/support/fake_clock.h"

namespace assay {
namespace {

class TrafficSamplerTest : public testing::Test {
 protected:
  std::unique_ptr<TrafficSampler> Make(const SamplerOptions& options, uint64_t key = 1) {
    return std::make_unique<TrafficSampler>(
        options, key, clock_, [this] { ++arrived_; },
        [this](TrafficSampler::Skip why) { skipped_.push_back(why); });
  }
  static ServedRequest Request(size_t tokens) {
    return {.tokens = std::vector<int32_t>(tokens, 7),
            .num_prompt = 1,
            .logprobs = {},
            .token_types = {}};
  }
  static std::vector<bool> Choices(TrafficSampler& sampler, int count) {
    std::vector<bool> choices;
    for (int i = 0; i < count; ++i) choices.push_back(sampler.Sample());
    return choices;
  }

  FakeClock clock_;
  int arrived_ = 0;
  std::vector<TrafficSampler::Skip> skipped_;
};

TEST_F(TrafficSamplerTest, TakesTheShareThatWasAskedFor) {
  const auto sampler = Make({.rate = 0.05, .floor_per_hour = 0});
  const std::vector<bool> choices = Choices(*sampler, 20000);
  // Binomial with mean 1000 and deviation 31: four of them.
  EXPECT_NEAR(static_cast<double>(std::count(choices.begin(), choices.end(), true)), 1000, 124);
  EXPECT_EQ(std::count(choices.begin(), choices.begin() + 2000, true) > 50, true);  // spread out
}

TEST_F(TrafficSamplerTest, TheChoiceIsTheKeysAlone) {
  const SamplerOptions options{.rate = 0.3, .floor_per_hour = 0};
  EXPECT_EQ(Choices(*Make(options, 5), 500), Choices(*Make(options, 5), 500));
  EXPECT_NE(Choices(*Make(options, 5), 500), Choices(*Make(options, 6), 500));
}

TEST_F(TrafficSamplerTest, AllOrNone) {
  const auto all = Choices(*Make({.rate = 1}), 100), none = Choices(*Make({.rate = 0}), 100);
  EXPECT_EQ(std::count(all.begin(), all.end(), true), 100);
  EXPECT_EQ(std::count(none.begin(), none.end(), true), 0);
}

TEST_F(TrafficSamplerTest, TheFloorTakesOneWhenAQuietModelWouldGiveNone) {
  const auto sampler = Make({.rate = 1e-12, .floor_per_hour = 60});
  EXPECT_FALSE(sampler->Sample());  // a minute has not passed
  clock_.Advance(absl::Seconds(61));
  EXPECT_TRUE(sampler->Sample());
  EXPECT_FALSE(sampler->Sample());
  clock_.Advance(absl::Seconds(30));
  EXPECT_FALSE(sampler->Sample());
  clock_.Advance(absl::Seconds(31));
  EXPECT_TRUE(sampler->Sample());
}

TEST_F(TrafficSamplerTest, AClockThatIsSetDoesNotStopTheFloor) {
  const auto sampler = Make({.rate = 1e-12, .floor_per_hour = 60});
  for (const absl::Duration by : {-absl::Hours(24), absl::Hours(48), -absl::Hours(48)}) {
    clock_.Advance(by);
    for (int i = 0; i < 2; ++i) (void)sampler->Sample();  // ahead, one is due, and one made up for
    EXPECT_FALSE(sampler->Sample());
    clock_.Advance(absl::Seconds(61));
    EXPECT_TRUE(sampler->Sample()) << by;
    EXPECT_FALSE(sampler->Sample());
  }
}

// A floor of one per second, for an hour.
class FloorTest : public TrafficSamplerTest {
 protected:
  static constexpr double kHour = 3600;
  static constexpr SamplerOptions kFloorOnly{.rate = 1e-12, .floor_per_hour = 3600};

  // How many are taken of requests that come `gap()` seconds after one another.
  template <typename Gap>
  int64_t Taken(const SamplerOptions& options, const Gap& gap, double seconds = kHour) {
    const auto sampler = Make(options);
    int64_t taken = 0;
    double now = 0;
    for (double next = gap(); (now += next) <= seconds; next = gap()) {
      clock_.Advance(absl::Seconds(next));
      taken += sampler->Sample() ? 1 : 0;
    }
    return taken;
  }
  std::mt19937 random_{3};
};

// Every second has a request: of 3600 only the last can still be open. (A floor that counts from
// the last one taken takes every other one, 1894.)
TEST_F(FloorTest, RequestsJustMoreOftenThanTheFloorReachIt) {
  for (const double gap : {0.95, 0.999, 0.51, 0.1, 0.03}) {
    const int64_t taken = Taken(kFloorOnly, [gap] { return gap; });
    EXPECT_GE(taken, 3599) << gap;
    EXPECT_LE(taken, 3600) << gap;
  }
}

TEST_F(FloorTest, RequestsJustLessOftenThanTheFloorAreAllTaken) {
  for (const double gap : {1.001, 1.05, 1.9, 7.0}) {
    EXPECT_EQ(Taken(kFloorOnly, [gap] { return gap; }), static_cast<int64_t>(kHour / gap)) << gap;
  }
}

TEST_F(FloorTest, OneRequestAnywhereInEachSecondIsEnough) {
  std::uniform_real_distribution<double> place(0.001, 0.999);
  double second = 0, before = 0;
  const int64_t taken = Taken(kFloorOnly, [&] {
    const double at = second++ + place(random_), gap = at - before;
    before = at;
    return gap;
  });
  EXPECT_GE(taken, 3598);  // the first falls due after a second
}

// After one is due the wait is exponential of mean 0.1: longer than a second, which is more than is
// made up for, with a chance of e^-10, 0.16 times per hour.
TEST_F(FloorTest, PoissonTrafficReachesIt) {
  std::exponential_distribution<double> gap(10);
  for (int hour = 0; hour < 5; ++hour) {
    const int64_t taken = Taken(kFloorOnly, [&] { return gap(random_); });
    EXPECT_GE(taken, 3595);
    EXPECT_LE(taken, 3600);
  }
}

TEST_F(FloorTest, AfterADayWithoutRequestsOneIsMadeUpFor) {
  const auto sampler = Make(kFloorOnly);
  clock_.Advance(absl::Hours(24));
  const std::vector<bool> choices = Choices(*sampler, 100);
  EXPECT_EQ(std::count(choices.begin(), choices.end(), true), 2);
}

// Chosen 0.5 per second, of mean 1 - e^-0.5 = 0.39 s earlier than the floor would ask: 1.27 per
// second at most, and not the sum of 1.5.
TEST_F(FloorTest, WhatIsChosenCounts) {
  const int64_t taken = Taken({.rate = 0.05, .floor_per_hour = 3600}, [] { return 0.1; });
  EXPECT_GE(taken, 3599);
  EXPECT_LE(taken, 4700);
}

// 18,000 chosen with a deviation of 95; of runs of ten that are not, 18 (2^-11 of 36,000).
TEST_F(FloorTest, AboveItTheRateDecides) {
  EXPECT_NEAR(static_cast<double>(Taken({.rate = 0.5, .floor_per_hour = 3600}, [] { return 0.1; })),
              18018, 400);
}

TEST_F(FloorTest, NextToNothingIsNextToNever) {
  for (const double floor : {1e-6, 1e-10, 1e-300, 5e-324}) {
    const int64_t taken = Taken(
        {.rate = 1e-12, .floor_per_hour = floor}, [] { return 3600.0; }, 1000 * kHour);
    EXPECT_EQ(taken, 0) << floor;
  }
}

TEST_F(FloorTest, OfManyThatArriveTogetherOneIsTaken) {
  const auto sampler = Make(kFloorOnly);
  clock_.Advance(absl::Seconds(1));
  std::atomic<int> taken = 0;
  std::latch together(4);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      together.arrive_and_wait();
      for (int i = 0; i < 1000; ++i) taken += sampler->Sample() ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken, 1);
}

TEST_F(TrafficSamplerTest, TheRingIsBoundedAndKeepsTheOrder) {
  const auto sampler = Make({.ring = 2, .max_tokens = 10});
  sampler->Served(Request(1));
  sampler->Served(Request(2));
  sampler->Served(Request(3));
  sampler->Served(Request(11));
  EXPECT_EQ(arrived_, 2);
  EXPECT_EQ(skipped_,
            (std::vector{TrafficSampler::Skip::kRingFull, TrafficSampler::Skip::kTooLong}));
  EXPECT_EQ(sampler->Take()->tokens.size(), 1u);
  EXPECT_EQ(sampler->Take()->tokens.size(), 2u);
  EXPECT_FALSE(sampler->Take().has_value());
}

TEST_F(TrafficSamplerTest, ClosedItHoldsNothingAndTakesNothing) {
  const auto sampler = Make({});
  sampler->Served(Request(4));
  sampler->Close();
  EXPECT_EQ(sampler->waiting(), 0u);
  sampler->Served(Request(4));
  EXPECT_EQ(sampler->waiting(), 0u);
  EXPECT_EQ(arrived_, 1);
}

TEST_F(TrafficSamplerTest, WipingOverwritesTheTokens) {
  ServedRequest request = Request(100);
  request.tokens.reserve(100);
  const int32_t* memory = request.tokens.data();
  Wipe(request);
  EXPECT_TRUE(request.tokens.empty());
  // The vector keeps its memory: what was there is gone.
  EXPECT_EQ(std::count(memory, memory + 100, 0), 100);
}

}  // namespace
}  // namespace assay
