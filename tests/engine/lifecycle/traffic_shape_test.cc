#include "engine/lifecycle/traffic_shape.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "engine/lifecycle/input_drift.h"

namespace assay {
namespace {

// From numpy: q = (before + .5) / (before + .5).sum(), p likewise, ((p - q) * log(p / q)).sum().
TEST(StabilityIndexTest, IsThePopulationStabilityIndexOfCounts) {
  const std::vector<double> before = {10, 20, 30, 40}, now = {40, 30, 20, 10};
  EXPECT_NEAR(StabilityIndex(before, now), 0.8719768526109903, 1e-12);
  EXPECT_NEAR(StabilityIndex(now, before), 0.8719768526109903, 1e-12);
  EXPECT_EQ(StabilityIndex(before, before), 0);
  const std::vector<double> one = {100, 0}, other = {0, 50};  // empty buckets are no infinity
  EXPECT_NEAR(StabilityIndex(one, other), 9.772084843985478, 1e-12);
}

class TrafficShapeTest : public testing::Test {
 protected:
  // Requests of tokens that fall off as 1 / rank from `first_token` on, of a length around
  // `length`.
  void Add(int requests, int first_token, int length) {
    std::vector<double> weights(2000);
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = 1.0 / static_cast<double>(i + 1);
    std::discrete_distribution<int> token(weights.begin(), weights.end());
    std::uniform_int_distribution<int> spread(length / 2, length * 3 / 2);
    for (int i = 0; i < requests; ++i) {
      std::vector<int32_t> tokens(static_cast<size_t>(spread(random_)));
      for (int32_t& id : tokens) id = first_token + token(random_);
      shape_.Add(tokens);
    }
  }
  static constexpr int kFirst = TrafficShape::kLearn + TrafficShape::kBaseline;
  std::mt19937 random_{5};
  TrafficShape shape_;
};

TEST_F(TrafficShapeTest, SaysNothingBeforeItHasSeenEnough) {
  Add(kFirst + TrafficShape::kWindow - 1, 0, 30);
  EXPECT_FALSE(shape_.length_psi().has_value());
  EXPECT_FALSE(shape_.token_psi().has_value());
  Add(1, 0, 30);
  EXPECT_TRUE(shape_.length_psi().has_value());
  EXPECT_TRUE(shape_.token_psi().has_value());
}

// Tokens that the first requests did not have come in the next ones as well: no reason to call
// them another population.
TEST_F(TrafficShapeTest, ChanceExplainsTheSamePopulation) {
  Add(kFirst, 0, 30);
  for (int window = 0; window < 20; ++window) {
    Add(TrafficShape::kWindow, 0, 30);
    EXPECT_EQ(*shape_.length_psi(), 0);
    EXPECT_EQ(*shape_.token_psi(), 0);
  }
}

// 256 requests of length 4 and 8, equally many, then 128 of which 3 / 4 have 4. By hand: index of
// (128, 128) and (96, 32) with half a request in each of 24 buckets, less
// sum(V_aa / p_a) = (1/4 / 255 + 3/16 / 127) (1 / p_0 + 1 / p_1).
TEST_F(TrafficShapeTest, TellsTheIndexLessWhatChanceGivesOnAverage) {
  const auto add = [this](int count, int every) {
    for (int i = 0; i < count; ++i) shape_.Add(std::vector<int32_t>(i % every == 0 ? 8 : 4, 1));
  };
  add(kFirst, 2);
  add(TrafficShape::kWindow, 4);
  std::vector<double> before(TrafficShape::kLengthBuckets), now(TrafficShape::kLengthBuckets);
  before[3] = before[4] = 128;
  now[3] = 96;
  now[4] = 32;
  const auto share = [&](size_t a) { return ((before[a] + .5) / 268 + (now[a] + .5) / 140) / 2; };
  const double chance = (0.25 / 255 + 0.1875 / 127) * (1 / share(3) + 1 / share(4));
  EXPECT_NEAR(*shape_.length_psi(), StabilityIndex(before, now) - chance, 1e-12);
}

TEST_F(TrafficShapeTest, OtherTokensAreSeenAndForgottenWhenTheyStop) {
  Add(kFirst + TrafficShape::kWindow, 0, 30);
  Add(TrafficShape::kWindow, 5000, 30);
  EXPECT_GT(*shape_.token_psi(), 0.25);
  EXPECT_LT(*shape_.length_psi(), 0.1);
  Add(3 * TrafficShape::kWindow, 0, 30);
  EXPECT_LT(*shape_.token_psi(), 0.05);
}

TEST_F(TrafficShapeTest, OtherLengthsAreSeen) {
  Add(kFirst + TrafficShape::kWindow, 0, 30);
  Add(TrafficShape::kWindow, 0, 300);
  EXPECT_GT(*shape_.length_psi(), 0.25);
  EXPECT_LT(*shape_.token_psi(), 0.05);
}

TEST_F(TrafficShapeTest, EmptyRequestsAreALengthOfTheirOwn) {
  for (int i = 0; i < kFirst + TrafficShape::kWindow; ++i) shape_.Add({});
  EXPECT_LT(*shape_.length_psi(), 0.05);  // half counts, of 256 and of 128
  EXPECT_EQ(*shape_.token_psi(), 0);
}

// Traffic that stays what it is, in ways that make samples of it differ: spread lengths, and
// requests whose tokens resemble one another.
struct Traffic {
  enum class Kind { kPowersOfTwo, kLogNormal, kTopics };
  Kind kind = Kind::kTopics;
  std::mt19937 random;

