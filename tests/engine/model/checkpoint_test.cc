#include "engine/model/checkpoint.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "base/sha256.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using Opened = std::unique_ptr<const Checkpoint>;

std::vector<float> FloatsOf(std::string_view bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

std::vector<float> ValuesOf(const Checkpoint& checkpoint, std::string_view name) {
  const auto tensor = checkpoint.ReadAll(name);
  EXPECT_THAT(tensor, IsOk());
  if (!tensor.ok()) return {};
  return {tensor->data<float>(), tensor->data<float>() + tensor->shape().elements()};
}

// Bit patterns, so that -0 and 0 differ.
std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits(values.size());
  std::memcpy(bits.data(), values.data(), values.size() * sizeof(float));
  return bits;
}

TEST(CheckpointTest, DequantizesEveryGgufTypeBitForBit) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const Opened opened,
                       OpenCheckpoint(dir.Unpack("checkpoint/blocks.gguf.xz")));
  const std::vector<float> golden = FloatsOf(ReadGolden("checkpoint/blocks.f32.xz"));
  EXPECT_EQ(opened->tensors().size(), 21u);  // 13 types of random bytes, 8 that gguf quantizes
  size_t at = 0;
  for (const CheckpointTensor& tensor : opened->tensors()) {
    const size_t count = static_cast<size_t>(tensor.shape.elements());
    ASSERT_LE(at + count, golden.size());
    const std::vector<float> expected(golden.begin() + static_cast<int64_t>(at),
                                      golden.begin() + static_cast<int64_t>(at + count));
    EXPECT_EQ(Bits(ValuesOf(*opened, tensor.name)), Bits(expected)) << tensor.name;
    EXPECT_TRUE(tensor.name.ends_with("." + tensor.encoding))
        << tensor.name << " " << tensor.encoding;
    at += count;
  }
  EXPECT_EQ(at, golden.size());
}

// Names, shapes, q/k rows: a GGUF reads as the safetensors that it was converted from.
class ConvertedModelTest : public testing::TestWithParam<const char*> {};

TEST_P(ConvertedModelTest, GgufReadsAsTheSafetensorsItCameFrom) {
  const TempDir dir;
  const std::string base = std::string("checkpoint/") + GetParam();
  ASSERT_OK_AND_ASSIGN(const Opened gguf, OpenCheckpoint(dir.Unpack(base + ".gguf.xz")));
  ASSERT_OK_AND_ASSIGN(const Opened original, OpenCheckpoint(dir.Unpack(base + ".safetensors.xz")));
  EXPECT_EQ(gguf->format(), "gguf");
  EXPECT_EQ(original->format(), "safetensors");
  ASSERT_EQ(gguf->tensors().size(), original->tensors().size());
  for (size_t i = 0; i < gguf->tensors().size(); ++i) {
    const CheckpointTensor &a = gguf->tensors()[i], &b = original->tensors()[i];
    EXPECT_EQ(a.name, b.name);
    EXPECT_EQ(ToString(a.shape), ToString(b.shape)) << a.name;
    EXPECT_EQ(Bits(ValuesOf(*gguf, a.name)), Bits(ValuesOf(*original, a.name))) << a.name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ConvertedModelTest, testing::Values("llama", "qwen3", "bert"));

TEST(CheckpointTest,
     TheQkPermutationOfTheGoldenIsNotTheIdentity) {  // or the test above would prove nothing
  const TempDir dir;
  std::string bytes = ReadGolden("checkpoint/llama.gguf.xz");
  // The same file under an architecture of the same naming that is not permuted: its q rows must
  // differ.
  for (const std::string_view from : {"\x05\0\0\0\0\0\0\0llama", "llama."}) {
    for (size_t at = 0; (at = bytes.find(std::string(from.data(), from == "llama." ? 6 : 13),
                                         at)) != std::string::npos;
         ++at) {
      bytes.replace(bytes.find("llama", at), 5, "qwen2");
    }
  }
  ASSERT_OK_AND_ASSIGN(const Opened raw, OpenCheckpoint(dir.Write("raw.gguf", bytes)));
  ASSERT_OK_AND_ASSIGN(const Opened undone, OpenCheckpoint(dir.Unpack("checkpoint/llama.gguf.xz")));
  const std::string q = "model.layers.0.self_attn.q_proj.weight",
                    v = "model.layers.0.self_attn.v_proj.weight";
  EXPECT_NE(ValuesOf(*raw, q), ValuesOf(*undone, q));
  EXPECT_EQ(ValuesOf(*raw, v), ValuesOf(*undone, v));
}

TEST(CheckpointTest, ReadsAnyRangeOfRows) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const Opened opened, OpenCheckpoint(dir.Unpack("checkpoint/llama.gguf.xz")));
  for (const std::string name : {"model.layers.0.self_attn.k_proj.weight",
                                 "model.layers.0.mlp.up_proj.weight", "model.norm.weight"}) {
    ASSERT_OK_AND_ASSIGN(const CheckpointTensor* tensor, opened->Find(name));
    const std::vector<float> all = ValuesOf(*opened, name);
    const int64_t rows = tensor->shape[0], width = tensor->shape.elements() / rows;
    for (const auto& [first, count] :
         {std::pair<int64_t, int64_t>{0, 1}, {3, 5}, {rows - 1, 1}, {rows, 0}, {1, rows - 1}}) {
      std::vector<float> part(static_cast<size_t>(count * width));
      ASSERT_OK(opened->ReadRows(name, first, count, part));
      EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + first * width))
          << name << " row " << first;
    }
  }
}

