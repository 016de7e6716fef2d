// Configs and tensors that do not fit, and batches out of range: each gives the error that names
// what is wrong.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "absl/strings/match.h"
#include "engine/model/model.h"
#include "tests/engine/model/families/edited_checkpoint.h"
#include "tests/engine/model/families/model_runner.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using nlohmann::json;
using testing::HasSubstr;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kMissing = absl::StatusCode::kNotFound;
constexpr auto kUnsupported = absl::StatusCode::kUnimplemented;

EditedCheckpoint Open(const std::string& name) {
  auto checkpoint = OpenCheckpoint(GoldenPath("models/" + name));
  EXPECT_OK(checkpoint);
  return EditedCheckpoint(*std::move(checkpoint));
}
absl::StatusOr<ModelSpec> Parse(const Checkpoint& checkpoint) {
  ASSIGN_OR_RETURN(const ModelFamily* family, FamilyOf(checkpoint));
  return family->parse(checkpoint);
}

struct BrokenConfig {
  const char* model;
  const char* patch;  // RFC 7386: null removes a key
  absl::StatusCode code;
  const char* message;
};
const BrokenConfig kBrokenConfigs[] = {
    {"llama2", R"({"hidden_size": null})", kInvalid, "hidden_size"},
    {"llama2", R"({"num_hidden_layers": null})", kInvalid, "num_hidden_layers"},
    {"llama2", R"({"num_attention_heads": 0})", kInvalid, "num_attention_heads"},
    {"llama2", R"({"intermediate_size": "big"})", kInvalid, "intermediate_size"},
    {"llama2", R"({"vocab_size": -1})", kInvalid, "vocab_size"},
    {"llama2", R"({"vocab_size": 18446744073709551615})", kInvalid, "vocab_size"},
    {"llama2", R"({"max_position_embeddings": 1e30})", kInvalid, "max_position_embeddings"},
    {"llama2", R"({"num_hidden_layers": 100000})", kInvalid, "100000"},
    {"llama2", R"({"rms_norm_eps": null})", kInvalid, "rms_norm_eps"},
    {"llama2", R"({"rms_norm_eps": [1]})", kInvalid, "rms_norm_eps"},
    {"llama2", R"({"num_key_value_heads": 3})", kInvalid, "kv_heads=3"},
    {"llama2", R"({"head_dim": 7})", kInvalid, "head_dim=7"},
    {"llama2", R"({"head_dim": null, "hidden_size": 30})", kInvalid, "hidden_size=30"},
    {"llama2", R"({"hidden_act": "gelu"})", kUnsupported, "hidden_act=gelu"},
    {"llama2", R"({"partial_rotary_factor": 0.5})", kUnsupported, "partial_rotary_factor=0.5"},
    {"llama2", R"({"num_local_experts": 8})", kUnsupported, "experts"},
    {"llama2", R"({"tie_word_embeddings": 1})", kInvalid, "tie_word_embeddings"},
    {"llama2", R"({"rope_parameters": 3})", kInvalid, "rope_parameters"},
    {"llama2", R"({"rope_parameters": {"rope_theta": 1.0}})", kInvalid, "rope_theta"},
    {"llama3", R"({"rope_parameters": {"rope_type": "dynamic"}})", kUnsupported, "dynamic"},
    {"llama3", R"({"rope_parameters": {"factor": null}})", kInvalid, "factor"},
    {"llama3", R"({"rope_parameters": {"low_freq_factor": 9}})", kInvalid, "low=9"},
    {"llama_linear", R"({"rope_parameters": {"factor": 0}})", kInvalid, "factor"},
    {"llama_yarn", R"({"rope_parameters": {"beta_fast": -1}})", kInvalid, "beta_fast"},
    {"qwen2", R"({"layer_types": ["full_attention"]})", kInvalid, "layer_types"},
    {"qwen2", R"({"layer_types": ["sliding_attention", "full_attention"]})", kUnsupported,
     "layer=1"},
    {"mistral", R"({"sliding_window": 0})", kInvalid, "sliding_window"},
    {"llama2", R"({"model_type": "mamba"})", kUnsupported, "model_type=mamba"},
    {"llama2", R"({"model_type": null})", kUnsupported, "model_type=absent"},
    {"bert_mean", R"({"hidden_size": null})", kInvalid, "hidden_size"},
    {"bert_mean", R"({"num_attention_heads": 5})", kInvalid, "heads=5"},
    {"bert_mean", R"({"hidden_act": "mish"})", kUnsupported, "mish"},
    {"bert_mean", R"({"position_embedding_type": "relative_key"})", kUnsupported, "relative_key"},
    {"bert_mean", R"({"sentence_transformers": {"pooling": {"pooling_mode_max_tokens": true}}})",
     kUnsupported, "mean+max"},
    {"bert_mean", R"({"sentence_transformers": {"modules": ["Transformer", "Dense"]}})",
     kUnsupported, "Dense"},
    {"bert_classifier", R"({"architectures": ["BertForTokenClassification"]})", kUnsupported,
     "BertForTokenClassification"},
    {"distilbert", R"({"dim": null})", kInvalid, "dim"},
    {"roberta", R"({"max_position_embeddings": 2})", kInvalid, "usable positions=0"},
};

