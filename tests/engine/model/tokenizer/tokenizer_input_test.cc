// Broken and unsupported tokenizers: the specific error, with the value.
#include <nlohmann/json.hpp>

#include "engine/model/tokenizer.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json HuggingFace() {
  return {{"format", "huggingface"},
          {"config", json::object()},
          {"tokenizer",
           {{"added_tokens", json::array({{{"id", 4}, {"content", "<s>"}, {"special", true}}})},
            {"normalizer", nullptr},
            {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
            {"post_processor", nullptr},
            {"decoder", {{"type", "ByteLevel"}}},
            {"model",
             {{"type", "BPE"},
              {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}, {"c", 3}}},
              {"merges", json::array({"a b"})}}}}}};
}

json Gguf() {
  return {{"format", "gguf"},
          {"metadata",
           {{"tokenizer.ggml.model", "gpt2"},
            {"tokenizer.ggml.pre", "gpt-2"},
            {"tokenizer.ggml.tokens", {"a", "b", "ab", "<s>"}},
            {"tokenizer.ggml.token_type", {1, 1, 1, 3}},
            {"tokenizer.ggml.merges", json::array({"a b"})},
            {"tokenizer.ggml.eos_token_id", 3}}}};
}

struct Change {
  const char* pointer;  // JSON pointer into the specification
  json value;           // what stands there instead; discarded: the field is removed
  absl::StatusCode code;
  const char* message;
};

void ExpectErrors(const json& good, const std::vector<Change>& changes) {
  ASSERT_OK(MakeTokenizer(good));
  for (const Change& change : changes) {
    json spec = good;
    const json::json_pointer at(change.pointer);
    if (change.value.is_discarded()) {
      spec[at.parent_pointer()].erase(at.back());
    } else {
      spec[at] = change.value;
    }
    EXPECT_THAT(MakeTokenizer(spec), StatusIs(change.code, HasSubstr(change.message)))
        << change.pointer << " = " << change.value;
  }
}

const json kRemoved = json(json::value_t::discarded);
constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kUnimplemented = absl::StatusCode::kUnimplemented;

TEST(TokenizerInputTest, RefusesAnUnknownFormat) {
  EXPECT_THAT(MakeTokenizer(json()), StatusIs(kInvalid, HasSubstr("tokenizer.format")));
  EXPECT_THAT(MakeTokenizer({{"format", "vocab.txt"}}), StatusIs(kInvalid, HasSubstr("vocab.txt")));
}

TEST(TokenizerInputTest, RefusesABrokenVocabulary) {
  ExpectErrors(
      HuggingFace(),
      {{"/tokenizer", kRemoved, kInvalid, "tokenizer.model must be an object: missing"},
       {"/tokenizer/model/vocab", kRemoved, kInvalid, "model.vocab must be an object: missing"},
       {"/tokenizer/model/vocab", 7, kInvalid, "model.vocab must be an object: 7"},
       {"/tokenizer/model/vocab/c", "x", kInvalid, "model.vocab of 'c' must be a token id"},
       {"/tokenizer/model/vocab/c", -1, kInvalid, "in [0, 2147483647): -1"},
       {"/tokenizer/model/vocab/c", 1e3, kInvalid, "1000.0"},
       {"/tokenizer/model/vocab/c", 18446744073709551615u, kInvalid, "18446744073709551615"},
       {"/tokenizer/model/vocab/c", 17, kInvalid, "id 17 but there are only 5 tokens"},
       {"/tokenizer/model/vocab/c", 1, kInvalid, "id 1 belongs to two tokens: 'b' and 'c'"},
       {"/tokenizer/model/vocab", json::object(), kInvalid, "id 4 but there are only 1"},
       {"/tokenizer/added_tokens/0/id", 3, kInvalid, "id 3 belongs to two tokens"},
       {"/tokenizer/added_tokens/0/id", kRemoved, kInvalid, "added_tokens.id"},
       {"/tokenizer/added_tokens/0/content", 5, kInvalid, "content must be a string: 5"},
       {"/tokenizer/added_tokens/0/content", "a", kInvalid,
        "'a' has id 4 but the model's vocabulary gives it 0"},
       {"/tokenizer/added_tokens/0/lstrip", "yes", kInvalid, "lstrip must be true or false: 'yes'"},
       {"/tokenizer/added_tokens", "x", kInvalid, "added_tokens must be an array"}});
}

