// Admissions that rotate the residual stream, on the bundled decoder (its head is tied, its ffn of
// 172 has no Hadamard matrix: down_proj stays as it is).
#include <iostream>

#include "absl/strings/str_cat.h"
#include "engine/lifecycle/report.h"
#include "quant/methods/hadamard.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;

constexpr char kW4A4[] =
    "scheme: int4_group:g32,asym\nactivation: a4_token\nembedding: int8_channel\n"
    "keep: [\"*.down_proj\"]\n"
    "fallback: {scheme: bf16, activation: a4_token, max_fraction: 0}\n";
constexpr char kInt8[] =
    "scheme: int8_channel\nactivation: a16\nembedding: int8_channel\n"
    "fallback: {max_fraction: 0}\n";
constexpr char kHadamard[] = "transforms: [hadamard]\n";

class RotatedAdmissionTest : public AdmissionFixture {
 protected:
  AdmissionRequest Request(const std::string& yaml) const {
    return {
        .name = "stories", .path = Stories260k(), .recipe = directory_.Write("recipe.yaml", yaml)};
  }
  // Before any fallback, admitted or not; -1: it was not measured.
  double MeanKl(const std::string& yaml) {
    const AdmissionProgress end = Admit(Request(yaml));
    EXPECT_TRUE(end.status.ok() || absl::IsFailedPrecondition(end.status)) << end.status;
    if (end.report == nullptr || !end.report->verification.defects.empty()) return -1;
    return end.report->verification.mean_kl.mean;
  }
};

TEST_F(RotatedAdmissionTest, TheFunctionStaysAndFourBitActivationsGain) {
  Start({});
  const double plain = MeanKl(kW4A4);
  const double online = MeanKl(absl::StrCat(kW4A4, "rotate_inputs: [\"*_proj\"]\n"));
  const double fused = MeanKl(absl::StrCat(kW4A4, kHadamard));
  std::cout << "mean KL at W4A4: plain " << plain << ", inputs rotated while serving " << online
            << ", stream rotated " << fused << "\n";
  EXPECT_GT(fused, 0);
  EXPECT_LT(fused, plain);
  const AdmissionProgress end = Admit(Request(absl::StrCat(kInt8, kHadamard)));
  ASSERT_OK(end.status);
  const AdmissionReport& report = *end.report;
  EXPECT_GT(report.fold_difference, 0);
  EXPECT_LE(report.fold_difference, report.fold_tolerance);
  EXPECT_LT(report.fold_tolerance, 1e-4);
  ASSERT_EQ(report.folds.size(), 1u);
  EXPECT_EQ(report.folds[0].kind, "residual_stream");
  EXPECT_EQ(report.calibration.set, "");  // needs none
  EXPECT_THAT(ToTerminalText(report, 200), HasSubstr("the head is tied"));
}

TEST_F(RotatedAdmissionTest, ItTravelsWithTheArtifactAndIsProvenAgain) {
  const AdmissionRequest request = Request(absl::StrCat(kInt8, kHadamard));
  Start(Cached());
  const AdmissionProgress first = Admit(request);
  ASSERT_OK(first.status);
  const AdmissionProgress again = Admit(request);
  ASSERT_OK(again.status);
  EXPECT_TRUE(again.report->certificate_hit);
  EXPECT_EQ(quantized_, 0);
  AdmissionHooks hooks;
  hooks.host_isa = "another";
  Start(Cached(), hooks);
  const AdmissionProgress other = Admit(request);
  ASSERT_OK(other.status);
  EXPECT_TRUE(other.report->artifact_cache_hit);
  EXPECT_FALSE(other.report->certificate_hit);
  EXPECT_EQ(other.report->verification.mean_kl.mean, first.report->verification.mean_kl.mean);
  EXPECT_GT(other.report->fold_difference, 0);
  const AdmissionProgress plain = Admit(Request(kInt8));
  ASSERT_OK(plain.status);
  EXPECT_FALSE(plain.report->artifact_cache_hit);
}

TEST_F(RotatedAdmissionTest, ItComposesWithScalesAndRounding) {
  Start({});
  AdmissionRequest request =
      Request(absl::StrCat("scheme: int8_channel\nactivation: a8_tensor\nembedding: int8_channel\n",
                           "transforms: [hadamard, \"smooth_quant:alpha=0.5\"]\nrounding: gptq\n",
                           "calibration: {samples: 16, window: 256}\n"));
  request.budget = Budget{.max_mean_kl = 1, .min_top1 = 0.5, .max_perplexity_ratio = 2};
  const AdmissionProgress end = Admit(request);
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->folds.size(), 21u);
  EXPECT_LE(end.report->fold_difference, end.report->fold_tolerance);
}

