// What a refresh asks of an admission: other calibration data, a recipe as it served, layers taken
// out; and what verification leaves for the comparison with live input.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "tests/engine/lifecycle/calibrated_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr char kVictim[] = "model.layers.2.mlp.down_proj";
constexpr char kStatic[] = "scheme: int8_channel\nactivation: a8_tensor\n";

class LiveCalibrationTest : public CalibratedAdmissionTest {};

TEST_F(LiveCalibrationTest, LiveRequestsCanTakeThePlaceOfTheFile) {
  Start(Loose());
  AdmissionRequest request = Request(std::string(kStatic) + "fallback: {max_fraction: 0}\n");
  const AdmissionProgress bundled = Admit(request);
  ASSERT_OK(bundled.status);
  for (int i = 0; i < 100; ++i) {
    absl::StrAppend(&request.traffic, "[1");
    for (int j = 0; j < 30; ++j) absl::StrAppend(&request.traffic, ",", 3 + (i * 31 + j * 7) % 500);
    absl::StrAppend(&request.traffic, "]\n");
  }
  const AdmissionProgress live = Admit(request);
  ASSERT_OK(live.status);
  EXPECT_THAT(live.report->calibration.set, HasSubstr("live requests"));
  EXPECT_EQ(live.report->calibration.tokens, 3100);
  EXPECT_NE(live.report->calibration.hash, bundled.report->calibration.hash);
  // Other inputs, other ranges.
  EXPECT_NE(live.report->layers[1].why, bundled.report->layers[1].why);
  request.traffic.resize(request.traffic.find('\n') + 1);
  EXPECT_THAT(Admit(request).status,
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("live requests")));
}

// What users wrote is not told.
TEST_F(LiveCalibrationTest, LiveRequestsThatShareTheEvaluationTextAreNotQuoted) {
  Start(Loose());
  const auto checkpoint = OpenCheckpoint(Stories260k()).value();
  const auto tokenizer = MakeTokenizer(checkpoint->tokenizer()).value();
  AdmissionRequest request = Request(kStatic);
  const std::string_view text = BundledEvaluationText();
  for (size_t at = 0; at + 2000 < text.size() && at < 40000; at += 2000) {
    const auto ids = tokenizer->Encode(text.substr(at, 2000), true, false).value();
    absl::StrAppend(&request.traffic, "[", absl::StrJoin(ids, ","), "]\n");
  }
  const absl::Status status = Admit(request).status;
  EXPECT_THAT(status, StatusIs(StatusCode::kFailedPrecondition,
                               AllOf(HasSubstr("share"), Not(HasSubstr(": \"")))));
}

TEST_F(LiveCalibrationTest, ARecipeCanBeBroughtAlongAndLayersTakenOut) {
  Start(Loose());
  AdmissionRequest request{.name = "stories", .path = Stories260k(), .dry_run = true};
  request.exact.emplace();
  request.exact->name = "of another version";
  request.keep = {kVictim};
  const AdmissionProgress end = Admit(request);
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->decision.recipe.name, "of another version");
  for (const LayerReport& layer : end.report->layers) {
    EXPECT_EQ(layer.scheme, layer.name == kVictim ? "bf16" : "int8_channel") << layer.name;
  }
  request.keep = {"no.such.layer"};
  EXPECT_THAT(Admit(request).status,
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("no.such.layer")));
}

TEST_F(LiveCalibrationTest, VerificationLeavesTheProfileOfTheInputs) {
  Start(Loose());
  const AdmissionProgress end =
      Admit(Request(std::string(kStatic) + "fallback: {max_fraction: 0}\n"));
  ASSERT_OK(end.status);
  ASSERT_OK_AND_ASSIGN(const AdmissionReport read, ReportFromJson(ToJson(*end.report)));
  for (size_t i = 0; i < read.layers.size(); ++i) {
    const LayerReport& layer = end.report->layers[i];
    EXPECT_GT(layer.input_absmax, 0) << layer.name;
    // Ranges are of other text: a little is cut off, not much.
    EXPECT_LT(layer.input_saturation, 0.01) << layer.name;
    EXPECT_EQ(read.layers[i].input_absmax, layer.input_absmax);
    EXPECT_EQ(read.layers[i].input_saturation, layer.input_saturation);
    EXPECT_EQ(read.layers[i].input_outliers, layer.input_outliers);
  }
}

// Without it input drift would have nothing to compare with after a restart.
TEST_F(LiveCalibrationTest, ACertificateFromTheCacheBringsTheProfileAlong) {
  AdmissionOptions options = Loose();
  options.cache_dir = directory_.path() + "/cache";
  Start(options);
  AdmissionRequest request = Request(std::string(kStatic) + "fallback: {max_fraction: 0}\n");
  request.dry_run = false;
  const AdmissionProgress first = Admit(request);
  ASSERT_OK(first.status);
  const AdmissionProgress again = Admit(request);
  ASSERT_OK(again.status);
  ASSERT_TRUE(again.report->certificate_hit);
  for (size_t i = 0; i < first.report->layers.size(); ++i) {
    const LayerReport &before = first.report->layers[i], &now = again.report->layers[i];
    EXPECT_GT(now.input_absmax, 0) << now.name;
    EXPECT_EQ(now.input_absmax, before.input_absmax) << now.name;
    EXPECT_EQ(now.input_saturation, before.input_saturation) << now.name;
    EXPECT_EQ(now.input_outliers, before.input_outliers) << now.name;
  }
}

}  // namespace
}  // namespace assay