TEST(TokenizerInputTest, RefusesABrokenModel) {
  ExpectErrors(
      HuggingFace(),
      {{"/tokenizer/model/merges", kRemoved, kInvalid, "model.merges must be an array: missing"},
       {"/tokenizer/model/merges/0", "a x", kInvalid, "not in the vocabulary: 'x'"},
       {"/tokenizer/model/merges/0", "b a", kInvalid, "not in the vocabulary: 'ba'"},
       {"/tokenizer/model/merges/0", "ab", kInvalid, "model.merges[0] must be two tokens: 'ab'"},
       {"/tokenizer/model/merges/0", "a b c", kInvalid, "model.merges[0]"},
       {"/tokenizer/model/merges/0", json::array({"a"}), kInvalid, "model.merges[0]"},
       {"/tokenizer/model/unk_token", "?", kInvalid, "unk_token is not in the vocabulary: '?'"},
       {"/tokenizer/model/dropout", 0.1, kUnimplemented, "dropout is not supported: 0.1"},
       {"/tokenizer/model/type", "WordLevel", kUnimplemented, "'WordLevel' is not supported"},
       {"/tokenizer/model/type", 3, kInvalid, "type must be a string: 3"},
       {"/tokenizer/model/type", "WordPiece", kInvalid, "WordPiece needs model.unk_token"},
       {"/tokenizer/model/type", "Unigram", kInvalid, "model.vocab must be an array"}});
}

TEST(TokenizerInputTest, RefusesABrokenUnigramModel) {
  json spec = HuggingFace();
  spec["tokenizer"]["model"] = {{"type", "Unigram"}, {"unk_id", 0}};
  json& vocab = spec["tokenizer"]["model"]["vocab"] = json::array();
  for (const char* text : {"<unk>", "a", "b"}) vocab.push_back(json::array({text, -1.5}));
  spec["tokenizer"]["added_tokens"] = nullptr;
  ExpectErrors(spec, {{"/tokenizer/model/unk_id", 3, kInvalid, "model.unk_id must be a token id"},
                      {"/tokenizer/model/unk_id", nullptr, kInvalid, "neither an unknown token"},
                      {"/tokenizer/model/vocab/1", "a", kInvalid, "model.vocab[1] must be [text"},
                      {"/tokenizer/model/vocab/1", json::array({"a", "b"}), kInvalid, "vocab[1]"},
                      {"/tokenizer/model/vocab/2/0", "a", kInvalid, "'a' has two ids: 1 and 2"}});
}

TEST(TokenizerInputTest, RefusesBrokenComponents) {
  const json bad_regex = {{"type", "Split"}, {"pattern", {{"Regex", "a("}}}};
  const json cut_charsmap = {{"type", "Precompiled"}, {"precompiled_charsmap", "/////w=="}};
  ExpectErrors(
      HuggingFace(),
      {{"/tokenizer/pre_tokenizer", bad_regex, kInvalid, "invalid regular expression"},
       {"/tokenizer/pre_tokenizer", json::array(), kInvalid, "pre_tokenizer.type"},
       {"/tokenizer/pre_tokenizer", {{"type", "Split"}}, kInvalid, "Split.pattern.Regex"},
       {"/tokenizer/pre_tokenizer", {{"type", "Sequence"}}, kInvalid, "pretokenizers"},
       {"/tokenizer/pre_tokenizer",
        {{"type", "Punctuation"}, {"behavior", "Odd"}},
        kInvalid,
        "'Odd'"},
       {"/tokenizer/pre_tokenizer",
        {{"type", "Metaspace"}, {"replacement", ""}},
        kInvalid,
        "one character: ''"},
       {"/tokenizer/pre_tokenizer",
        {{"type", "UnicodeScripts"}},
        kUnimplemented,
        "'UnicodeScripts'"},
       {"/tokenizer/normalizer", {{"type", "Nmt"}}, kUnimplemented, "normalizer 'Nmt'"},
       {"/tokenizer/normalizer",
        {{"type", "Replace"}, {"content", "x"}},
        kInvalid,
        "Replace.pattern.Regex"},
       {"/tokenizer/normalizer", cut_charsmap, kInvalid, "does not fit into 4"},
       {"/tokenizer/normalizer",
        {{"type", "Precompiled"}, {"precompiled_charsmap", "*"}},
        kInvalid,
        "not base64: '*'"},
       {"/tokenizer/decoder", {{"type", "CTC"}}, kUnimplemented, "decoder 'CTC'"},
       {"/tokenizer/decoder",
        {{"type", "Strip"}, {"content", " "}, {"start", -1}},
        kInvalid,
        "start=-1"},
       {"/tokenizer/post_processor", {{"type", "Other"}}, kUnimplemented, "post_processor 'Other'"},
       {"/tokenizer/post_processor",
        {{"type", "BertProcessing"}, {"cls", {"x", 99}}, {"sep", {"y", 1}}},
        kInvalid,
        "post_processor.cls must be a token id in [0, 5): 99"}});
}

TEST(TokenizerInputTest, SurvivesDeepNesting) {
  json spec = HuggingFace();
  json nested = {{"type", "NFC"}};
  for (int i = 0; i < 10000; ++i) {
    json outer = {{"type", "Sequence"}, {"normalizers", json::array()}};
    outer["normalizers"].push_back(std::move(nested));
    nested = std::move(outer);
  }
  spec["tokenizer"]["normalizer"] = std::move(nested);
  EXPECT_OK(MakeTokenizer(std::move(spec)));
}

