// Admissions whose recipe is fitted to calibration data, on the bundled decoder.
#include <algorithm>
#include <cmath>
#include <fstream>

#include "engine/lifecycle/report.h"
#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "quant/policy/recipe_list.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr char kVictim[] = "model.layers.2.mlp.down_proj";
// Four-bit codes of a model this small are far from its f32: the budget is not what is tested.
constexpr char kLoosePolicy[] =
    "version: 1\n"
    "recipes: {plain: {scheme: int8_channel}}\n"
    "budgets: {loose: {mean_kl: 2, top1: 0.2, perplexity_ratio: 5}}\n"
    "rules: [{name: any, reason: test, when: {device: cpu}, recipe: plain, budget: loose}]\n";

class CalibratedAdmissionTest : public AdmissionFixture {
 protected:
  void Start(AdmissionOptions options, AdmissionHooks hooks = {}) {
    hooks.evaluation = EvaluationSize{.documents = 4, .window = 160};
    AdmissionFixture::Start(std::move(options), std::move(hooks));
  }
  AdmissionOptions Loose() const {
    AdmissionOptions options;
    options.policy = Policy::Parse(kLoosePolicy, "test").value();
    return options;
  }
  std::string Recipe(const std::string& yaml) const {
    return directory_.Write("recipe.yaml", "embedding: int8_channel\n" + yaml);
  }
  AdmissionRequest Request(const std::string& yaml) const {
    return {.name = "stories", .path = Stories260k(), .recipe = Recipe(yaml), .dry_run = true};
  }
};

std::string FourBit(const std::string& rounding) {
  return "scheme: int4_group:g32,asym\nactivation: a16\nfallback: {max_fraction: 0}\nrounding: " +
         rounding + "\ncalibration: {samples: 24, window: 256}\n";
}

TEST_F(CalibratedAdmissionTest, EveryRoundingMethodIsReachableAndWhatReadsInputsBeatsNearest) {
  std::map<std::string, double> kl;
  for (const char* rounding : {"nearest", "mse", "hqq", "imatrix", "awq_clip", "gptq:act_order",
                               "learned:iterations=40"}) {
    Start(Loose());
    const AdmissionProgress end = Admit(Request(FourBit(rounding)));
    ASSERT_OK(end.status) << rounding;
    kl[rounding] = end.report->verification.mean_kl.mean;
    const bool calibrated = !end.report->calibration.set.empty();
    const bool fitted = FindRounding(rounding).value()->needs() != StatisticsNeed::kNothing;
    EXPECT_EQ(calibrated, fitted) << rounding;
    EXPECT_EQ(end.report->decision.recipe.rounding, rounding);
    EXPECT_LE(end.report->measured_peak_bytes, end.report->estimated_peak_bytes) << rounding;
  }
  for (const char* better : {"gptq:act_order", "learned:iterations=40"}) {
    EXPECT_LT(kl[better], 0.9 * kl["nearest"]) << better;
  }
  // Errors of one layer at a time fall, which bounds the sum only roughly.
  for (const auto& [rounding, value] : kl) EXPECT_LT(value, 1.1 * kl["nearest"]) << rounding;
}

TEST_F(CalibratedAdmissionTest, StaticModesFindTheirParameters) {
  for (const char* mode : {"a8_tensor", "a8_mix", "int8_outlier"}) {
    Start(Loose());
    const AdmissionProgress end =
        Admit(Request(std::string("scheme: int8_channel\nfallback: {max_fraction: 0}\n") +
                      "activation: " + mode + "\nactivation_range: percentile=99.99\n"));
    ASSERT_OK(end.status) << mode;
    EXPECT_THAT(end.report->verification.failures, IsEmpty());
    EXPECT_LT(end.report->verification.mean_kl.mean, 0.05) << mode;
    const bool outliers = std::string(mode) == "int8_outlier";
    for (const LayerReport& layer : end.report->layers) {
      EXPECT_EQ(layer.activation, mode) << layer.name;  // the table too: it is the head
      EXPECT_THAT(layer.why, HasSubstr(outliers ? "outlier columns" : "; x in ["));
    }
  }
}

TEST_F(CalibratedAdmissionTest, TheReportSaysWhatTheModelWasFittedTo) {
  Start(Loose());
  const AdmissionProgress end = Admit(Request(FourBit("gptq")));
  ASSERT_OK(end.status);
  const CalibrationReport& calibration = end.report->calibration;
  EXPECT_THAT(calibration.set, HasSubstr("bundled extract of WikiText-2"));
  EXPECT_EQ(calibration.hash.size(), 64u);
  EXPECT_EQ(calibration.samples, 24);
  EXPECT_GT(calibration.tokens, 4000);
  EXPECT_GT(calibration.scripts.at("Latin"), 0.9);
  EXPECT_THAT(ToTerminalText(*end.report, 100),
              AllOf(HasSubstr("Calibration"), HasSubstr(calibration.hash.substr(0, 12)),
                    HasSubstr("rounded by gptq")));
  ASSERT_OK_AND_ASSIGN(const AdmissionReport read, ReportFromJson(ToJson(*end.report)));
  EXPECT_EQ(read.calibration.hash, calibration.hash);
  EXPECT_EQ(read.calibration.tokens, calibration.tokens);
  EXPECT_EQ(read.calibration.scripts, calibration.scripts);
  EXPECT_EQ(read.decision.recipe.calibration.window, 256);
}

