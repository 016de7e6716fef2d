// Recipes end to end on the bundled decoder: what each measures, and which kernel ran.
#include <algorithm>
#include <fstream>
#include <iostream>
#include <set>

#include "absl/strings/str_cat.h"
#include "quant/linear_parts.h"
#include "quant/policy/recipe_list.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class RecipesTest : public AdmissionFixture {
 protected:
  // A recipe of our own.
  std::string Write(const std::string& name, const std::string& yaml) {
    const std::string path = directory_.path() + "/" + name + ".yaml";
    std::ofstream(path) << yaml;
    return path;
  }
  AdmissionProgress AdmitWith(const std::string& recipe) {
    return Admit({.name = "stories", .path = Stories260k(), .recipe = recipe});
  }
  // Mean KL of what a recipe gives before any fallback, admitted or not; -1: it was not measured.
  double MeanKl(const std::string& recipe) {
    const AdmissionProgress end = AdmitWith(recipe);
    EXPECT_TRUE(end.status.ok() || absl::IsFailedPrecondition(end.status)) << end.status;
    if (end.report == nullptr || !end.report->verification.defects.empty()) return -1;
    const auto& attempts = end.report->attempts;
    return (attempts.empty() ? end.report->verification : attempts.front()).mean_kl.mean;
  }
};

// E4M3 has four bits of significand: a model of 260 000 weights shows them. The built-in budgets
// refuse it; a budget of its own admits it.
constexpr char kWideBudget[] = R"(version: 1
recipes: {any: {scheme: int8_channel}}
budgets: {wide: {mean_kl: 0.15, top1: 0.75, perplexity_ratio: 1.1}}
rules: [{name: any, reason: test, when: {device: cpu}, recipe: any, budget: wide}]
)";

TEST_F(RecipesTest, Fp8ActivationsAreAdmittedAndServedInsideTheirBudget) {
  AdmissionOptions options;
  ASSERT_OK_AND_ASSIGN(options.policy, Policy::Parse(kWideBudget, "test"));
  AdmissionHooks hooks;
  hooks.evaluation = EvaluationSize{.documents = 4, .window = 256};
  Start(std::move(options), hooks);
  for (const char* recipe : {"fp8_dynamic", "fp8_block", "fp8_static"}) {
    const AdmissionProgress end = Admit({.name = recipe, .path = Stories260k(), .recipe = recipe});
    ASSERT_OK(end.status) << recipe;
    EXPECT_TRUE(end.report->attempts.empty()) << recipe;
    std::cout << recipe << ": mean KL " << end.report->verification.mean_kl.mean << "\n";
    for (const LayerReport& layer : end.report->layers) {
      if (layer.scheme == "int8_channel") continue;  // the embedding
      EXPECT_EQ(layer.kernel, "decoded_f32") << layer.name;
      EXPECT_GT(layer.output_sqnr_db, 20) << layer.name;
    }
    ASSERT_OK_AND_ASSIGN(const std::shared_ptr<Servable> servable, registry_.Acquire(recipe));
    EXPECT_GT(servable->generate->kv_bytes(), 0u);
  }
}

constexpr char kW4A4[] =
    "scheme: int4_group:g32,asym\nactivation: a4_token\nembedding: int8_channel\n"
    "fallback: {scheme: bf16, activation: a4_token, max_fraction: 0}\n";

TEST_F(RecipesTest, RotatedInputsAndALowRankBranchPayAtFourBits) {
  Start({});
  const double plain = MeanKl(Write("plain", kW4A4));
  // ffn = 172: no Hadamard matrix of this order is known to us.
  const double rotated = MeanKl(Write(
      "rotated", absl::StrCat(kW4A4, "rotate_inputs: [\"*_proj\"]\nkeep: [\"*.down_proj\"]\n")));
  const double kept = MeanKl(Write("kept", absl::StrCat(kW4A4, "keep: [\"*.down_proj\"]\n")));
  const double low_rank = MeanKl(Write("low_rank", absl::StrCat(kW4A4, "low_rank: 16\n")));
  std::cout << "mean KL: plain " << plain << ", down_proj kept " << kept << ", rotated " << rotated
            << ", low rank " << low_rank << "\n";
  EXPECT_GT(plain, 0);
  EXPECT_GT(rotated, 0);
  EXPECT_LT(rotated, kept);
  EXPECT_GT(low_rank, 0);
  EXPECT_LT(low_rank, plain);
}