  // `longer` times as long, token ids from `first` on.
  std::vector<int32_t> Next(int longer = 1, int32_t first = 0) {
    const int length = kind == Kind::kPowersOfTwo
                           ? 1 << random() % 10
                           : std::min(2000, static_cast<int>(std::exp(spread(random))) + 1);
    std::vector<int32_t> tokens(static_cast<size_t>(length * longer));
    const auto topic = static_cast<int32_t>(random() % 40);
    for (int32_t& token : tokens) {
      const double u = static_cast<double>(random()) / 4294967296.0;
      token = first + (kind == Kind::kTopics ? 10 * topic + static_cast<int32_t>(5 * u)
                                             : static_cast<int32_t>(300 * u * u * u));
    }
    return tokens;
  }
  std::normal_distribution<double> spread{3.5, 1};
};
constexpr Traffic::Kind kKinds[] = {Traffic::Kind::kPowersOfTwo, Traffic::Kind::kLogNormal,
                                    Traffic::Kind::kTopics};

constexpr int kRuns = 40;

bool Shifted(const TrafficShape& shape) {
  return shape.length_psi().value_or(0) > InputDrift::kPsi ||
         shape.token_psi().value_or(0) > InputDrift::kPsi;
}

// The bare index of the last 128 to 256 requests, looked at after each, went above in 24, 7 and 40
// of these runs. Meant is 0.5 %: of 40 more than one has a chance of 2 %, for a seed once and for
// all.
TEST(TrafficShapeRuns, TenThousandRequestsOfOneKindAreNotAShift) {
  for (const Traffic::Kind kind : kKinds) {
    int shifted = 0;
    for (unsigned run = 0; run < kRuns; ++run) {
      Traffic traffic{.kind = kind, .random = std::mt19937(run)};
      TrafficShape shape;
      bool ever = false;
      for (int i = 0; i < 10000; ++i) {
        shape.Add(traffic.Next());
        ever |= Shifted(shape);
      }
      shifted += ever ? 1 : 0;
    }
    EXPECT_LE(shifted, 1) << static_cast<int>(kind);
  }
}

// Wherever in a window it begins.
TEST(TrafficShapeRuns, AnotherDomainIsSeenWithin300Requests) {
  for (const Traffic::Kind kind : kKinds) {
    for (unsigned run = 0; run < kRuns; ++run) {
      Traffic traffic{.kind = kind, .random = std::mt19937(run)};
      TrafficShape tokens;
      for (unsigned i = 0; i < 640 + 7 * run; ++i) tokens.Add(traffic.Next());
      TrafficShape lengths = tokens;
      bool other_tokens = false, other_lengths = false;
      for (int i = 0; i < 300; ++i) {
        tokens.Add(traffic.Next(1, 1000000));
        lengths.Add(traffic.Next(8));
        other_tokens |= *tokens.token_psi() > InputDrift::kPsi;
        other_lengths |= *lengths.length_psi() > InputDrift::kPsi;
      }
      EXPECT_TRUE(other_tokens) << static_cast<int>(kind) << " " << run;
      EXPECT_TRUE(other_lengths) << static_cast<int>(kind) << " " << run;
    }
  }
}

}  // namespace
}  // namespace assay