TEST_F(CalibratedAdmissionTest, SameDataSameArtifactOtherDataAnother) {
  std::vector<std::string> hashes;
  std::string text(BundledCalibrationText());
  text.resize(text.size() / 2);
  const std::string half = directory_.Write("half.txt", text);
  for (const std::string& path : {std::string(), std::string(), half}) {
    AdmissionOptions options = Loose();
    options.cache_dir = directory_.path() + "/cache" + std::to_string(hashes.size());
    Start(options);
    AdmissionRequest request = Request(FourBit("gptq"));
    request.calibration = path;
    const AdmissionProgress end = Admit(request);
    ASSERT_OK(end.status);
    hashes.push_back(end.report->artifact_hash);
    const AdmissionProgress again = Admit(request);
    ASSERT_OK(again.status);
    EXPECT_TRUE(again.report->artifact_cache_hit);
    EXPECT_EQ(again.report->calibration.hash, end.report->calibration.hash);
  }
  EXPECT_EQ(hashes[0], hashes[1]);
  EXPECT_NE(hashes[0], hashes[2]);
}

TEST_F(CalibratedAdmissionTest, ASentenceIsNoCalibrationSet) {
  Start(Loose());
  AdmissionRequest request = Request(FourBit("gptq"));
  request.calibration =
      directory_.Write("one.txt", "Once upon a time there was a little girl who liked to play.\n");
  const AdmissionProgress end = Admit(request);
  EXPECT_THAT(end.status, StatusIs(StatusCode::kInvalidArgument,
                                   AllOf(HasSubstr("calibration set is too small: tokens="),
                                         HasSubstr("at least 1024"), HasSubstr("one.txt"))));
}

TEST_F(CalibratedAdmissionTest, TooFewRowsForAHessianAreSaid) {
  Start(Loose());
  AdmissionRequest request = Request(FourBit("gptq:rows=60"));  // 60 x 172 channels
  const AdmissionProgress end = Admit(request);
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition,
                                   AllOf(HasSubstr("calibration rows per input channel: rows="),
                                         HasSubstr("down_proj"))));
}

TEST_F(CalibratedAdmissionTest, TheEvaluationTextIsNoCalibrationData) {
  Start(Loose());
  AdmissionRequest request = Request(FourBit("imatrix"));
  request.calibration = directory_.Write("eval.txt", std::string(BundledEvaluationText()));
  const AdmissionProgress end = Admit(request);
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition,
                                   AllOf(HasSubstr("share"), HasSubstr("tokens: calibration"),
                                         HasSubstr(": \""), HasSubstr("eval.txt"))));
}

TEST_F(CalibratedAdmissionTest, ASaturatedStaticRangeIsRejected) {
  AdmissionHooks hooks;
  hooks.after_quantize = [](const LinearSlot& slot, QuantizedTensor& tensor) {
    if (slot.name == kVictim) tensor.extra.at("x_scale").data<float>()[0] /= 30;
  };
  Start({}, hooks);  // the built-in budget
  const AdmissionProgress end =
      Admit(Request("scheme: int8_channel\nactivation: a8_tensor\nfallback: {max_fraction: 0, "
                    "activation: a8_tensor}\n"));
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition,
                                   HasSubstr(std::string("least accurate layer ") + kVictim)));
  EXPECT_EQ(end.report->verdict, "rejected");
}

TEST_F(CalibratedAdmissionTest, AWrongScaleIsFoundUnderARoundingMethodToo) {
  for (const char* rounding : {"nearest", "gptq:act_order", "awq_clip"}) {
    AdmissionHooks hooks;
    hooks.after_quantize = [](const LinearSlot& slot, QuantizedTensor& tensor) {
      if (slot.name != kVictim) return;
      uint16_t& scale = tensor.scales.data<uint16_t>()[7];  // bf16
      scale = static_cast<uint16_t>(scale + 0x80);          // the exponent: doubled
    };
    Start(Loose(), hooks);
    const AdmissionProgress end = Admit(Request(FourBit(rounding)));
    EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition, HasSubstr(kVictim)))
        << rounding;
    EXPECT_THAT(end.report->verification.defects, Contains(HasSubstr("disagrees"))) << rounding;
  }
}

TEST_F(CalibratedAdmissionTest, ATimeBudgetEndsLearnedRounding) {
  Start(Loose());
  const AdmissionProgress end =
      Admit(Request(FourBit("learned:iterations=100000") + "rounding_seconds: 0.5\n"));
  ASSERT_OK(end.status);
}

TEST_F(CalibratedAdmissionTest, WhatAdmissionCannotCollectIsRefused) {
  Start(Loose());
  EXPECT_THAT(Admit(Request(FourBit("gptq:asym"))).status,
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("rounding=gptq:asym")));
  AdmissionRequest request = Request(FourBit("gptq"));
  request.calibration = directory_.path() + "/none.txt";
  EXPECT_THAT(Admit(request).status, StatusIs(StatusCode::kNotFound, HasSubstr("none.txt")));
}

}  // namespace
}  // namespace assay