TEST(TokenizerInputTest, RefusesBrokenGgufMetadata) {
  ExpectErrors(
      Gguf(),
      {{"/metadata", kRemoved, kInvalid, "tokenizer.ggml.model must be a string: missing"},
       {"/metadata/tokenizer.ggml.model", "rwkv", kUnimplemented, "'rwkv' is not supported"},
       {"/metadata/tokenizer.ggml.pre", "martian", kUnimplemented, "'martian' is not supported"},
       {"/metadata/tokenizer.ggml.tokens", kRemoved, kInvalid, "tokenizer.ggml.tokens"},
       {"/metadata/tokenizer.ggml.tokens", json::array(), kInvalid, "token_type has 4 entries"},
       {"/metadata/tokenizer.ggml.tokens/1", 5, kInvalid, "tokens[1] must be a string: 5"},
       {"/metadata/tokenizer.ggml.tokens/1", "a", kInvalid, "'a' has two ids: 0 and 1"},
       {"/metadata/tokenizer.ggml.token_type/0", 1.5, kInvalid, "token_type[0]"},
       {"/metadata/tokenizer.ggml.merges", kRemoved, kInvalid, "tokenizer.ggml.merges"},
       {"/metadata/tokenizer.ggml.merges/0", "", kInvalid, "merges[0] must be two tokens: ''"},
       {"/metadata/tokenizer.ggml.merges/0", "a z", kInvalid, "not in the vocabulary: 'z'"},
       {"/metadata/tokenizer.ggml.eos_token_id", 4, kInvalid, "in [0, 4): 4"},
       {"/metadata/tokenizer.ggml.add_bos_token", true, kInvalid, "without the token's id"},
       {"/metadata/tokenizer.ggml.model", "llama", kInvalid, "tokenizer.ggml.scores"},
       {"/metadata/tokenizer.ggml.model", "bert", kInvalid, "unknown_token_id"},
       {"/metadata/tokenizer.chat_template", 1, kInvalid, "chat_template must be a string: 1"}});
}

TEST(TokenizerInputTest, SentencePieceNeedsAWayToSpellEverything) {
  json spec = Gguf();
  spec["metadata"]["tokenizer.ggml.model"] = "llama";
  spec["metadata"]["tokenizer.ggml.scores"] = {-1, -2, -3, 0};
  EXPECT_THAT(MakeTokenizer(spec), StatusIs(kInvalid, HasSubstr("neither all byte tokens")));
  spec["metadata"]["tokenizer.ggml.scores"] = {-1, -2};
  EXPECT_THAT(MakeTokenizer(spec), StatusIs(kInvalid, HasSubstr("2 entries for 4 tokens")));
}

TEST(TokenizerInputTest, APatternThatGivesUpIsAnErrorNotAHang) {
  json spec = HuggingFace();
  spec["tokenizer"]["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(a|aa)+$"}}}};
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, MakeTokenizer(spec));
  EXPECT_THAT(tokenizer->Encode(std::string(60, 'a') + "c", false, false),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("(a|aa)+$")));
}

TEST(TokenizerInputTest, AStreamMayBeginInTheMiddleOfACharacter) {
  json spec = HuggingFace();
  spec["tokenizer"]["model"]["vocab"]["\xc4\xa2"] = 5;  // U+0122: the byte 0x80, which ends one
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, MakeTokenizer(spec));
  const auto stream = tokenizer->NewStreamDecoder();
  EXPECT_EQ(stream->Push(5) + stream->Flush(), "\xef\xbf\xbd");
}

json Replaces(const json& pattern, int steps) {
  json all = json::array();
  for (int i = 0; i < steps; ++i) {
    all.push_back({{"type", "Replace"}, {"pattern", pattern}, {"content", std::string(1000, 'a')}});
  }
  return all;
}

TEST(TokenizerInputTest, ShortRulesDoNotMakeGigabytesOfAText) {
  for (const json& pattern : {json{{"String", "a"}}, json{{"Regex", "a"}}}) {
    for (const int steps : {1, 5}) {  // 5: 10^15 bytes for one
      json spec = HuggingFace();
      spec["tokenizer"]["normalizer"] = {{"type", "Sequence"},
                                         {"normalizers", Replaces(pattern, steps)}};
      ASSERT_OK_AND_ASSIGN(const auto tokenizer, MakeTokenizer(spec));
      EXPECT_THAT(tokenizer->Encode(std::string(70000, 'a'), false, false),
                  StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("of a text of 70000")));
    }
  }
}

TEST(TokenizerInputTest, ShortRulesDoNotMakeGigabytesOfAToken) {
  json spec = HuggingFace();
  spec["tokenizer"]["decoder"] = {{"type", "Sequence"},
                                  {"decoders", Replaces({{"String", "a"}}, 5)}};
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, MakeTokenizer(spec));
  const std::vector<int32_t> ids = {0};
  ASSERT_OK_AND_ASSIGN(const std::string text, tokenizer->Decode(ids, false));
  EXPECT_EQ(text, std::string(1000, 'a'));  // the second step would make a million of it
}

}  // namespace
}  // namespace assay