// Statistics must be of the rotated input: GPTQ on those of the input as it is would be made for
// other columns, and its check (rounding to nearest is worse) would refuse it.
TEST_F(RecipesTest, GptqAndStaticRangesWorkOnRotatedInputs) {
  Start({});
  const std::string rotated =
      absl::StrCat(kW4A4, "rotate_inputs: [\"*_proj\"]\nkeep: [\"*.down_proj\"]\n");
  const double nearest = MeanKl(Write("nearest", rotated));
  const double gptq = MeanKl(Write("gptq", absl::StrCat(rotated, "rounding: gptq\n")));
  EXPECT_GT(gptq, 0);
  EXPECT_LT(gptq, nearest);
  constexpr char kStatic[] =
      "scheme: int8_channel\nactivation: a8_tensor\nembedding: int8_channel\n"
      "keep: [\"*.down_proj\"]\nfallback: {scheme: bf16, activation: a16, max_fraction: 0}\n";
  const double as_is = MeanKl(Write("static", kStatic));
  const double spread =
      MeanKl(Write("spread", absl::StrCat(kStatic, "rotate_inputs: [\"*_proj\"]\n")));
  std::cout << "mean KL: nearest " << nearest << ", GPTQ " << gptq << "; static INT8 " << as_is
            << ", rotated " << spread << "\n";
  EXPECT_GT(spread, 0);
  EXPECT_LT(spread, 2 * as_is);  // ranges of unrotated inputs would clip most of the values
}

TEST_F(RecipesTest, WrongCodesBesideALowRankBranchAreNamed) {
  static constexpr char kVictim[] = "model.layers.2.self_attn.o_proj";
  AdmissionHooks hooks;
  hooks.after_quantize = [](const LinearSlot& slot, QuantizedTensor& tensor) {
    if (slot.name != kVictim) return;
    auto* rows = tensor.codes.data<uint8_t>();
    const size_t row = tensor.codes.bytes() / static_cast<size_t>(tensor.shape[0]);
    std::swap_ranges(rows, rows + row, rows + row);
  };
  Start({}, hooks);
  const AdmissionProgress end = AdmitWith(Write("swapped", absl::StrCat(kW4A4, "low_rank: 16\n")));
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition,
                                   HasSubstr(std::string("defect in ") + kVictim)));
}

TEST_F(RecipesTest, ARotationThatDoesNotExistIsRefusedByName) {
  Start({});
  const AdmissionProgress end = AdmitWith("w4a4_rotated");
  EXPECT_THAT(end.status, StatusIs(StatusCode::kUnimplemented,
                                   HasSubstr("no Hadamard matrix of this order can be")));
  EXPECT_THAT(end.status.message(), HasSubstr("down_proj"));
}

TEST_F(RecipesTest, IntegerCachesWithChannelsOfKeysAreMeasuredAndServed) {
  Start(Cached());
  const double token = MeanKl("w8a16_kv4"), channel = MeanKl("w8a16_kv4_channel");
  const double eight = MeanKl("w8a16_kv8"), int8 = MeanKl("w8a16_kv8_int8");
  std::cout << "mean KL: kv4 " << token << ", kv4_channel " << channel << ", kv8 " << eight
            << ", kv8_int8 " << int8 << "\n";
  EXPECT_GT(channel, 0);
  EXPECT_LT(channel, token);
  EXPECT_GT(int8, 0);
  EXPECT_LT(int8, 2 * eight);
  // From the cache: the channels come with the weights, and the certificate still holds.
  const AdmissionProgress again = AdmitWith("w8a16_kv8_int8");
  ASSERT_OK(again.status);
  EXPECT_TRUE(again.report->certificate_hit);
  EXPECT_EQ(quantized_, 0);
}