TEST(CheckpointTest, RefusesRowsThatDoNotFit) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const Opened opened, OpenCheckpoint(dir.Unpack("checkpoint/llama.gguf.xz")));
  std::vector<float> out(32);
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const std::string name = "lm_head.weight";  // [24, 32]
  EXPECT_THAT(opened->ReadRows(name, 24, 1, out),
              StatusIs(kInvalid, AllOf(HasSubstr("lm_head"), HasSubstr("row=24"))));
  EXPECT_THAT(opened->ReadRows(name, -1, 1, out), StatusIs(kInvalid, HasSubstr("row=-1")));
  EXPECT_THAT(opened->ReadRows(name, 0, INT64_MAX, out), StatusIs(kInvalid, HasSubstr("rows")));
  EXPECT_THAT(opened->ReadRows(name, 0, 2, out), StatusIs(kInvalid, HasSubstr("expected=64")));
  EXPECT_THAT(opened->ReadRows("nope", 0, 1, out),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("'nope'")));
  EXPECT_THAT(opened->Find("nope"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("llama.gguf")));
}

TEST(CheckpointTest, TranslatesTheHyperparametersOfALlama) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const Opened opened, OpenCheckpoint(dir.Unpack("checkpoint/llama.gguf.xz")));
  json config = opened->config();
  EXPECT_FLOAT_EQ(config["rms_norm_eps"].get<float>(), 1e-5f);
  config.erase("rms_norm_eps");
  EXPECT_EQ(config, json({{"model_type", "llama"},
                          {"architectures", json::array({"LlamaForCausalLM"})},
                          {"_name_or_path", "golden llama"},
                          {"hidden_size", 32},
                          {"num_hidden_layers", 1},
                          {"num_attention_heads", 4},
                          {"num_key_value_heads", 2},
                          {"head_dim", 8},
                          {"intermediate_size", 48},
                          {"vocab_size", 24},
                          {"max_position_embeddings", 64},
                          {"rope_theta", 500000.0},
                          {"hidden_act", "silu"},
                          {"tie_word_embeddings", false},
                          {"attention_bias", true},
                          {"mlp_bias", false},
                          {"bos_token_id", 1},
                          {"eos_token_id", 2}}));
}

TEST(CheckpointTest, TranslatesTiedEmbeddingsAndYarn) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const Opened opened, OpenCheckpoint(dir.Unpack("checkpoint/qwen3.gguf.xz")));
  EXPECT_EQ(opened->config()["model_type"], "qwen3");
  EXPECT_EQ(opened->config()["tie_word_embeddings"], true);
  EXPECT_EQ(
      opened->config()["rope_scaling"],
      json({{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 16}}));
}

