// Ladders of recipes, and layers kept by the range of their inputs, through whole admissions.
#include <fstream>

#include "gmock/gmock.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::Contains;
using testing::Gt;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

class LadderTest : public AdmissionFixture {
 protected:
  std::string Write(const std::string& name, const std::string& yaml) {
    std::string path = directory_.path() + "/" + name + ".yaml";
    std::ofstream(path) << yaml;
    return path;
  }
  AdmissionProgress AdmitBy(const std::string& recipe) {
    return Admit({.name = "stories", .path = Stories260k(), .recipe = recipe, .dry_run = true});
  }
};

// 4 bits rounded to nearest lose thirty times what the budget of 8 bits allows on this model (mean
// KL 0.33, docs/accuracy.md has SmolLM2's), INT8 a fifth of it.
constexpr char kTwoRungs[] = "ladder: [w4a16, w8a16_channel, w8a16]\n";

TEST_F(LadderTest, TheFirstRecipeThatPassesServesAndTheOthersAreReported) {
  Start({});
  const AdmissionProgress end = AdmitBy(Write("two", kTwoRungs));
  ASSERT_OK(end.status);
  const AdmissionReport& report = *end.report;
  EXPECT_EQ(report.decision.recipe.name, "w8a16_channel");
  EXPECT_EQ(report.fallback_fraction, 0);
  ASSERT_THAT(report.rungs, SizeIs(1));
  EXPECT_EQ(report.rungs[0].recipe, "w4a16");
  EXPECT_TRUE(report.rungs[0].measured);
  EXPECT_THAT(report.rungs[0].reason, HasSubstr("mean KL"));
  EXPECT_THAT(report.rungs[0].loss.low, Gt(report.decision.budget.max_mean_kl));
  EXPECT_THAT(ToTerminalText(report, 100),
              AllOf(HasSubstr("Recipes that did not pass"), HasSubstr("w4a16 ")));
  ASSERT_OK_AND_ASSIGN(const AdmissionReport read, ReportFromJson(ToJson(report)));
  EXPECT_EQ(ToJson(read), ToJson(report));
}

TEST_F(LadderTest, TheSecondAdmissionBeginsWhereTheFirstEnded) {
  Start(Cached());
  const std::string ladder = Write("two", kTwoRungs);
  ASSERT_OK(AdmitBy(ladder).status);
  const AdmissionProgress end = AdmitBy(ladder);
  ASSERT_OK(end.status);
  EXPECT_TRUE(end.report->certificate_hit);
  EXPECT_EQ(quantized_, 0);
  EXPECT_EQ(end.report->decision.recipe.name, "w8a16_channel");
  EXPECT_THAT(end.report->rungs, SizeIs(1));
  EXPECT_THAT(end.report->decision.trace, Contains(HasSubstr("an earlier admission ended")));
}

TEST_F(LadderTest, WhatIsRememberedIsWhereTheClimbBeginsNotAVerdict) {
  Start(Cached());
  const std::string ladder = Write("two", kTwoRungs);
  ASSERT_OK(AdmitBy(ladder).status);
  const std::string file = directory_.path() + "/cache/ladders.json";
  ASSERT_OK_AND_ASSIGN(std::string text, ReadFile(file));
  const size_t at = text.find("\"rung\": 1");
  ASSERT_NE(at, std::string::npos);
  std::ofstream(file) << text.replace(at, 9, "\"rung\": 0");
  AdmissionProgress end = AdmitBy(ladder);
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->decision.recipe.name, "w8a16_channel");

  for (const char* broken : {"", "[", "{\"rung\": 99}", "[1]"}) {
    std::ofstream(file) << broken;
    end = AdmitBy(ladder);
    ASSERT_OK(end.status) << broken;
    EXPECT_EQ(end.report->decision.recipe.name, "w8a16_channel") << broken;
  }
}

TEST_F(LadderTest, OnlyTheLastRecipeMayKeepLayers) {
  Start({});
  const AdmissionProgress end = AdmitBy(Write("three", "ladder: [w4a16, w4a8]\n"));
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition));
  EXPECT_EQ(end.report->decision.recipe.name, "w4a8");
  EXPECT_THAT(end.report->rungs, SizeIs(1));
  EXPECT_THAT(end.report->attempts, Not(IsEmpty()));  // of its fallback
  EXPECT_THAT(end.report->fallback_fraction, Gt(0));
}

