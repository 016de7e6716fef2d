// What statistics of a layer's input say, against the numbers of the tools themselves
// (tests/golden/methods/make_tools.py): msModelSlim's scores and choice of layers, torch.ao's
// observers.
#include <gtest/gtest.h>

#include <set>

#include "quant/methods/activation_range.h"
#include "quant/methods/sensitivity.h"
#include "tests/quant/methods/tools_golden.h"

namespace assay {
namespace {

// --- which layers to keep ---

struct Stack {
  std::vector<std::string> names = {"q", "k", "v", "o", "gate", "up", "down", "head"};
  std::vector<int> inputs = {0, 0, 0, 1, 2, 2, 3, 4};
  std::vector<InputStatistics> statistics;

  Stack() {
    constexpr float kFactors[] = {1, 2, 5, 8, 3};
    const std::vector<float> x = GoldenInput();
    const int64_t k = Tools().k;
    for (int64_t input = 0; input < 5; ++input) {
      std::vector<float> rows(x.begin() + 128 * input * k, x.begin() + 128 * (input + 1) * k);
      for (size_t at = 5; at < rows.size(); at += static_cast<size_t>(k))
        rows[at] *= kFactors[input];
      InputStatistics s = InputStatistics::Create(k, {.histogram = true}).value();
      for (int64_t b = 0; b < 4; ++b) {
        const Tensor batch =
            TensorOf({32, k}, {rows.begin() + 32 * b * k, rows.begin() + 32 * (b + 1) * k});
        EXPECT_OK(s.Update(batch.view(), nullptr));
      }
      statistics.push_back(std::move(s));
    }
  }
  std::set<std::string> Kept(int64_t wanted, const std::vector<std::string>& skip) const {
    std::vector<LayerScore> scores;
    for (size_t i = 0; i < names.size(); ++i)
      scores.push_back({names[i], std::to_string(inputs[i]), RangeParm(statistics[inputs[i]])});
    const std::vector<std::string> kept =
        LayersToKeep(scores, skip, {.wanted = wanted, .most = 100});
    return {kept.begin(), kept.end()};
  }
};

// LayerSelector and Calibrator (act_method 3 and disable_level): the shift of a channel is max +
// min, of the current batch. `analyze`'s newer metric "std" halves the shift and gives other
// numbers; we follow the one that disable_level and the log lines use. f32 there: 1e-5.
TEST(ToolsLayersTest, RangeParmEqualsMsModelSlim) {
  const Stack stack;
  const nlohmann::json& golden = Tools().json["layers"];
  for (size_t i = 0; i < stack.names.size(); ++i) {
    const double ours = RangeParm(stack.statistics[stack.inputs[i]]);
    const double theirs = golden["scores"][stack.names[i]];
    EXPECT_NEAR(ours, theirs, 1e-5 * theirs) << stack.names[i];
    const double halved = golden["analyze_std"][stack.inputs[i]];
    EXPECT_GT(std::fabs(ours - halved), 1e-3 * halved) << stack.names[i];
  }
}

// Quantiles are read from a histogram here: half a bin off at either quartile.
TEST(ToolsLayersTest, OtherScoresEqualMsModelSlimsAnalyze) {
  const Stack stack;
  const nlohmann::json& golden = Tools().json["layers"];
  for (size_t i = 0; i < stack.statistics.size(); ++i) {
    const InputStatistics& s = stack.statistics[i];
    const double kurtosis = golden["analyze_kurtosis"][i], quantile = golden["analyze_quantile"][i];
    EXPECT_NEAR(KurtosisScore(s), kurtosis, 1e-4 * kurtosis);
    const double range = std::max(std::fabs(s.tensor_min()), std::fabs(s.tensor_max()));
    const double spread = 2 * range / 254 / quantile;
    ASSERT_OK_AND_ASSIGN(const double ours, QuantileScore(s));
    // Their quartiles are elements, and inputs are sixteenths.
    EXPECT_NEAR(ours, quantile, quantile * (s.histogram().width() + 1.0 / 16) / spread);
    EXPECT_NEAR(KurtosisScore(s), kurtosis, 1e-4 * kurtosis);
  }
}

// disable_level Ln takes n layers (Calibrator), LayerSelector n groups of equal scores. Ours takes
// n layers and completes the last one's group: layers that share an input go together, as
// LayerSelector says.
TEST(ToolsLayersTest, KeepsTheLayersThatMsModelSlimNames) {
  const Stack stack;
  const nlohmann::json& golden = Tools().json["layers"];
  for (int64_t n = 0; n <= 7; ++n) {
    const std::vector<std::string> names = golden["calibrator"]["L" + std::to_string(n)];
    const std::set<std::string> named(names.begin(), names.end()), kept = stack.Kept(n, {"head"});
    EXPECT_TRUE(std::includes(kept.begin(), kept.end(), named.begin(), named.end())) << n;
  }
  for (const auto& group : golden["groups"]) {
    const std::vector<std::string> named = group;
    const std::set<std::string> expected(named.begin(), named.end());
    EXPECT_EQ(stack.Kept(static_cast<int64_t>(named.size()), {}), expected);
    if (named.size() > 1) {
      EXPECT_NE(stack.Kept(1, {}), expected);
    }
  }
}

// --- torch.ao observers ---

// Ten batches of 64 rows, batch b times (b + 1) / 8 plus 1. The range becomes an 8-bit grid as
// admission makes it: scale = (max - min) / 255, zero point of the lower end.
TEST(ToolsRangeTest, MinMaxAndMovingAverageEqualTorch) {
  const std::vector<float> x = GoldenInput();
  const int64_t k = Tools().k;
  InputStatistics s = InputStatistics::Create(k, {}).value();
  for (int64_t b = 0; b < 10; ++b) {
    std::vector<float> batch(x.begin() + 64 * b * k, x.begin() + 64 * (b + 1) * k);
    for (float& v : batch) v = v * (static_cast<float>(b + 1) / 8) + 1;
    const Tensor rows = TensorOf({64, k}, batch);
    ASSERT_OK(s.Update(rows.view(), nullptr));
  }
  std::vector<ActivationRange> ranges;
  for (const char* method : {"minmax", "moving_average"}) {
    const nlohmann::json& expected = Tools().json["torch_observers"][method];
    ASSERT_OK_AND_ASSIGN(const ActivationRange range, FindActivationRange(s, method));
    const double size = expected["max"].get<double>() - expected["min"].get<double>();
    EXPECT_NEAR(range.min, expected["min"], 1e-6 * size);  // f32 there
    EXPECT_NEAR(range.max, expected["max"], 1e-6 * size);
    const double scale = (range.max - range.min) / 255;
    EXPECT_NEAR(scale, expected["scale"], 2e-6 * scale);
    EXPECT_EQ(std::nearbyint(-range.min / scale), expected["zero"]);
    ranges.push_back(range);
  }
  EXPECT_GT(std::fabs(ranges[0].max - ranges[1].max), 1);
}

}  // namespace
}  // namespace assay