TEST(CheckpointTest, TranslatesABertWithItsPooling) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const Opened opened, OpenCheckpoint(dir.Unpack("checkpoint/bert.gguf.xz")));
  const json& config = opened->config();
  EXPECT_EQ(config["architectures"], json::array({"BertModel"}));
  EXPECT_EQ(config["type_vocab_size"], 2);
  EXPECT_FLOAT_EQ(config["layer_norm_eps"].get<float>(), 1e-12f);
  EXPECT_EQ(config["sentence_transformers"]["pooling"]["pooling_mode_mean_tokens"], true);
  EXPECT_FALSE(config.contains("rope_theta"));
}

TEST(CheckpointTest, HandsTheTokenizerItsMetadata) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const Opened opened, OpenCheckpoint(dir.Unpack("checkpoint/llama.gguf.xz")));
  const json& tokenizer = opened->tokenizer();
  EXPECT_EQ(tokenizer["format"], "gguf");
  EXPECT_EQ(tokenizer["metadata"]["tokenizer.ggml.model"], "llama");
  EXPECT_EQ(tokenizer["metadata"]["tokenizer.ggml.tokens"].size(), 24u);
  EXPECT_FALSE(tokenizer["metadata"].contains("general.architecture"));
}

TEST(CheckpointTest, TheContentHashOfOneFileIsItsSha256) {
  const TempDir dir;
  const std::string bytes = ReadGolden("checkpoint/llama.gguf.xz");
  ASSERT_OK_AND_ASSIGN(const Opened opened, OpenCheckpoint(dir.Write("a.gguf", bytes)));
  EXPECT_THAT(opened->ContentHash(), IsOkAndHolds(Sha256Hex(bytes)));
  EXPECT_THAT(opened->ContentHash(), IsOkAndHolds(Sha256Hex(bytes)));
  EXPECT_EQ(opened->file_bytes(), bytes.size());
}

TEST(CheckpointTest, TheContentHashOfADirectoryIsThatOfItsSha256sumListing) {
  const TempDir dir;
  const std::string weights = ReadGolden("checkpoint/bert.safetensors.xz");
  dir.Write("model.safetensors", weights);
  dir.Write("config.json", "{}");
  ASSERT_OK_AND_ASSIGN(const Opened opened, OpenCheckpoint(dir.path()));
  const std::string listing =
      Sha256Hex("{}") + "  config.json\n" + Sha256Hex(weights) + "  model.safetensors\n";
  EXPECT_THAT(opened->ContentHash(), IsOkAndHolds(Sha256Hex(listing)));
}

TEST(CheckpointTest, ValuesAreTheSameAfterTheirPagesWereDropped) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const Opened opened,
                       OpenCheckpoint(dir.Unpack("checkpoint/blocks.gguf.xz")));
  const std::vector<float> before = ValuesOf(*opened, "random.f32");
  opened->DropResident("random.f32");
  opened->DropResident("no such tensor");  // nothing to let go
  EXPECT_EQ(ValuesOf(*opened, "random.f32"), before);
}

TEST(CheckpointTest, SaysWhatItLookedFor) {
  const TempDir dir;
  constexpr auto kNotFound = absl::StatusCode::kNotFound;
  EXPECT_THAT(OpenCheckpoint("/no/such/path"), StatusIs(kNotFound, HasSubstr("/no/such/path")));
  EXPECT_THAT(OpenCheckpoint(dir.path()),
              StatusIs(kNotFound, HasSubstr("model.safetensors.index.json")));
  EXPECT_THAT(OpenCheckpoint(dir.Write("weights.bin", "x")),
              StatusIs(kNotFound, HasSubstr("weights.bin")));
}

TEST(CheckpointTest, ADirectoryWithOneGgufIsThatFileAndWithTwoIsAmbiguous) {
  const TempDir dir;
  const std::string bytes = ReadGolden("checkpoint/llama.gguf.xz");
  dir.Write("a.gguf", bytes);
  EXPECT_THAT(OpenCheckpoint(dir.path()), IsOk());
  dir.Write("b.gguf", bytes);
  EXPECT_THAT(OpenCheckpoint(dir.path()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("ggufs=2")));
}

}  // namespace
}  // namespace assay