TEST_F(LadderTest, WhenTheTimeIsOverTheRecipeAtHandIsTheLast) {
  Start({});
  const AdmissionProgress end =
      AdmitBy(Write("short", std::string(kTwoRungs) + "seconds: 0.000001\n"));
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition));
  EXPECT_EQ(end.report->decision.recipe.name, "w4a16");
  EXPECT_THAT(end.report->rungs, IsEmpty());
  EXPECT_THAT(end.report->attempts, Not(IsEmpty()));
}

TEST_F(LadderTest, ARecipeThatThisModelCannotHaveIsPassedOver) {
  Start({});
  const std::string gptq = Write("starved",
                                 "scheme: int4_group:g32\nactivation: a16\nrounding: gptq\n"
                                 "calibration: {samples: 2, window: 16}\n");
  const AdmissionProgress end = AdmitBy(Write("two", "ladder: [\"" + gptq + "\", w8a16]\n"));
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->decision.recipe.name, "w8a16");
  ASSERT_THAT(end.report->rungs, SizeIs(1));
  EXPECT_FALSE(end.report->rungs[0].measured);
  EXPECT_THAT(end.report->rungs[0].reason, HasSubstr("token"));
}

TEST_F(LadderTest, ADefectIsNotClimbedOver) {
  int slots = 0;
  Start({}, {.after_quantize = [&](const LinearSlot& slot, QuantizedTensor& tensor) {
          if (slot.kind == LinearSlot::Kind::kEmbedding || slots++ > 0) return;
          tensor.scales.data<uint16_t>()[0] = 0;  // bf16
        }});
  const AdmissionProgress end = AdmitBy(Write("two", "ladder: [w8a16, w8a16_channel]\n"));
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition, HasSubstr("defect")));
  EXPECT_EQ(end.report->decision.recipe.name, "w8a16");
  EXPECT_THAT(end.report->rungs, IsEmpty());
}

TEST_F(LadderTest, LadderFilesNameTheirMistakes) {
  Start({});
  for (const auto& [yaml, what] :
       std::map<std::string, std::string>{{"ladder: [w4a16, w9]\n", "no recipe of this name: w9"},
                                          {"ladder: []\n", "at least one"},
                                          {"ladder: [w4a16]\nscheme: int8_channel\n", "scheme"},
                                          {"ladder: [w4a16]\nseconds: -1\n", "seconds"},
                                          {"ladder: [w4a16_ladder]\n", "ladder"}}) {
    EXPECT_THAT(
        pipeline_->Enqueue({.path = Stories260k(), .recipe = Write("bad", yaml)}, {}),
        StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("bad.yaml"), HasSubstr(what))))
        << yaml;
  }
}

// --- layers by the range of their inputs -------------------------------------------------------

std::vector<std::string> Kept(const AdmissionReport& report) {
  std::vector<std::string> names;
  for (const LayerReport& layer : report.layers) {
    if (layer.fallback) names.push_back(layer.name);
  }
  return names;
}

std::string Level(const std::string& level) {
  return "scheme: int8_channel\nactivation: a16\nfallback: {scheme: bf16, disable_level: " + level +
         "}\n";
}

TEST_F(LadderTest, DisableLevelKeepsThatManyLayersOfTheWidestRanges) {
  Start({});
  const AdmissionProgress three = AdmitBy(Write("three", Level("L3")));
  ASSERT_OK(three.status);
  const std::vector<std::string> kept = Kept(*three.report);
  ASSERT_THAT(kept, SizeIs(3));
  double least = 1e9;
  for (const LayerReport& layer : three.report->layers) {
    if (!layer.fallback) continue;
    EXPECT_EQ(layer.scheme, "bf16");
    EXPECT_THAT(layer.why, HasSubstr("disable_level L3: range_parm"));
    least = std::min(least, std::stod(layer.why.substr(layer.why.find("parm ") + 5)));
  }
  // L1 keeps the first of the same order, L0 none.
  const AdmissionProgress one = AdmitBy(Write("one", Level("L1")));
  ASSERT_OK(one.status);
  ASSERT_THAT(Kept(*one.report), SizeIs(1));
  EXPECT_THAT(kept, Contains(Kept(*one.report).front()));
  const AdmissionProgress none = AdmitBy(Write("none", Level("L0")));
  ASSERT_OK(none.status);
  EXPECT_THAT(Kept(*none.report), IsEmpty());
  EXPECT_THAT(least, Gt(0));
}

