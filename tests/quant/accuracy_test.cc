#include "quant/accuracy.h"

#include <cmath>
#include <limits>

#include "quant/divergence.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using nlohmann::json;
using testing::DoubleNear;

// Sums of at most 33 terms of order 10 in double: rounding stays below 1e-12; the golden prints 17
// digits.
constexpr double kTolerance = 1e-11;

const json& Golden() {
  static const json* const golden = new json(ReadGoldenJson("accuracy/accuracy.json"));
  return *golden;
}

void ExpectEstimate(const Estimate& estimate, const json& golden) {
  EXPECT_NEAR(estimate.mean, golden["mean"].get<double>(), kTolerance);
  EXPECT_NEAR(estimate.low, golden["low"].get<double>(), kTolerance);
  EXPECT_NEAR(estimate.high, golden["high"].get<double>(), kTolerance);
}

TEST(ScorePositionTest, AgreesWithScipyPositionByPosition) {
  for (const json& document : Golden()["documents"]) {
    for (size_t i = 0; i < document["next"].size(); ++i) {
      const auto reference = document["reference"][i].get<std::vector<float>>();
      const auto candidate = document["candidate"][i].get<std::vector<float>>();
      const PositionScore score =
          ScorePosition(reference, candidate, document["next"][i].get<int32_t>());
      EXPECT_NEAR(score.kl, document["kl"][i].get<double>(), kTolerance);
      EXPECT_EQ(score.same_top1, document["same_top1"][i].get<bool>());
    }
  }
}

TEST(DivergenceMeterTest, SummaryAgreesWithNumpyAndScipy) {
  DivergenceMeter meter;
  for (const json& document : Golden()["documents"]) {
    meter.BeginDocument();
    for (size_t i = 0; i < document["next"].size(); ++i) {
      meter.Add(ScorePosition(document["reference"][i].get<std::vector<float>>(),
                              document["candidate"][i].get<std::vector<float>>(),
                              document["next"][i].get<int32_t>()));
    }
  }
  const DivergenceMeter::Summary summary = meter.Finish();
  EXPECT_EQ(summary.tokens, 27);
  EXPECT_EQ(summary.documents, 4);
  ExpectEstimate(summary.mean_kl, Golden()["mean_kl"]);
  ExpectEstimate(summary.top1, Golden()["top1"]);
  ExpectEstimate(summary.kl_p999, Golden()["kl_p999"]);
  EXPECT_NEAR(summary.kl_max, Golden()["kl_max"].get<double>(), kTolerance);
  const double perplexity = Golden()["perplexity"].get<double>();
  EXPECT_NEAR(summary.perplexity, perplexity, perplexity * kTolerance);
  const double reference = Golden()["perplexity_reference"].get<double>();
  EXPECT_NEAR(summary.perplexity_reference, reference, reference * kTolerance);
  EXPECT_NEAR(summary.perplexity_ratio, Golden()["perplexity_ratio"].get<double>(), kTolerance);
}

TEST(DivergenceMeterTest, CountsPositionsThatAreNotFiniteAndLeavesThemOut) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> good = {1, 2, 3}, bad = {1, nan, 3};
  const std::vector<float> infinite = {1, std::numeric_limits<float>::infinity(), 3};
  DivergenceMeter meter;
  meter.Add(ScorePosition(good, bad, 0));
  meter.Add(ScorePosition(infinite, good, 0));
  meter.Add(ScorePosition(good, good, 0));
  const DivergenceMeter::Summary summary = meter.Finish();
  EXPECT_EQ(summary.not_finite, 2);
  EXPECT_EQ(summary.tokens, 1);
  EXPECT_EQ(summary.kl_max, 0);
}

TEST(ScorePositionTest, SurvivesLogitsThatOverflowTheExponential) {
  // softmax of {1000, 0} is {1, 0}; of {0, 1000} the reverse: KL = 1000 nats.
  const std::vector<float> reference = {1000, 0}, candidate = {0, 1000};
  const PositionScore score = ScorePosition(reference, candidate, 0);
  EXPECT_NEAR(score.kl, 1000, 1e-9);
  EXPECT_NEAR(score.nll, 1000, 1e-9);
  EXPECT_FALSE(score.same_top1);
}

TEST(ScorePositionTest, IsNotSymmetric) {  // a swap of reference and candidate must not pass
  const json& document = Golden()["documents"][0];
  const auto reference = document["reference"][0].get<std::vector<float>>();
  const auto candidate = document["candidate"][0].get<std::vector<float>>();
  EXPECT_GT(std::abs(ScorePosition(reference, candidate, 0).kl -
                     ScorePosition(candidate, reference, 0).kl),
            1e-4);
}

TEST(StudentTest, QuantilesAgreeWithScipy) {
  // Above 30 degrees of freedom the expansion leaves out terms of order n^-4: 1e-5 at n = 31.
  for (const auto& [degrees, quantile] : Golden()["t975"].items()) {
    EXPECT_NEAR(StudentT975(std::stoi(degrees)), quantile.get<double>(), 1e-5) << degrees;
  }
  EXPECT_TRUE(std::isinf(StudentT975(0)));
}

TEST(EstimateTest, OneDocumentHasNoInterval) {
  const Estimate estimate = EstimateMean(std::vector<double>{0.25});
  EXPECT_EQ(estimate.low, 0.25);
  EXPECT_EQ(estimate.high, 0.25);
}

TEST(QuantileTest, InterpolatesLikeNumpy) {
  EXPECT_EQ(Quantile({}, 0.5), 0);
  EXPECT_EQ(Quantile({7}, 0.999), 7);
  EXPECT_THAT(Quantile({4, 1, 3, 2}, 0.5), DoubleNear(2.5, 1e-15));
  EXPECT_THAT(Quantile({4, 1, 3, 2}, 1), DoubleNear(4, 1e-15));
}

TEST(CosineTest, AgreesWithNumpyAndHandlesZeroVectors) {
  const auto a = Golden()["a"].get<std::vector<float>>();
  const auto b = Golden()["b"].get<std::vector<float>>();
  EXPECT_NEAR(Cosine(a, b), Golden()["cosine"].get<double>(), kTolerance);
  EXPECT_EQ(Cosine(std::vector<float>{0, 0}, std::vector<float>{0, 0}), 1);
  EXPECT_EQ(Cosine(std::vector<float>{0, 0}, std::vector<float>{1, 0}), 0);
}

TEST(SignalNoiseTest, SqnrAgreesWithNumpyAndIsBounded) {
  const auto a = Golden()["a"].get<std::vector<float>>();
  const auto noisy = Golden()["noisy"].get<std::vector<float>>();
  SignalNoise split;  // block by block as in a stream
  split.Add(std::span(a).first(10), std::span(noisy).first(10));
  split.Add(std::span(a).subspan(10), std::span(noisy).subspan(10));
  EXPECT_NEAR(split.sqnr_db(), Golden()["sqnr_db"].get<double>(), 1e-9);
  SignalNoise equal;
  equal.Add(a, a);
  EXPECT_EQ(equal.sqnr_db(), 200);
  SignalNoise broken;
  broken.Add(a, std::vector<float>(a.size(), std::numeric_limits<float>::quiet_NaN()));
  EXPECT_EQ(broken.sqnr_db(), -200);
}

}  // namespace
}  // namespace assay