TEST(BrokenModelTest, ConfigsThatDoNotFitAreRefusedByKey) {
  for (const BrokenConfig& broken : kBrokenConfigs) {
    SCOPED_TRACE(std::string(broken.model) + " " + broken.patch);
    EditedCheckpoint checkpoint = Open(broken.model);
    ASSERT_OK(Parse(checkpoint));
    checkpoint.edited.merge_patch(json::parse(broken.patch));
    EXPECT_THAT(Parse(checkpoint), StatusIs(broken.code, HasSubstr(broken.message)));
  }
}

TEST(BrokenModelTest, MissingTensorsAreNamed) {
  const struct {
    const char *model, *tensor;
  } kCases[] = {{"llama2", "model.layers.1.self_attn.k_proj.weight"},
                {"llama2", "model.norm.weight"},
                {"llama2", "lm_head.weight"},
                {"llama2", "model.layers.0.input_layernorm.weight"},
                {"llama_bias", "model.layers.1.mlp.up_proj.bias"},
                {"qwen2", "model.layers.0.self_attn.q_proj.bias"},
                {"qwen3", "model.layers.1.self_attn.q_norm.weight"},
                {"bert_mean", "embeddings.word_embeddings.weight"},
                {"bert_mean", "embeddings.LayerNorm.bias"},
                {"bert_mean", "encoder.layer.1.output.dense.bias"},
                {"bert_classifier", "bert.pooler.dense.weight"},
                {"roberta_classifier", "classifier.out_proj.weight"},
                {"distilbert", "transformer.layer.0.sa_layer_norm.weight"}};
  for (const auto& [model, tensor] : kCases) {
    EditedCheckpoint checkpoint = Open(model);
    ASSERT_OK(checkpoint.Find(tensor));
    checkpoint.hidden = {tensor};
    EXPECT_THAT(BuildUniform(checkpoint, "f32", {}), StatusIs(kMissing, HasSubstr(tensor)));
  }
}

TEST(BrokenModelTest, TensorsOfAnotherShapeAreNamedWithBothShapes) {
  const struct {
    const char *model, *tensor;
    Shape shape;
    const char *named, *expected;
  } kCases[] = {
      {"llama2", "model.layers.0.self_attn.q_proj.weight", {32, 31}, "q_proj.weight", "[n,32]"},
      {"llama2", "model.layers.0.self_attn.q_proj.weight", {31, 32}, "qkv_proj", "rows=95"},
      {"llama2", "model.embed_tokens.weight", {95, 32}, "model.embed_tokens", "[96,32]"},
      {"llama2", "model.norm.weight", {31}, "model.norm.weight", "expected=[32]"},
      {"qwen2", "model.layers.0.self_attn.k_proj.bias", {15}, "k_proj.bias", "expected=[16]"},
      {"bert_mean",
       "embeddings.position_embeddings.weight",
       {63, 32},
       "position_embeddings",
       "[64,32]"},
      {"bert_mean",
       "embeddings.token_type_embeddings.weight",
       {3, 32},
       "token_type_embeddings",
       "expected=[2,32]"},
      {"bert_classifier", "classifier.weight", {3, 31}, "classifier.weight", "[labels, hidden]"},
  };
  for (const auto& [model, tensor, shape, named, expected] : kCases) {
    EditedCheckpoint checkpoint = Open(model);
    checkpoint.Reshape(tensor, shape);
    EXPECT_THAT(BuildUniform(checkpoint, "f32", {}),
                StatusIs(kInvalid, testing::AllOf(HasSubstr(named), HasSubstr(expected))));
  }
}

TEST(BrokenModelTest, BuildNeedsEveryLinearInItsShape) {
  const EditedCheckpoint checkpoint = Open("llama2");
  const auto model = BuildUniform(checkpoint, "f32", {});
  ASSERT_OK(model);
  const ModelFamily* family = *FamilyOf(checkpoint);
  LinearMap linears = (*model)->linears();
  linears.erase("model.layers.1.mlp.down_proj");
  EXPECT_THAT(family->build((*model)->spec(), checkpoint, linears),
              StatusIs(kMissing, HasSubstr("model.layers.1.mlp.down_proj")));
  linears["model.layers.1.mlp.down_proj"] = linears["model.layers.1.mlp.gate_up_proj"];
  EXPECT_THAT(family->build((*model)->spec(), checkpoint, linears),
              StatusIs(kInvalid, HasSubstr("model.layers.1.mlp.down_proj")));
  EXPECT_THAT(BuildUniform(checkpoint, "int3", {}), StatusIs(kMissing, HasSubstr("int3")));
}