TEST_F(LadderTest, DisableLevelKeepsToTheShareThatIsAllowed) {
  Start({});  // 20 layers, 20 %
  EXPECT_OK(AdmitBy(Write("four", Level("L4"))).status);
  const AdmissionProgress five = AdmitBy(Write("five", Level("L5")));
  EXPECT_THAT(five.status,
              StatusIs(StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("L5"), HasSubstr("4 of 20"), HasSubstr("0.2"))));
  EXPECT_EQ(five.report->verdict, "rejected");
}

TEST_F(LadderTest, AFallbackByRangeDoublesUntilItPassesOrMayNot) {
  Start({});
  const AdmissionProgress end =
      AdmitBy(Write("range",
                    "scheme: int4_group:g32\nactivation: a16\n"
                    "fallback: {scheme: int8_channel, by: range, max_fraction: 0.35}\n"));
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition));  // 4 bits: see above
  EXPECT_THAT(end.report->attempts, SizeIs(3));                        // 0, 2, 4 of 7 layers
  EXPECT_THAT(Kept(*end.report), SizeIs(7));
  for (const LayerReport& layer : end.report->layers) {
    if (layer.fallback) {
      EXPECT_THAT(layer.why, HasSubstr("range_parm"));
    }
  }
}

// The same for what a fallback decided: a plan that needs none is stored for every budget.
TEST_F(LadderTest, AFallbackIsOfItsBudget) {
  Start(Cached());
  const std::string path = Write("four",
                                 "scheme: int4_group:g32,asym\nactivation: a16\n"
                                 "fallback: {scheme: int8_channel, max_fraction: 0.5}\n");
  const auto admit = [&](double max_mean_kl) {
    return Admit({.name = "stories",
                  .path = Stories260k(),
                  .recipe = path,
                  .budget = Budget{
                      .max_mean_kl = max_mean_kl, .min_top1 = 0, .max_perplexity_ratio = 1000}});
  };
  const AdmissionProgress strict = admit(0.2), loose = admit(10);
  ASSERT_OK(strict.status);
  ASSERT_OK(loose.status);
  EXPECT_THAT(Kept(*strict.report), Not(IsEmpty()));
  EXPECT_THAT(Kept(*loose.report), IsEmpty());
  const AdmissionProgress looser = admit(20);
  ASSERT_OK(looser.status);
  EXPECT_TRUE(looser.report->artifact_cache_hit);
  EXPECT_EQ(looser.report->artifact_hash, loose.report->artifact_hash);
}

// HQQ has no zero points to move in int8_channel: what falls back is rounded to nearest.
TEST_F(LadderTest, AFallbackIntoASchemeThatTheMethodCannotRoundIsNoDefect) {
  Start({});
  const AdmissionProgress end =
      AdmitBy(Write("hqq",
                    "scheme: int4_group:g64,float\nactivation: a16\nrounding: hqq\n"
                    "fallback: {scheme: int8_channel, max_fraction: 0.2}\n"));
  ASSERT_NE(end.report, nullptr);
  EXPECT_THAT(end.report->verification.defects, IsEmpty());
  EXPECT_THAT(Kept(*end.report), SizeIs(4));
}

TEST_F(LadderTest, NamesThatMeanNoLayerAreMistakes) {
  Start({});
  const AdmissionProgress end = AdmitBy(
      Write("keep", "scheme: int8_channel\nactivation: a16\nkeep: [\"*.down_proj\", lm_haed]\n"));
  EXPECT_THAT(end.status, StatusIs(StatusCode::kInvalidArgument,
                                   AllOf(HasSubstr("keep=lm_haed"), HasSubstr("model.layers."))));
  const AdmissionProgress rotated = AdmitBy(
      Write("rotate", "scheme: int8_channel\nactivation: a16\nrotate_inputs: [\"*.dwon_proj\"]\n"));
  EXPECT_THAT(rotated.status, StatusIs(StatusCode::kInvalidArgument, HasSubstr("dwon_proj")));
}

}  // namespace
}  // namespace assay
