#include "engine/lifecycle/traffic_sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
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
