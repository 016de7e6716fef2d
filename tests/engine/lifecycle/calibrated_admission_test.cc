// Admissions whose recipe is fitted to calibration data, on the bundled decoder.
#include <algorithm>
#include <cmath>
#include <fstream>

#include "absl/strings/str_replace.h"
#include "engine/lifecycle/report.h"
#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "quant/policy/recipe_list.h"
#include "tests/engine/lifecycle/calibrated_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr char kVictim[] = "model.layers.2.mlp.down_proj";
std::string FourBit(const std::string& rounding) {
  return "scheme: int4_group:g32,asym\nactivation: a16\nfallback: {max_fraction: 0}\nrounding: " +
         rounding + "\ncalibration: {samples: 16, window: 256}\n";
}

std::string Transformed(const std::string& transforms, const std::string& rest) {
  return "transforms: [" + transforms + "]\nfallback: {max_fraction: 0}\n" + rest +
         "calibration: {samples: 16, window: 256}\n";
}
constexpr char kStatic[] = "scheme: int8_channel\nactivation: a8_tensor\n";
constexpr char kInt4[] = "scheme: int4_group:g32,asym\nactivation: a16\nrounding: awq_clip\n";

TEST_F(CalibratedAdmissionTest, EveryRoundingMethodIsReachableAndWhatReadsInputsBeatsNearest) {
  std::map<std::string, double> kl;
  for (const char* rounding : {"nearest", "mse", "hqq", "imatrix", "awq_clip", "gptq:act_order",
                               "gptq:act_order,asym", "learned:iterations=40"}) {
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
  for (const char* better : {"gptq:act_order", "gptq:act_order,asym", "learned:iterations=40"}) {
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
  EXPECT_EQ(calibration.samples, 16);
  EXPECT_GT(calibration.tokens, 3000);
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

TEST_F(CalibratedAdmissionTest, ACalibrationFileThatIsNotThereIsNamedAtOnce) {
  Start(Loose());
  AdmissionRequest request = Request(FourBit("gptq"));
  request.calibration = "/nowhere/chats.jsonl";
  EXPECT_THAT(Admit(request).status,
              StatusIs(StatusCode::kNotFound, HasSubstr("calibration=/nowhere/chats.jsonl")));
  EXPECT_EQ(stages_.back(), "done");
  EXPECT_THAT(stages_, Not(Contains("look_up")));
}

TEST_F(CalibratedAdmissionTest, TooFewRowsForAHessianAreSaid) {
  Start(Loose());
  AdmissionRequest request = Request(FourBit("gptq:rows=40"));  // 40 x 172 channels
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

// Prefill of a8_mix has a scale per token: it says nothing of the static range that decodes.
TEST_F(CalibratedAdmissionTest, DecodeStepsOfTheMixedModeAreProvenToo) {
  constexpr char kMix[] =
      "scheme: int8_channel\nactivation: a8_mix\nfallback: {max_fraction: 0, activation: a8_mix}\n";
  AdmissionOptions options;
  options.policy =
      Policy::Parse(absl::StrReplaceAll(kLoosePolicy, {{"mean_kl: 2", "mean_kl: 0.1"}}), "test")
          .value();
  Start(options);
  const AdmissionProgress end = Admit(Request(kMix));
  ASSERT_OK(end.status);
  ASSERT_EQ(end.report->slices.size(), 1u);
  const SliceReport& decode = end.report->slices.front();
  EXPECT_THAT(decode.name, HasSubstr("every row a decode step"));
  EXPECT_EQ(decode.result.tokens, end.report->verification.tokens);
  EXPECT_GT(decode.result.mean_kl.mean, end.report->verification.mean_kl.mean);
  EXPECT_THAT(ToTerminalText(*end.report, 200), HasSubstr("every row a decode step"));

  AdmissionHooks hooks;
  hooks.after_quantize = [](const LinearSlot& slot, QuantizedTensor& tensor) {
    if (slot.name == kVictim) tensor.extra.at("x_scale").data<float>()[0] /= 30;
  };
  Start(options, hooks);
  const AdmissionProgress saturated = Admit(Request(kMix));
  EXPECT_THAT(saturated.status,
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("every row a decode step")));
  EXPECT_LT(saturated.report->attempts.empty() ? saturated.report->verification.mean_kl.mean
                                               : saturated.report->attempts.front().mean_kl.mean,
            0.1);
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

// Codes inside the range of their blocks, so that only what they are for tells: the layer's output
// on the calibration inputs. int4_group:asym: two codes a byte, two zero points a byte.
TEST_F(CalibratedAdmissionTest, WrongCodesUnderGptqShowInTheLayersOutput) {
  using Tamper = std::function<void(QuantizedTensor&)>;
  const std::map<std::string, Tamper> sabotages = {
      {"nibbles swapped",
       [](QuantizedTensor& q) {
         for (size_t i = 0; i < q.codes.bytes(); ++i) {
           uint8_t& code = q.codes.data<uint8_t>()[i];
           code = static_cast<uint8_t>(code << 4 | code >> 4);
         }
       }},
      {"nibbles of one row swapped",
       [](QuantizedTensor& q) {
         const size_t stride = q.codes.bytes() / static_cast<size_t>(q.shape[0]);
         for (size_t i = 0; i < stride; ++i) {
           uint8_t& code = q.codes.data<uint8_t>()[3 * stride + i];
           code = static_cast<uint8_t>(code << 4 | code >> 4);
         }
       }},
      {"zero points of one row off by one",
       [](QuantizedTensor& q) {
         const size_t stride = q.zeros.bytes() / static_cast<size_t>(q.shape[0]);
         for (size_t i = 0; i < stride; ++i) q.zeros.data<uint8_t>()[3 * stride + i] += 0x11;
       }},
      {"two rows swapped",
       [](QuantizedTensor& q) {
         const size_t stride = q.codes.bytes() / static_cast<size_t>(q.shape[0]);
         uint8_t* codes = q.codes.data<uint8_t>();
         std::swap_ranges(codes, codes + stride, codes + stride);
       }},
      {"a block transposed",
       [](QuantizedTensor& q) {
         const size_t stride = q.codes.bytes() / static_cast<size_t>(q.shape[0]);
         uint8_t* codes = q.codes.data<uint8_t>();
         for (size_t i = 0; i < 32; ++i) {
           for (size_t j = 0; j < i; ++j) std::swap(codes[i * stride + j], codes[j * stride + i]);
         }
       }},
      {"scales of the neighbouring group", [](QuantizedTensor& q) {
         uint16_t* scales = q.scales.data<uint16_t>();
         std::rotate(scales, scales + 1, scales + q.scales.shape().elements());
       }}};
  for (const auto& [name, tamper] : sabotages) {
    AdmissionHooks hooks;
    hooks.after_quantize = [&, apply = tamper](const LinearSlot& slot, QuantizedTensor& tensor) {
      if (slot.name == kVictim) apply(tensor);
    };
    Start(Loose(), hooks);
    const AdmissionProgress end = Admit(Request(FourBit("gptq:act_order")));
    EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition, HasSubstr(kVictim))) << name;
    EXPECT_THAT(end.report->verification.defects, Contains(HasSubstr(kVictim))) << name;
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
  AdmissionRequest request = Request(FourBit("gptq"));
  request.calibration = directory_.path() + "/none.txt";
  EXPECT_THAT(Admit(request).status, StatusIs(StatusCode::kNotFound, HasSubstr("none.txt")));
  EXPECT_THAT(Admit(Request(Transformed("smooth_quant, hadamard", kStatic))).status,
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("hadamard")));
}

TEST_F(CalibratedAdmissionTest, TransformsAreFoldedAndProven) {
  for (const auto& [transforms, rest] : std::map<std::string, std::string>{
           {"\"smooth_quant:alpha=0.5\"", kStatic},
           {"\"smooth_quant:groups=norm,search\"", kStatic},
           {"flex_smooth", "scheme: int8_channel\nactivation: a8_token\n"},
           {"awq", kInt4},
           {"smooth_quant, awq", kInt4}}) {
    Start(Loose());
    const AdmissionProgress end = Admit(Request(Transformed(transforms, rest)));
    ASSERT_OK(end.status) << transforms;
    EXPECT_THAT(stages_, Contains("transform"));
    const AdmissionReport& report = *end.report;
    const bool norms = transforms.find("norm") != std::string::npos;
    const size_t passes = transforms == "smooth_quant, awq" ? 2 : 1;
    // Of each of 5 layers: norm-qkv, v-o, norm-gate_up, up-down. The head is tied.
    ASSERT_EQ(report.folds.size(), passes * (norms ? 10u : 20u)) << transforms;
    EXPECT_GT(report.fold_difference, 0);
    EXPECT_LE(report.fold_difference, report.fold_tolerance);
    EXPECT_LT(report.fold_tolerance, 1e-4);
    bool moved = false;
    for (const FoldReport& fold : report.folds) {
      EXPECT_GT(fold.least_scale, 0);
      EXPECT_LE(fold.error, fold.plain_error * (1 + 1e-9)) << fold.slot;  // searches may stay at 1
      moved = moved || fold.most_scale > 1.05 * fold.least_scale;
    }
    EXPECT_TRUE(moved) << transforms;
    EXPECT_THAT(ToTerminalText(report, 100), HasSubstr("proven: f32 outputs"));
    ASSERT_OK_AND_ASSIGN(const AdmissionReport read, ReportFromJson(ToJson(report)));
    EXPECT_EQ(read.folds.size(), report.folds.size());
    EXPECT_EQ(read.folds[3].alpha, report.folds[3].alpha);
    EXPECT_EQ(read.fold_difference, report.fold_difference);
  }
}

TEST_F(CalibratedAdmissionTest, AwqBeatsNearest) {
  std::map<std::string, double> kl;
  for (const auto& [name, yaml] : std::map<std::string, std::string>{
           {"nearest", FourBit("nearest")}, {"awq", Transformed("awq", kInt4)}}) {
    Start(Loose());
    const AdmissionProgress end = Admit(Request(yaml));
    ASSERT_OK(end.status);
    kl[name] = end.report->verification.mean_kl.mean;
  }
  EXPECT_LT(kl["awq"], kl["nearest"]);
}

TEST_F(CalibratedAdmissionTest, FoldsTravelWithTheArtifactAndAreProvenAgain) {
  AdmissionOptions options = Loose();
  options.cache_dir = directory_.path() + "/cache";
  AdmissionRequest request = Request(Transformed("flex_smooth", kStatic));
  request.dry_run = false;
  Start(options);
  const AdmissionProgress first = Admit(request);
  ASSERT_OK(first.status);
  // Another host class: the same artifact, verified anew.
  AdmissionHooks other;
  other.host_isa = "another";
  Start(options, other);
  const AdmissionProgress second = Admit(request);
  ASSERT_OK(second.status);
  EXPECT_EQ(quantized_, 0);
  EXPECT_FALSE(second.report->certificate_hit);
  EXPECT_EQ(second.report->verification.mean_kl.mean, first.report->verification.mean_kl.mean);
  EXPECT_GT(second.report->fold_difference, 0);
  EXPECT_LE(second.report->fold_difference, second.report->fold_tolerance);
  // The same host: nothing is measured, and what is built is what was certified.
  Start(options);
  const AdmissionProgress third = Admit(request);
  ASSERT_OK(third.status);
  EXPECT_TRUE(third.report->certificate_hit);
  EXPECT_EQ(third.report->folds.size(), first.report->folds.size());
}

// One tensor of a folded checkpoint as it was before: a norm that was not divided.
class Unfused final : public Checkpoint {
 public:
  Unfused(std::unique_ptr<const Checkpoint> folded, std::unique_ptr<const Checkpoint> plain,
          std::string victim)
      : folded_(std::move(folded)), plain_(std::move(plain)), victim_(std::move(victim)) {}
  std::string_view format() const override { return folded_->format(); }
  std::span<const CheckpointTensor> tensors() const override { return folded_->tensors(); }
  absl::StatusOr<const CheckpointTensor*> Find(std::string_view name) const override {
    return folded_->Find(name);
  }
  absl::Status ReadRows(std::string_view name, int64_t row, int64_t rows,
                        std::span<float> out) const override {
    return (name == victim_ ? plain_ : folded_)->ReadRows(name, row, rows, out);
  }
  void DropResident(std::string_view name) const override { folded_->DropResident(name); }
  const nlohmann::json& config() const override { return folded_->config(); }
  const nlohmann::json& tokenizer() const override { return folded_->tokenizer(); }
  absl::StatusOr<std::string> ContentHash() const override { return folded_->ContentHash(); }
  uint64_t file_bytes() const override { return folded_->file_bytes(); }

 private:
  const std::unique_ptr<const Checkpoint> folded_, plain_;
  const std::string victim_;
};

TEST_F(CalibratedAdmissionTest, AFoldThatForgetsAPartIsRejected) {
  for (const char* victim :
       {"model.layers.3.post_attention_layernorm.weight", "model.layers.0.self_attn.v_proj.weight",
        "model.layers.4.mlp.down_proj.weight"}) {
    AdmissionHooks hooks;
    hooks.folded = [&](std::unique_ptr<const Checkpoint> folded) {
      return std::make_unique<const Unfused>(std::move(folded),
                                             OpenCheckpoint(Stories260k()).value(), victim);
    };
    Start(Loose(), hooks);
    const AdmissionProgress end = Admit(Request(Transformed("smooth_quant", kStatic)));
    EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition,
                                     HasSubstr("the transforms changed the f32 model")))
        << victim;
    EXPECT_EQ(end.report->verdict, "rejected");
  }
}

TEST_F(CalibratedAdmissionTest, ANanIsNamedBeforeCalibrationMultipliesByIt) {
  std::ifstream file(Stories260k(), std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const std::string name = "model.layers.1.self_attn.o_proj.weight";
  const Tensor values = OpenCheckpoint(Stories260k()).value()->ReadAll(name).value();
  const std::string print(reinterpret_cast<const char*>(values.data<float>()), 64);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  bytes.replace(bytes.find(print), sizeof(nan), reinterpret_cast<const char*>(&nan), sizeof(nan));
  for (const std::string& yaml : {FourBit("gptq"), Transformed("awq", kInt4)}) {
    Start(Loose());
    AdmissionRequest request = Request(yaml);
    request.path = directory_.Write("nan.gguf", bytes);
    EXPECT_THAT(Admit(request).status, StatusIs(StatusCode::kFailedPrecondition,
                                                AllOf(HasSubstr(name), HasSubstr("NaN"))));
  }
}

}  // namespace
}  // namespace assay
