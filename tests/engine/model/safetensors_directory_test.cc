// Hugging Face directories: shards, configuration, tokenizer, sentence-transformers.
#include <gmock/gmock.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/model/checkpoint.h"
#include "engine/model/checkpoint_text.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

// A file with one tensor [2] f32 of each name; all its values are `value`.
std::string Weights(const std::vector<std::string>& names, float value) {
  json header = json::object();
  uint64_t at = 0;
  std::string data;
  for (const std::string& name : names) {
    header[name] = {
        {"dtype", "F32"}, {"shape", json::array({2})}, {"data_offsets", json::array({at, at + 8})}};
    at += 8;
    for (int i = 0; i < 2; ++i) data.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  const std::string text = header.dump();
  const uint64_t size = text.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &size, sizeof size);
  return file + text + data;
}

// Two shards: {a, b} and {c}.
struct Sharded {
  TempDir dir;
  json map = {{"a", "one.safetensors"}, {"b", "one.safetensors"}, {"c", "two.safetensors"}};
  Sharded() {
    dir.Write("one.safetensors", Weights({"a", "b"}, 1.0f));
    dir.Write("two.safetensors", Weights({"c"}, 2.0f));
  }
  absl::StatusOr<std::unique_ptr<const Checkpoint>> Open() const {
    dir.Write("model.safetensors.index.json",
              json({{"metadata", json::object()}, {"weight_map", map}}).dump());
    return OpenCheckpoint(dir.path());
  }
};

TEST(SafetensorsDirectoryTest, ReadsTensorsFromTheirShards) {
  const Sharded model;
  ASSERT_OK_AND_ASSIGN(const auto opened, model.Open());
  ASSERT_EQ(opened->tensors().size(), 3u);
  for (const auto& [name, value] :
       std::vector<std::pair<std::string, float>>{{"a", 1.0f}, {"b", 1.0f}, {"c", 2.0f}}) {
    ASSERT_OK_AND_ASSIGN(const Tensor tensor, opened->ReadAll(name));
    EXPECT_EQ(tensor.data<float>()[1], value) << name;
  }
}

TEST(SafetensorsDirectoryTest, NamesAMissingShard) {
  Sharded model;
  model.map["d"] = "three.safetensors";
  EXPECT_THAT(model.Open(),
              StatusIs(kDataLoss, AllOf(HasSubstr("'three.safetensors'"), HasSubstr("missing"))));
}

TEST(SafetensorsDirectoryTest, RefusesShardsOutsideOfTheDirectory) {
  for (const std::string shard : {"../one.safetensors", "/etc/one.safetensors",
                                  "sub/../../one.safetensors", "..", "", "a\\one.safetensors"}) {
    Sharded model;
    model.map["a"] = shard;
    EXPECT_THAT(model.Open(),
                StatusIs(kInvalid, AllOf(HasSubstr("'a'"), HasSubstr("of this directory"))))
        << shard;
  }
}

TEST(SafetensorsDirectoryTest, RefusesAnIndexThatNamesItselfOrNoText) {
  Sharded model;
  model.map["a"] = "model.safetensors.index.json";
  EXPECT_THAT(model.Open(), StatusIs(kInvalid, HasSubstr("index.json'")));
  model.map["a"] = 7;
  EXPECT_THAT(model.Open(), StatusIs(kInvalid, HasSubstr("'a'")));
}

TEST(SafetensorsDirectoryTest, RefusesATensorInTwoShards) {
  Sharded model;
  model.dir.Write("two.safetensors", Weights({"b", "c"}, 2.0f));
  EXPECT_THAT(model.Open(), StatusIs(kInvalid, AllOf(HasSubstr("'b'"), HasSubstr("twice"))));
}

TEST(SafetensorsDirectoryTest, RefusesAnIndexThatDisagreesWithItsShards) {
  Sharded missing;
  missing.map["d"] = "two.safetensors";
  EXPECT_THAT(missing.Open(),
              StatusIs(kDataLoss, AllOf(HasSubstr("'d'"), HasSubstr("not in its shard"))));
  Sharded moved;
  moved.map["b"] = "two.safetensors";
  EXPECT_THAT(moved.Open(),
              StatusIs(kDataLoss, AllOf(HasSubstr("'b'"), HasSubstr("'one.safetensors'"))));
  Sharded unlisted;
  unlisted.map.erase("a");
  EXPECT_THAT(unlisted.Open(), StatusIs(kDataLoss, HasSubstr("'a'")));
}

TEST(SafetensorsDirectoryTest, RefusesAnIndexWithoutAMap) {
  const Sharded model;
  for (const std::string index : {"{}", "[]", R"({"weight_map":{}})", R"({"weight_map":[]})"}) {
    model.dir.Write("model.safetensors.index.json", index);
    EXPECT_THAT(OpenCheckpoint(model.dir.path()), StatusIs(kDataLoss, HasSubstr("weight_map")))
        << index;
  }
}

TEST(SafetensorsDirectoryTest, NamesTheFileOfABrokenShard) {
  Sharded model;
  model.dir.Write("two.safetensors", Weights({"c"}, 2.0f).substr(0, 20));
  EXPECT_THAT(model.Open(), StatusIs(kDataLoss, HasSubstr("two.safetensors")));
}

