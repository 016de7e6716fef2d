#include "engine/lifecycle/traffic_shape.h"

#include <gtest/gtest.h>

#include <random>

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
// them another population. The index of samples of one population is about (buckets - 1)(1 / n +
// 1 / m): lengths in 3 buckets, 256 against 128, 0.02; tokens are thousands.
TEST_F(TrafficShapeTest, TheSamePopulationStaysFarBelowATenth) {
  Add(kFirst, 0, 30);
  for (int window = 0; window < 20; ++window) {
    Add(TrafficShape::kWindow, 0, 30);
    EXPECT_LT(*shape_.length_psi(), 0.1);
    EXPECT_LT(*shape_.token_psi(), 0.05);
  }
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

}  // namespace
}  // namespace assay