// What is read in 16 bit belongs to the engine, not to the weights; figures are of one window.
TEST_F(RecipesTest, RowsInSixteenBitPayBesideFourBitCodes) {
  AdmissionOptions options = Cached();
  ASSERT_OK_AND_ASSIGN(options.policy, Policy::Parse(kWideBudget, "test"));
  Start(std::move(options));
  const double channel = MeanKl("w8a16_kv4_channel"), window = MeanKl("w8a16_kv4_window");
  std::cout << "mean KL: kv4_channel " << channel << ", kv4_window " << window << "\n";
  EXPECT_GT(window, 0);
  EXPECT_LT(2 * window, channel);
  const std::string base = absl::StrCat("scheme: int8_channel\nactivation: a16\nkv: i8\n",
                                        "fallback: {max_fraction: 0}\n");
  const AdmissionProgress plain = AdmitWith(Write("plain", base));
  const AdmissionProgress near = AdmitWith(Write("near", base + "kv_window: 64\nkv_sinks: 4\n"));
  ASSERT_OK(plain.status);
  ASSERT_OK(near.status);
  EXPECT_TRUE(near.report->artifact_cache_hit);
  EXPECT_FALSE(near.report->certificate_hit) << "the proof of one is none of the other";
  EXPECT_LT(near.report->verification.mean_kl.mean, plain.report->verification.mean_kl.mean);
  EXPECT_THAT(near.report->decision.trace,
              testing::Contains(HasSubstr("the prefix cache is off for this model")));
  EXPECT_LE(near.report->measured_peak_bytes, near.report->estimated_peak_bytes);
  EXPECT_THAT(ToTerminalText(*near.report, 400),
              HasSubstr("f16 in the last 64 and the first 4 positions"));
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<Servable> servable, registry_.Acquire("stories"));
  EXPECT_LE(servable->generate->kv_bytes(), size_t{1} << 20) << "slots are inside engine.kv_bytes";
}

// Artifacts are found by what their recipe does: whatever changes what is stored is part of the
// key.
TEST_F(RecipesTest, RecipesThatDifferInOneKeyShareNoArtifact) {
  AdmissionOptions options = Cached();
  ASSERT_OK_AND_ASSIGN(options.policy, Policy::Parse(kWideBudget, "test"));
  Start(std::move(options));
  const std::string base = absl::StrCat("scheme: int8_channel\nactivation: a16\nkv: i8\n",
                                        "fallback: {max_fraction: 0}\n");
  const std::map<std::string, std::string> keys = {{"plain", ""},
                                                   {"rotated", "rotate_inputs: [\"*qkv_proj\"]\n"},
                                                   {"low_rank", "low_rank: 2\n"},
                                                   {"channels", "kv_keys: channel\n"},
                                                   {"scores", "attention: int8\n"},
                                                   {"both", "kv_keys: channel\nattention: int8\n"}};
  std::set<std::string> hashes;
  for (const auto& [name, key] : keys) {
    const std::string path = Write(name, base + key);
    const AdmissionProgress first = AdmitWith(path);
    ASSERT_OK(first.status) << name;
    EXPECT_FALSE(first.report->artifact_cache_hit) << name;
    hashes.insert(first.report->artifact_hash);
    EXPECT_TRUE(AdmitWith(path).report->artifact_cache_hit) << name;
    const LayerReport& qkv = first.report->layers[1];
    EXPECT_EQ(BesideTheCodes(qkv), name == "plain"      ? ""
                                   : name == "rotated"  ? "rotated input"
                                   : name == "low_rank" ? "branch of rank 2"
                                   : name == "channels" ? "channels of keys"
                                   : name == "scores"   ? "INT8 scores"
                                                        : "channels of keys, INT8 scores");
  }
  EXPECT_EQ(hashes.size(), keys.size());
}