TEST(SafetensorsDirectoryTest, ReadsTheJsonFilesBesideTheWeights) {
  const TempDir dir;
  dir.Write("config.json", R"({"model_type":"llama"})");
  dir.Write("generation_config.json", R"({"eos_token_id":[1,2]})");
  dir.Write("tokenizer.json", R"({"model":{"type":"BPE"}})");
  dir.Write("tokenizer_config.json", R"({"eos_token":"</s>"})");
  dir.Write("chat_template.jinja", "{{ messages }}");
  const std::string weights = dir.Write("model.safetensors", Weights({"a"}, 1.0f));
  for (const std::string& path : {dir.path(), weights}) {
    ASSERT_OK_AND_ASSIGN(const auto opened, OpenCheckpoint(path));
    EXPECT_EQ(opened->config(),
              json::parse(R"({"model_type":"llama","generation_config":{"eos_token_id":[1,2]}})"));
    EXPECT_EQ(opened->tokenizer(),
              json::parse(R"({"format":"huggingface","tokenizer":{"model":{"type":"BPE"}},
                                                   "config":{"eos_token":"</s>","chat_template":"{{ messages }}"}})"));
  }
}

TEST(SafetensorsDirectoryTest, OpensWeightsAlone) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const auto opened,
                       OpenCheckpoint(dir.Write("x.safetensors", Weights({"a"}, 1.0f))));
  EXPECT_EQ(opened->config(), json::object());
  EXPECT_EQ(opened->tokenizer(),
            json::parse(R"({"format":"huggingface","tokenizer":null,"config":{}})"));
}

TEST(SafetensorsDirectoryTest, ReadsTheStagesOfSentenceTransformers) {
  const TempDir dir;
  dir.Write("model.safetensors", Weights({"a"}, 1.0f));
  dir.Write("modules.json",
            R"([{"idx":0,"path":"","type":"sentence_transformers.models.Transformer"},
                                {"idx":1,"path":"1_Pooling","type":"sentence_transformers.models.Pooling"},
                                {"idx":2,"path":"2_Normalize","type":"sentence_transformers.models.Normalize"}])");
  dir.Write("1_Pooling/config.json", R"({"pooling_mode_mean_tokens":true})");
  dir.Write("sentence_bert_config.json", R"({"max_seq_length":256,"do_lower_case":false})");
  ASSERT_OK_AND_ASSIGN(const auto opened, OpenCheckpoint(dir.path()));
  EXPECT_EQ(
      opened->config()["sentence_transformers"],
      json::parse(
          R"({"pooling":{"pooling_mode_mean_tokens":true},"normalize":true,"max_seq_length":256,
                            "modules":["Transformer","Pooling","Normalize"]})"));
}

TEST(SafetensorsDirectoryTest, RefusesAModuleOutsideOfTheDirectory) {
  const TempDir dir;
  dir.Write("model.safetensors", Weights({"a"}, 1.0f));
  for (const std::string modules :
       {R"([{"type":"x.Pooling","path":"../other"}])", R"([{"type":"x.Pooling","path":"/etc"}])",
        R"([{"path":"1_Pooling"}])", "[7]"}) {
    dir.Write("modules.json", modules);
    EXPECT_THAT(OpenCheckpoint(dir.path()), StatusIs(kInvalid, HasSubstr("modules.json")))
        << modules;
  }
}

TEST(SafetensorsDirectoryTest, NamesABrokenJsonFile) {
  const TempDir dir;
  dir.Write("model.safetensors", Weights({"a"}, 1.0f));
  dir.Write("config.json", "{\"a\":");
  EXPECT_THAT(OpenCheckpoint(dir.path()), StatusIs(kDataLoss, HasSubstr("config.json")));
  dir.Write("config.json", "[1]");
  EXPECT_THAT(OpenCheckpoint(dir.path()),
              StatusIs(kInvalid, AllOf(HasSubstr("config.json"), HasSubstr("type=array"))));
}

TEST(BoundedJsonTest, RefusesDeepNestingBeforeParsing) {
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  EXPECT_THAT(ParseBoundedJson(deep, "f.json"),
              StatusIs(kInvalid, AllOf(HasSubstr("f.json"), HasSubstr("offset=64"))));
  EXPECT_OK(ParseBoundedJson(std::string(64, '[') + std::string(64, ']'), "f.json"));
}

TEST(BoundedJsonTest, BracketsInsideOfTextDoNotNest) {
  EXPECT_OK(ParseBoundedJson(
      "[\"" + std::string(1000, '[') + "\\\"" + std::string(1000, '{') + "\"]", "f.json"));
}

TEST(BoundedJsonTest, RefusesTextThatIsNotUtf8) {
  EXPECT_THAT(ParseBoundedJson("{\"a\":\"\xff\"}", "f.json"),
              StatusIs(kInvalid, AllOf(HasSubstr("UTF-8"), HasSubstr("offset=6"))));
}

TEST(BoundedJsonTest, RefusesTooManyValues) {
  std::string many(16'000'001, ',');
  EXPECT_THAT(ParseBoundedJson(many, "f.json"), StatusIs(kInvalid, HasSubstr("too many values")));
}

}  // namespace
}  // namespace assay
