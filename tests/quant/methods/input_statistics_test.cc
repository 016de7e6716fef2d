#include "quant/methods/input_statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "quant/methods/sensitivity.h"
#include "tests/quant/methods/methods_golden.h"

namespace assay {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr InputStatisticsOptions kEverything = {
    .hessian = true, .histogram = true, .sample_rows = 7, .seed = 3};

InputStatistics Collected(const std::vector<Tensor>& batches, InputStatisticsOptions options,
                          ThreadPool* pool = nullptr) {
  InputStatistics statistics = InputStatistics::Create(batches[0].shape()[1], options).value();
  for (const Tensor& batch : batches) EXPECT_OK(statistics.Update(batch.view(), pool));
  return statistics;
}
std::vector<Tensor> Batches() {
  std::vector<Tensor> batches;
  batches.push_back(RandomTensor({30, 9}, 1));
  batches.push_back(RandomTensor({1, 9}, 2, 3));
  batches.push_back(RandomTensor({0, 9}, 3));
  batches.push_back(RandomTensor({300, 9}, 4, 2));
  return batches;
}

TEST(InputStatisticsTest, EqualsTheSumsOverAllRows) {
  const std::vector<Tensor> batches = Batches();
  const InputStatistics s = Collected(batches, kEverything);
  EXPECT_EQ(s.tokens(), 331);
  const std::vector<double> hessian = s.Hessian<double>();
  for (int64_t i = 0; i < 9; ++i) {
    double absmax = 0, absolute = 0, squares = 0;
    for (int64_t j = 0; j < 9; ++j) {
      double sum = 0;
      for (const Tensor& batch : batches) {
        for (int64_t t = 0; t < batch.shape()[0]; ++t) {
          const float a = batch.data<float>()[t * 9 + i], b = batch.data<float>()[t * 9 + j];
          sum += static_cast<double>(a) * b;
          if (j > 0) continue;
          absmax = std::max<double>(absmax, std::fabs(a));
          absolute += std::fabs(a);
          squares += static_cast<double>(a) * a;
        }
      }
      // 331 products of magnitude below 50, summed in f32: 331 * 50 * eps.
      EXPECT_NEAR(hessian[i * 9 + j], 2 * sum / 331, 2e-3) << i << "," << j;
    }
    EXPECT_FLOAT_EQ(s.absmax()[i], static_cast<float>(absmax));
    EXPECT_NEAR(s.sum_absolute()[i], absolute, 1e-9 * absolute);
    EXPECT_NEAR(s.sum_squares()[i], squares, 1e-9 * squares);
  }
  EXPECT_EQ(s.histogram().total(), 331 * 9);
  EXPECT_EQ(s.absolute_histogram().total(), 331 * 9);
}

TEST(InputStatisticsTest, IsTheSameForAnyNumberOfThreads) {
  std::vector<Tensor> batches;
  batches.push_back(RandomTensor({300, 200}, 5));
  ThreadPool pool({.num_threads = 3});
  const InputStatistics alone = Collected(batches, kEverything);
  const InputStatistics together = Collected(batches, kEverything, &pool);
  EXPECT_EQ(alone.Hessian<float>(), together.Hessian<float>());
  EXPECT_EQ(alone.sum_squares(), together.sum_squares());
  EXPECT_EQ(alone.kurtosis(), together.kurtosis());
}

TEST(InputStatisticsTest, MergingEqualsUpdating) {
  std::vector<Tensor> batches = Batches();
  const InputStatistics all = Collected(batches, kEverything);
  std::vector<Tensor> last;
  last.push_back(std::move(batches.back()));
  batches.pop_back();
  InputStatistics merged = Collected(batches, kEverything);
  ASSERT_OK(merged.Merge(Collected(last, kEverything)));
  EXPECT_EQ(merged.tokens(), all.tokens());
  EXPECT_EQ(merged.absmax(), all.absmax());
  EXPECT_EQ(merged.min(), all.min());
  EXPECT_EQ(merged.shifted_std(), all.shifted_std());
  EXPECT_DOUBLE_EQ(merged.moving_max(), all.moving_max());
  EXPECT_NEAR(merged.kurtosis(), all.kurtosis(), 1e-9);
  EXPECT_EQ(merged.histogram().total(), all.histogram().total());
  EXPECT_EQ(merged.num_samples(), 7);
  const std::vector<double> a = merged.Hessian<double>(), b = all.Hessian<double>();
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-4);
}

TEST(InputStatisticsTest, ForgettingABatchShows) {
  std::vector<Tensor> batches = Batches();
  const InputStatistics all = Collected(batches, kEverything);
  batches.pop_back();
  EXPECT_GT(std::fabs(Collected(batches, kEverything).kurtosis() - all.kurtosis()), 1e-3);
}

