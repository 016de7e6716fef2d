// Against torch.ao's HistogramObserver and ModelOpt's calibrators (tests/golden/methods).
#include "quant/methods/activation_range.h"

#include <gtest/gtest.h>

#include "tests/quant/methods/methods_golden.h"

namespace assay {
namespace {

using testing::HasSubstr;

const nlohmann::json& Ranges() { return Golden().json["ranges"]; }

Histogram Stored(const char* name, double low) {
  const nlohmann::json& stored = Ranges()[name];
  const std::vector<double> counts = stored["counts"];
  const double width = (stored["high"].get<double>() - low) / static_cast<double>(counts.size());
  return {low, width, counts};
}
Histogram Absolute() { return Stored("absolute", 0); }
Histogram Signed() { return Stored("signed", Ranges()["signed"]["low"]); }

Tensor Values() {
  std::vector<float> values;
  for (const int16_t v : FromBase64<int16_t>(Ranges()["values"]))
    values.push_back(v / 64.0f + 0.25f);
  return TensorOf({static_cast<int64_t>(values.size()) / 100, 100}, values);
}
InputStatistics Collected(bool histogram = true) {
  InputStatistics s = InputStatistics::Create(100, {.histogram = histogram}).value();
  const Tensor values = Values();
  EXPECT_OK(s.Update(values.view(), nullptr));
  return s;
}

TEST(ActivationRangeTest, EqualsTheReferenceToolsOnTheirHistograms) {
  const nlohmann::json& expected = Ranges();
  // The same bin, whose edge is computed in f32 there: 1e-6 of the range.
  EXPECT_NEAR(AbsmaxByEntropy(Absolute()), expected["entropy"], 1e-4);
  EXPECT_NEAR(AbsmaxByMse(Absolute()), expected["mse"], 1e-4);
  EXPECT_NEAR(AbsmaxByPercentile(Absolute(), 99.9), expected["percentile"], 1e-4);
  const ActivationRange range = RangeByHistogram(Signed());
  EXPECT_NEAR(range.min, expected["histogram"][0], 1e-4);
  EXPECT_NEAR(range.max, expected["histogram"][1], 1e-4);
}

TEST(ActivationRangeTest, TheGoldenSeesAShiftedHistogram) {
  std::vector<double> counts = Absolute().counts();
  counts.insert(counts.begin(), 40, counts[1]);
  const Histogram shifted(0, Absolute().width(), counts);
  EXPECT_GT(std::fabs(AbsmaxByMse(shifted) - Ranges()["mse"].get<double>()), 1e-3);
}

TEST(ActivationRangeTest, FindsThemFromTheValuesToo) {
  const InputStatistics s = Collected();
  const nlohmann::json& expected = Ranges();
  // Bins may differ where a value lies on an edge: a few bins.
  const double tolerance = 4 * Absolute().width();
  for (const char* name : {"entropy", "mse"}) {
    ASSERT_OK_AND_ASSIGN(const ActivationRange range, FindActivationRange(s, name));
    EXPECT_NEAR(range.max, expected[name], tolerance) << name;
    EXPECT_EQ(range.min, -range.max);
  }
  ASSERT_OK_AND_ASSIGN(const ActivationRange percentile, FindActivationRange(s, "percentile=99.9"));
  EXPECT_NEAR(percentile.max, expected["percentile"], tolerance);
  ASSERT_OK_AND_ASSIGN(const ActivationRange histogram, FindActivationRange(s, "histogram"));
  EXPECT_NEAR(histogram.max, expected["histogram"][1], 2 * tolerance);
  ASSERT_OK_AND_ASSIGN(const ActivationRange minmax, FindActivationRange(s, "minmax"));
  EXPECT_EQ(minmax.max, s.tensor_max());
}

TEST(ActivationRangeTest, MovesTheAverageByOnePercent) {
  InputStatistics s = InputStatistics::Create(2, {}).value();
  const Tensor first = TensorOf({1, 2}, {-1, 2}), second = TensorOf({1, 2}, {-11, 12});
  ASSERT_OK(s.Update(first.view(), nullptr));
  ASSERT_OK(s.Update(second.view(), nullptr));
  ASSERT_OK_AND_ASSIGN(const ActivationRange range, FindActivationRange(s, "moving_average"));
  EXPECT_NEAR(range.min, -1.1, 1e-12);
  EXPECT_NEAR(range.max, 2.1, 1e-12);
}

TEST(ActivationRangeTest, RefusesWhatItDoesNotKnow) {
  const InputStatistics s = Collected();
  EXPECT_THAT(FindActivationRange(s, "median"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("median; known: minmax")));
  EXPECT_THAT(FindActivationRange(s, "percentile=0"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("percentile=0")));
  EXPECT_THAT(FindActivationRange(Collected(false), "mse"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("mse")));
  EXPECT_THAT(FindActivationRange(InputStatistics::Create(2, {}).value(), "minmax"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("tokens=0")));
}

TEST(ActivationRangeTest, EveryMethodHoldsMostOfTheValues) {
  const InputStatistics s = Collected();
  for (const std::string_view method : AllActivationRanges()) {
    ASSERT_OK_AND_ASSIGN(const ActivationRange range, FindActivationRange(s, method));
    EXPECT_LE(range.max, s.absolute_histogram().high()) << method;
    EXPECT_GE(range.max, s.histogram().Quantile(0.98)) << method;
    EXPECT_LE(range.min, s.histogram().Quantile(0.02)) << method;
  }
}

}  // namespace
}  // namespace assay