// The rotated checkpoint with one tensor changed.
class Tampered final : public Checkpoint {
 public:
  using Change = std::function<void(std::span<float> values)>;
  Tampered(std::unique_ptr<const Checkpoint> base, std::string victim, Change change)
      : base_(std::move(base)), victim_(std::move(victim)), change_(std::move(change)) {}
  std::string_view format() const override { return base_->format(); }
  std::span<const CheckpointTensor> tensors() const override { return base_->tensors(); }
  absl::StatusOr<const CheckpointTensor*> Find(std::string_view name) const override {
    return base_->Find(name);
  }
  absl::Status ReadRows(std::string_view name, int64_t row, int64_t rows,
                        std::span<float> out) const override {
    RETURN_IF_ERROR(base_->ReadRows(name, row, rows, out));
    if (name == victim_) change_(out);
    return absl::OkStatus();
  }
  void DropResident(std::string_view name) const override { base_->DropResident(name); }
  const nlohmann::json& config() const override { return base_->config(); }
  const nlohmann::json& tokenizer() const override { return base_->tokenizer(); }
  absl::StatusOr<std::string> ContentHash() const override { return base_->ContentHash(); }
  uint64_t file_bytes() const override { return base_->file_bytes(); }

 private:
  const std::unique_ptr<const Checkpoint> base_;
  const std::string victim_;
  const Change change_;
};

// What breaks a rotation: keys rotated like values (rotary positions pair i with i + d / 2, and no
// other orthogonal matrix commutes with them), a norm whose gain stayed, a writer rotated the wrong
// way round, values rotated and their output not.
TEST_F(RotatedAdmissionTest, EverySabotageIsRejectedAndTheTransformNamed) {
  const auto original = OpenCheckpoint(Stories260k()).value();
  const auto as_it_was = [&](const std::string& name) {
    return [&original, name](std::span<float> values) {
      const Tensor all = original->ReadAll(name).value();
      std::copy_n(all.data<float>(), values.size(), values.begin());
    };
  };
  constexpr int64_t kHidden = 64, kHeadDim = 8;
  const HadamardRotation head = HadamardRotation::Create(kHeadDim).value();
  const HadamardRotation stream = HadamardRotation::Create(kHidden, 5).value();
  const std::string keys = "model.layers.1.self_attn.k_proj.weight";
  const std::string norm = "model.layers.2.post_attention_layernorm.weight";
  const std::string down = "model.layers.3.mlp.down_proj.weight";
  const std::string output = "model.layers.0.self_attn.o_proj.weight";
  const std::map<std::string, Tampered::Change> sabotages = {
      {keys,
       [&](std::span<float> values) {
         for (size_t at = 0; at < values.size(); at += kHeadDim * kHidden)
           head.RotateOutput(values.subspan(at, kHeadDim * kHidden), kHidden);
       }},
      {norm, as_it_was(norm)},
      {down,
       [&](std::span<float> values) {
         stream.RotateOutput(values, static_cast<int64_t>(values.size()) / kHidden);
       }},
      {output, [&](std::span<float> values) { head.RotateRows(values); }}};
  for (const auto& [victim, change] : sabotages) {
    AdmissionHooks hooks;
    hooks.folded = [&, tensor = victim, how = change](std::unique_ptr<const Checkpoint> folded) {
      return std::make_unique<const Tampered>(std::move(folded), tensor, how);
    };
    Start({}, hooks);
    const AdmissionProgress end = Admit(Request(absl::StrCat(kInt8, kHadamard)));
    EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition,
                                     HasSubstr("the transforms changed the f32 model")))
        << victim;
    EXPECT_THAT(end.status.message(), HasSubstr("hadamard")) << victim;
    EXPECT_THAT(end.report->verification.defects, Contains(HasSubstr("hadamard"))) << victim;
    EXPECT_THAT(stages_, Not(Contains("quantize"))) << victim;
  }
}

// Queries and keys whose rows were paired the other way (2 i with 2 i + 1) when they were stored.
TEST_F(RotatedAdmissionTest, WrongRotaryPairsOfTheStoredRowsAreNamed) {
  AdmissionHooks hooks;
  hooks.after_quantize = [](const LinearSlot& slot, QuantizedTensor& tensor) {
    if (slot.name != "model.layers.2.self_attn.qkv_proj") return;
    constexpr int64_t kHeadDim = 8, kHalf = kHeadDim / 2;
    const int64_t k = tensor.shape[1];
    std::vector<int8_t> head(static_cast<size_t>(kHeadDim * k));
    auto* codes = tensor.codes.data<int8_t>();
    std::copy_n(codes, head.size(), head.begin());
    for (int64_t i = 0; i < kHalf; ++i) {
      std::copy_n(head.begin() + i * k, k, codes + 2 * i * k);
      std::copy_n(head.begin() + (kHalf + i) * k, k, codes + (2 * i + 1) * k);
    }
  };
  Start({}, hooks);
  for (const char* transforms : {"", kHadamard}) {
    const AdmissionProgress end = Admit(Request(absl::StrCat(kInt8, transforms)));
    EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition,
                                     HasSubstr("model.layers.2.self_attn.qkv_proj")));
  }
}

}  // namespace
}  // namespace assay
