#include "engine/lifecycle/analysis.h"

#include <nlohmann/json.hpp>

#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::Gt;
using testing::HasSubstr;
using testing::SizeIs;

ModelAnalysis Analyzed(const PlanCandidate& candidate) {
  ThreadPool pool({.num_threads = 2});
  return AnalyzeModel({.path = Stories260k(), .candidate = candidate}, pool).value();
}

TEST(AnalysisTest, EveryLayerHasItsFigures) {
  const ModelAnalysis analysis = Analyzed({"int4_group:g32"});
  ASSERT_THAT(analysis.layers, SizeIs(21));  // 5 x 4 and the tied head
  for (const LayerAnalysis& layer : analysis.layers) {
    EXPECT_GT(layer.loss, 0) << layer.name;
    EXPECT_GT(layer.output_sqnr_db, 5) << layer.name;
    EXPECT_LT(layer.output_sqnr_db, 40) << layer.name;
    EXPECT_GT(layer.range_parm, 0.5) << layer.name;  // the largest value is no less than the spread
    EXPECT_GT(layer.kurtosis, -2) << layer.name;     // of any distribution
  }
  EXPECT_EQ(analysis.task, "mean KL (nats)");
}

TEST(AnalysisTest, FewerBitsLoseMoreInEveryLayer) {
  const ModelAnalysis four = Analyzed({"int4_group:g32"}), eight = Analyzed({"int8_channel"});
  for (size_t i = 0; i < four.layers.size(); ++i) {
    EXPECT_GT(four.layers[i].loss, eight.layers[i].loss) << four.layers[i].name;
    EXPECT_EQ(four.layers[i].range_parm, eight.layers[i].range_parm);  // of the input alone
  }
}

TEST(AnalysisTest, RankedByAnyMetricWorstFirst) {
  ModelAnalysis analysis;
  analysis.layers = {{.name = "a", .loss = 1, .output_sqnr_db = 10, .kurtosis = 5},
                     {.name = "b", .loss = 2, .output_sqnr_db = 30, .kurtosis = 7},
                     {.name = "c", .loss = 0, .output_sqnr_db = 20, .kurtosis = 9}};
  const auto first = [&](const char* metric) {
    return Ranked(analysis, FindSensitivityMetric(metric).value()).front()->name;
  };
  EXPECT_EQ(first("loss"), "b");
  EXPECT_EQ(first("sqnr"), "a");
  EXPECT_EQ(first("kurtosis"), "c");
  EXPECT_THAT(FindSensitivityMetric("magic"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("range_parm")));
}

TEST(AnalysisTest, TheTextEndsWithAKeepListOfTheWorst) {
  const ModelAnalysis analysis = Analyzed({"int4_group:g32"});
  const auto ranked = Ranked(analysis, SensitivityMetric::kLoss);
  const std::string text = ToTerminalText(analysis, SensitivityMetric::kLoss, 2);
  EXPECT_THAT(text, HasSubstr("keep:   # the layers above, for a recipe\n  - " + ranked[0]->name +
                              "\n  - " + ranked[1]->name + "\n"));
  EXPECT_THAT(text, HasSubstr("... and 19 more"));
  EXPECT_THAT(ToJson(analysis)["layers"], SizeIs(21));
}

TEST(AnalysisTest, BadInputIsNamed) {
  ThreadPool pool({.num_threads = 1});
  EXPECT_THAT(AnalyzeModel({.path = "/nowhere.gguf"}, pool), StatusIs(StatusCode::kNotFound));
  EXPECT_THAT(AnalyzeModel({.path = Stories260k(), .candidate = {"int9"}}, pool),
              StatusIs(StatusCode::kNotFound, HasSubstr("int9")));
  EXPECT_THAT(AnalyzeModel({.path = Stories260k(), .calibration = "/nowhere.txt"}, pool),
              StatusIs(StatusCode::kNotFound, HasSubstr("/nowhere.txt")));
}

}  // namespace
}  // namespace assay