// The configs of transformers 4 and of GGUF say the same in other words.
TEST(RopeConfigTest, OldAndNewSpellingsGiveTheSameFrequencies) {
  for (const char* name : {"llama3", "llama_linear", "llama_yarn"}) {
    EditedCheckpoint checkpoint = Open(name);
    ASSERT_OK_AND_ASSIGN(const ModelSpec modern, Parse(checkpoint));
    json scaling = checkpoint.edited["rope_parameters"];
    checkpoint.edited.erase("rope_parameters");
    checkpoint.edited["rope_theta"] = scaling["rope_theta"];
    scaling.erase("rope_theta");
    scaling["type"] = scaling["rope_type"];
    scaling.erase("rope_type");
    checkpoint.edited["rope_scaling"] = scaling;
    ASSERT_OK_AND_ASSIGN(const ModelSpec old, Parse(checkpoint));
    EXPECT_EQ(old.rope_inv_freq, modern.rope_inv_freq) << name;
    EXPECT_EQ(old.rope_attention_scale, modern.rope_attention_scale) << name;
    checkpoint.edited["rope_scaling"] = nullptr;
    ASSERT_OK_AND_ASSIGN(const ModelSpec unscaled, Parse(checkpoint));
    EXPECT_NE(unscaled.rope_inv_freq, modern.rope_inv_freq) << name;
  }
}

// One forward pass over `tokens` from `start`, with whatever `edit` does to the operands.
struct Operands {
  std::vector<int32_t> tokens{3, 4, 5}, logit_rows{2}, blocks{0}, types;
  SequenceSpan span{.first_row = 0, .num_rows = 3};
  int64_t out_rows = 1, out_columns = 96;
  size_t scratch = size_t{1} << 20;
  bool kv = true;
};
absl::Status RunForward(const std::string& name, const std::function<void(Operands&)>& edit,
                        const std::string& scheme = "f32") {
  const EditedCheckpoint checkpoint = Open(name);
  ASSIGN_OR_RETURN(const auto model, BuildUniform(checkpoint, scheme, {}));
  Operands o;
  if (model->spec().task != ModelTask::kGenerate) {
    o.logit_rows = {};
    o.out_columns = model->spec().hidden;
  }
  edit(o);
  o.span.blocks = o.blocks;
  ThreadPool pool({.num_threads = 1});
  ASSIGN_OR_RETURN(Arena arena, Arena::Create(CpuDevice(), o.scratch));
  ComputeContext context{pool, arena};
  KvPool::Layout layout = model->kv_layout(DType::kF32);
  if (layout.kv_heads == 0) layout = {1, 1, 8};
  ASSIGN_OR_RETURN(KvPool kv, KvPool::Create(CpuDevice(), layout, 2));
  std::vector<float> out(4096);
  const ForwardBatch batch{.tokens = o.tokens,
                           .sequences = {&o.span, 1},
                           .logit_rows = o.logit_rows,
                           .token_types = o.types};
  return model->Forward({.batch = batch,
                         .kv = o.kv ? &kv : nullptr,
                         .out = {reinterpret_cast<std::byte*>(out.data()),
                                 Shape{o.out_rows, o.out_columns}, DType::kF32, &CpuDevice()}},
                        context);
}

TEST(BrokenBatchTest, DecodersNameWhatIsOutOfRange) {
  EXPECT_OK(RunForward("llama2", [](Operands&) {}));
  const struct {
    std::function<void(Operands&)> edit;
    const char* message;
  } kCases[] = {
      {[](Operands& o) { o.tokens[1] = 96; }, "token=96 vocab=96"},
      {[](Operands& o) { o.tokens[1] = -1; }, "token=-1"},
      {[](Operands& o) { o.span.start_position = 94; }, "max_context=96"},
      {[](Operands& o) { o.span.start_position = -1; }, "first=-1"},
      {[](Operands& o) { o.span.start_position = 14; }, "needed=2"},
      {[](Operands& o) { o.blocks[0] = 2; }, "block=2 blocks=2"},
      {[](Operands& o) { o.blocks[0] = -1; }, "block=-1"},
      {[](Operands& o) { o.span.first_row = 1; }, "first_row=1"},
      {[](Operands& o) { o.span.num_rows = 2; }, "covered=2 rows=3"},
      {[](Operands& o) { o.logit_rows[0] = 3; }, "row=3"},
      {[](Operands& o) {
         o.logit_rows = {1, 1}, o.out_rows = 2;
       },
       "ascend"},
      {[](Operands& o) { o.out_columns = 95; }, "[1,96]"},
      {[](Operands& o) { o.kv = false; }, "KV pool"},
  };
  for (const auto& [edit, message] : kCases) {
    EXPECT_THAT(RunForward("llama2", edit), StatusIs(kInvalid, HasSubstr(message)));
  }
}