TEST(InputStatisticsTest, SampleRowsAreRowsOfTheInputDrawnFromAllOfIt) {
  std::vector<float> values(2000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  std::vector<Tensor> batches;
  batches.push_back(TensorOf({2000, 1}, values));
  const InputStatistics s = Collected(batches, {.sample_rows = 100, .seed = 9});
  ASSERT_EQ(s.num_samples(), 100);
  double mean = 0;
  for (const float v : s.samples()) {
    EXPECT_EQ(v, std::floor(v));
    mean += v / 100;
  }
  // 100 draws of uniform [0, 2000): the mean's standard deviation is 58.
  EXPECT_NEAR(mean, 1000, 5 * 58);
  EXPECT_THAT(Collected(batches, {}).samples(), IsEmpty());
}

TEST(InputStatisticsTest, RefusesWhatItCannotUse) {
  EXPECT_THAT(InputStatistics::Create(0, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("k=0")));
  EXPECT_THAT(InputStatistics::Create(3, {.moving_average = 0}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("moving_average=0")));
  InputStatistics s = InputStatistics::Create(3, {}).value();
  const Tensor other = RandomTensor({4, 5}, 1);
  EXPECT_THAT(s.Update(other.view(), nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[4,5]")));
  Tensor bad = RandomTensor({4, 3}, 1);
  bad.data<float>()[7] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(s.Update(bad.view(), nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("row=2 column=1")));
  EXPECT_EQ(s.tokens(), 0);
  InputStatistics crossed = InputStatistics::Create(3, {.cross = true}).value();
  const Tensor x = RandomTensor({4, 3}, 1);
  EXPECT_THAT(crossed.Update(x.view(), nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("need x_full")));
  EXPECT_THAT(s.Update(x.view(), x.view(), nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("take no x_full")));
  EXPECT_THAT(s.Merge(crossed),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("cross=0 and 1")));
}

TEST(HistogramTest, GrowsAtConstantWidthAndThenMergesNeighbours) {
  Histogram histogram;
  const std::vector<float> first = {0, 1};
  histogram.Add({first, 0, 1});
  EXPECT_EQ(histogram.width(), 1.0 / 2048);
  const std::vector<float> wider = {-0.5f, 2.25f};
  histogram.Add({wider, -0.5f, 2.25f});
  EXPECT_EQ(histogram.width(), 1.0 / 2048);
  EXPECT_EQ(histogram.low(), -0.5);
  const std::vector<float> huge = {1e6f};
  histogram.Add({huge, 1e6f, 1e6f});
  EXPECT_LE(histogram.counts().size(), static_cast<size_t>(Histogram::kMaxBins));
  EXPECT_EQ(histogram.total(), 5);
  EXPECT_GE(histogram.high(), 1e6);
}

TEST(HistogramTest, StartsFromConstantBatches) {
  Histogram histogram;
  const std::vector<float> zeros(5), values = {-3, 4};
  histogram.Add({zeros, 0, 0});
  histogram.Add({values, -3, 4});
  EXPECT_EQ(histogram.total(), 7);
  EXPECT_NEAR(histogram.Quantile(0.5), 0, 0.02);
}

TEST(SensitivityTest, EqualsTheReferenceDefinitions) {
  const GoldenLayer& golden = Golden();
  InputStatistics s = InputStatistics::Create(golden.k, {.histogram = true}).value();
  const int64_t half = golden.tokens / 2;
  for (const int64_t begin : {int64_t{0}, half}) {
    const float* rows = golden.x.data<float>() + begin * golden.k;
    const Tensor batch = TensorOf({half, golden.k}, {rows, rows + half * golden.k});
    ASSERT_OK(s.Update(batch.view(), nullptr));
  }
  const nlohmann::json& expected = golden.json["sensitivity"];
  EXPECT_NEAR(RangeParm(s), expected["range_parm"], 1e-9);
  EXPECT_NEAR(KurtosisScore(s), expected["kurtosis"], 1e-9);
  // Quartiles are read off bins: a bin of 2048 over the range, twice, of a spread of a 50th.
  ASSERT_OK_AND_ASSIGN(const double quantile, QuantileScore(s));
  EXPECT_NEAR(quantile, expected["quantile"], 0.1 * expected["quantile"].get<double>());
}

TEST(SensitivityTest, KeepsTheHighestScoresAndWhatSharesTheirInput) {
  const std::vector<LayerScore> layers = {{"q", "norm1", 5},   {"o", "attn", 9},
                                          {"k", "norm1", 5},   {"v", "norm1", 5},
                                          {"down", "act", 40}, {"head", "x", 99}};
  const std::vector<std::string> skip = {"head"};
  EXPECT_THAT(LayersToKeep(layers, skip, {2, 10}), ElementsAre("down", "o"));
  EXPECT_THAT(LayersToKeep(layers, skip, {3, 10}), ElementsAre("down", "o", "q", "k", "v"));
  EXPECT_THAT(LayersToKeep(layers, skip, {3, 4}), ElementsAre("down", "o"));
  EXPECT_THAT(LayersToKeep(layers, skip, {0, 4}), IsEmpty());
}

TEST(SensitivityTest, ReadsDisableLevels) {
  EXPECT_THAT(ParseDisableLevel("L10"), IsOkAndHolds(10));
  EXPECT_THAT(ParseDisableLevel("L0"), IsOkAndHolds(0));
  for (const char* bad : {"", "L", "10", "L01", "L-1", "L1x", "l3"}) {
    EXPECT_THAT(ParseDisableLevel(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("L10")))
        << bad;
  }
}

}  // namespace
}  // namespace assay