// Right at the beginning of a context; from position 128 on, every other logit is off.
class OffFarBack final : public Model {
 public:
  explicit OffFarBack(std::shared_ptr<const Model> model) : model_(std::move(model)) {}
  const ModelSpec& spec() const override { return model_->spec(); }
  const std::vector<LinearSlot>& slots() const override { return model_->slots(); }
  const LinearMap& linears() const override { return model_->linears(); }
  absl::Status Forward(const ForwardArgs& args, ComputeContext& context) const override {
    RETURN_IF_ERROR(model_->Forward(args, context));
    const bool far = args.batch.sequences[0].start_position >= 128;
    const auto logits = static_cast<int64_t>(args.batch.logit_rows.size()) * spec().vocab;
    for (int64_t i = 0; far && i < logits; i += 2) args.out.as<float>()[i] += 3;
    return absl::OkStatus();
  }
  size_t scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context) const override {
    return model_->scratch_bytes(rows, logit_rows, context);
  }
  size_t other_weight_bytes() const override { return model_->other_weight_bytes(); }

 private:
  const std::shared_ptr<const Model> model_;
};

TEST_F(RecipesTest, AQuantizedCacheIsMeasuredAtLongContextToo) {
  const EvaluationSize small{.documents = 3, .window = 128};
  for (const bool broken : {false, true}) {
    AdmissionHooks hooks;
    hooks.evaluation = small;
    if (broken) {
      hooks.candidate = [](std::shared_ptr<const Model> model) {
        return std::make_shared<const OffFarBack>(std::move(model));
      };
    }
    AdmissionOptions options;
    ASSERT_OK_AND_ASSIGN(options.policy, Policy::Parse(kWideBudget, "test"));
    Start(std::move(options), hooks);
    const AdmissionProgress half = AdmitWith("w8a16");  // no codes in the cache: no slice
    ASSERT_OK(half.status);
    EXPECT_THAT(half.report->slices, testing::IsEmpty());
    const AdmissionProgress end = AdmitWith("w8a16_kv8_int8");
    ASSERT_EQ(end.report->slices.size(), 1u) << end.status;
    const SliceReport& slice = end.report->slices[0];
    EXPECT_THAT(slice.name, HasSubstr("long context: 2 windows of 512 tokens"));
    EXPECT_EQ(slice.result.tokens, 2 * 511);
    EXPECT_THAT(ToTerminalText(*end.report, 200), HasSubstr(slice.name));
    if (broken) {
      EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition,
                                       HasSubstr("long context: 2 windows of 512 tokens")));
    } else {
      EXPECT_OK(end.status);
    }
  }
}

// Channels of another layer change no function, as keys and queries see the same ones: what they
// cost is precision, which no other layer's check would blame on them.
TEST_F(RecipesTest, ChannelsOfKeysOfAnotherLayerAreNamed) {
  AdmissionHooks hooks;
  std::map<int, KeyParts> right;
  int from = 0;
  hooks.after_quantize = [&](const LinearSlot& slot, QuantizedTensor& tensor) {
    const std::optional<KeyParts> keys = ReadKeyParts(tensor).value();
    if (!keys.has_value()) return;
    right[slot.layer] = *keys;
    if (slot.layer != 3) return;
    EXPECT_OK(WriteKeyParts(right[from], tensor));
  };
  Start({}, hooks);
  for (from = 0; from < 3; ++from) {
    const AdmissionProgress end = AdmitWith("w8a16_kv8_int8");
    EXPECT_THAT(end.status,
                StatusIs(StatusCode::kFailedPrecondition,
                         HasSubstr("model.layers.3.self_attn.qkv_proj: the channels of its keys")))
        << "of layer " << from;
    ASSERT_EQ(end.report->verification.defects.size(), 1u);
  }
  from = 3;  // the same check, nothing wrong
  EXPECT_OK(AdmitWith("w8a16_kv8_int8").status);
}

TEST_F(RecipesTest, AStaleScaleOfOneChannelOfKeysReachesTheVerdict) {
  AdmissionHooks hooks;
  hooks.after_quantize = [](const LinearSlot& slot, QuantizedTensor& tensor) {
    if (slot.layer == 3 && tensor.extra.contains("key_scale"))
      tensor.extra["key_scale"].data<float>()[1] *= 1e-4f;
  };
  Start({}, hooks);
  EXPECT_THAT(AdmitWith("w8a16_kv8_int8").status, StatusIs(StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace assay