TEST(BrokenBatchTest, EncodersNameWhatIsOutOfRange) {
  EXPECT_OK(RunForward("bert_mean", [](Operands&) {}));
  const struct {
    std::function<void(Operands&)> edit;
    const char* message;
  } kCases[] = {
      {[](Operands& o) { o.tokens[0] = 96; }, "token=96"},
      {[](Operands& o) { o.span.start_position = 1; }, "start_position=1"},
      {[](Operands& o) {
         o.types = {0, 1};
       },
       "types=2 tokens=3"},
      {[](Operands& o) {
         o.types = {0, 1, 2};
       },
       "type=2 types=2"},
      {[](Operands& o) { o.tokens.assign(65, 3), o.span.num_rows = 65; }, "max_context=64"},
      {[](Operands& o) { o.out_columns = 31; }, "[1,32]"},
  };
  for (const auto& [edit, message] : kCases) {
    EXPECT_THAT(RunForward("bert_mean", edit), StatusIs(kInvalid, HasSubstr(message)));
  }
  EXPECT_THAT(RunForward("distilbert",
                         [](Operands& o) {
                           o.types = {0, 0, 1};
                         }),
              StatusIs(kInvalid, HasSubstr("type=1 types=1")));
}

TEST(BrokenBatchTest, TooSmallAScratchIsOurBugAndSaysSo) {
  for (const char* model : {"llama2", "bert_mean"}) {
    EXPECT_THAT(RunForward(model, [](Operands& o) { o.scratch = 512; }),
                StatusIs(absl::StatusCode::kInternal, HasSubstr("capacity=512")));
  }
}

// From far too small to large enough: never a crash, and where the matrices fit but a kernel's own
// scratch does not, the layer is named.
TEST(BrokenBatchTest, ScratchThatRunsOutInALayerNamesIt) {
  for (const char* model : {"llama2", "bert_mean"}) {
    absl::Status status = absl::InternalError("");
    bool named = false;
    for (double bytes = 256; !status.ok() && bytes < 1 << 22; bytes *= 1.1) {
      status = RunForward(
          model, [&](Operands& o) { o.scratch = static_cast<size_t>(bytes); }, "int8_channel");
      if (status.ok()) break;
      EXPECT_THAT(status, StatusIs(absl::StatusCode::kInternal, HasSubstr("capacity=")));
      named = named || (absl::StrContains(status.message(), "layer=") &&
                        absl::StrContains(status.message(), "needed="));
    }
    EXPECT_OK(status) << model;
    EXPECT_TRUE(named) << model;
  }
}

TEST(BrokenBatchTest, AnEmptyBatchIsNothingToDo) {
  for (const char* model : {"llama2", "bert_mean"}) {
    const EditedCheckpoint checkpoint = Open(model);
    const auto built = BuildUniform(checkpoint, "f32", {});
    ASSERT_OK(built);
    EXPECT_TRUE(ModelRunner(**built, 1, 16).Forward({}).empty());
  }
}

// ModelRunner gives every pass exactly scratch_bytes(): all sizes must do, in every scheme.
TEST(ScratchTest, TheBoundHoldsForEverySize) {
  for (const char* name : {"llama_yarn", "mistral", "bert_mean", "bert_classifier"}) {
    const EditedCheckpoint checkpoint = Open(name);
    for (const auto& [scheme, mode] : {std::pair{"f32", ActivationMode::kA16},
                                       {"bf16", ActivationMode::kA16},
                                       {"int8_channel", ActivationMode::kA16},
                                       {"int8_channel", ActivationMode::kA8Token}}) {
      const auto model = BuildUniform(checkpoint, scheme, {.activation = mode});
      ASSERT_OK(model);
      for (const int rows : {1, 2, 3, 7, 8, 9, 31, 32, 33, 60}) {
        ModelRunner runner(**model, 2, 64);
        const std::vector<int32_t> tokens(rows, 5);
        EXPECT_OK(runner.TryForward({{.tokens = tokens, .all_logits = rows % 2 == 0}}));
        EXPECT_OK(runner.TryForward({{.sequence = 0, .tokens = {7}},
                                     {.sequence = 1, .tokens = tokens, .all_logits = false}}));
      }
    }
  }
}

}  // namespace
}  // namespace assay
