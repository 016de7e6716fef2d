#include "quant/task_metrics.h"

#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using nlohmann::json;
using testing::HasSubstr;

const json& Golden() {
  static const json* const golden = new json(ReadGoldenJson("accuracy/task_metrics.json"));
  return *golden;
}

std::vector<ScoredText> Texts(const json& corpus) {
  std::vector<ScoredText> texts;
  for (const json& text : corpus["texts"]) {
    texts.push_back({text["hypothesis"].get<std::string>(),
                     text["references"].get<std::vector<std::string>>()});
  }
  return texts;
}

TEST(TaskMetricsTest, BleuAndChrfAgreeWithSacrebleu) {
  for (const json& corpus : Golden()["corpora"]) {
    const auto name = corpus["name"].get<std::string>();
    // Ratios of whole numbers and four logarithms in double.
    ASSERT_OK_AND_ASSIGN(const double bleu, Bleu(Texts(corpus)));
    EXPECT_NEAR(bleu, corpus["bleu"].get<double>(), 1e-10) << name;
    ASSERT_OK_AND_ASSIGN(const double chrf, Chrf(Texts(corpus)));
    EXPECT_NEAR(chrf, corpus["chrf"].get<double>(), 1e-10) << name;
  }
}

TEST(TaskMetricsTest, DetectsAHypothesisInPlaceOfItsReference) {
  std::vector<ScoredText> texts = Texts(Golden()["corpora"][0]);
  for (ScoredText& text : texts) std::swap(text.hypothesis, text.references[0]);
  EXPECT_GT(std::abs(*Bleu(texts) - Golden()["corpora"][0]["bleu"].get<double>()), 1e-3);
  EXPECT_GT(std::abs(*Chrf(texts) - Golden()["corpora"][0]["chrf"].get<double>()), 1e-3);
}

TEST(TaskMetricsTest, AccuracyAndF1AgreeWithScikitLearn) {
  for (const json& labels : Golden()["labels"]) {
    const auto truth = labels["truth"].get<std::vector<int32_t>>();
    const auto predicted = labels["predicted"].get<std::vector<int32_t>>();
    EXPECT_NEAR(Accuracy(truth, predicted).value(), labels["accuracy"].get<double>(), 1e-14);
    ASSERT_OK_AND_ASSIGN(const F1Scores f1, F1(truth, predicted));
    EXPECT_NEAR(f1.macro, labels["f1_macro"].get<double>(), 1e-14);
    EXPECT_NEAR(f1.micro, labels["f1_micro"].get<double>(), 1e-14);
  }
}

TEST(TaskMetricsTest, NothingToScoreIsAnError) {
  const std::vector<int32_t> one = {1}, two = {1, 2};
  EXPECT_THAT(Accuracy({}, {}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("truth=0")));
  EXPECT_THAT(F1(one, two),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("truth=1 predicted=2")));
  EXPECT_THAT(Bleu({}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("texts=0")));
  EXPECT_THAT(Chrf(std::vector<ScoredText>{{"a", {"a"}}, {"b", {}}}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("text=1 references=0")));
}

}  // namespace
}  // namespace assay
