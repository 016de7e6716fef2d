#include "engine/model/tokenizer/text_tokenizer.h"

#include <nlohmann/json.hpp>

#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Ids = std::vector<int32_t>;

constexpr size_t kMegabyte = 1 << 20;

std::unique_ptr<const Tokenizer> Load(const std::string& name) {
  json file = ReadGoldenJson("vocab/" + name + ".tokenizer.json.xz");
  const bool is_gguf = file.contains("format");
  auto made = MakeTokenizer(is_gguf ? std::move(file)
                                    : json{{"format", "huggingface"},
                                           {"tokenizer", std::move(file)},
                                           {"config", {{"eos_token", {{"content", "</s>"}}}}}});
  EXPECT_OK(made);
  return *std::move(made);
}

TEST(TextTokenizerTest, SmolLm2KnowsItsTokens) {
  const auto tokenizer = Load("smollm2");
  EXPECT_EQ(tokenizer->kind(), "bpe");
  EXPECT_EQ(tokenizer->vocab_size(), 49152);
  EXPECT_EQ(tokenizer->TokenId("<|im_start|>"), 1);
  EXPECT_EQ(tokenizer->TokenText(1), "<|im_start|>");
  EXPECT_EQ(tokenizer->TokenId("no such token"), std::nullopt);
  EXPECT_EQ(tokenizer->TokenText(-1), "");
  EXPECT_EQ(tokenizer->TokenText(49152), "");
  EXPECT_TRUE(tokenizer->is_special(2));
  EXPECT_FALSE(tokenizer->is_special(28));
  EXPECT_FALSE(tokenizer->is_special(49152));
  EXPECT_THAT(tokenizer->end_tokens(), ElementsAre(0, 2));  // <|endoftext|>, <|im_end|>
}

TEST(TextTokenizerTest, SmolLm2AddsItsDefaultSystemPrompt) {
  const auto tokenizer = Load("smollm2");
  const std::vector<ChatMessage> messages = {{"user", "Hi"}};
  EXPECT_THAT(tokenizer->ApplyChatTemplate(messages),
              IsOkAndHolds("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
                           "trained by Hugging Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                           "<|im_start|>assistant\n"));
}

TEST(TextTokenizerTest, SpecialTokensInTheTextAreTextUnlessParsed) {
  const auto tokenizer = Load("smollm2");
  ASSERT_OK_AND_ASSIGN(const Ids parsed, tokenizer->Encode("<|im_end|>", false, true));
  EXPECT_THAT(parsed, ElementsAre(2));
  ASSERT_OK_AND_ASSIGN(const Ids plain, tokenizer->Encode("a<|im_end|>b", false, false));
  for (const int32_t id : plain) EXPECT_FALSE(tokenizer->is_special(id));
  EXPECT_THAT(tokenizer->Decode(plain, true), IsOkAndHolds("a<|im_end|>b"));
}

// "<s>" could be merged together from "<", "s" and ">".
TEST(TextTokenizerTest, PiecesDoNotMergeIntoSpecialTokens) {
  json metadata = {{"tokenizer.ggml.model", "llama"},
                   {"tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "<", "s", ">", "<s"}},
                   {"tokenizer.ggml.scores", {0, 0, 0, -1, -1, -1, -1}},
                   {"tokenizer.ggml.token_type", {2, 3, 3, 1, 1, 1, 1}},
                   {"tokenizer.ggml.add_space_prefix", false}};
  ASSERT_OK_AND_ASSIGN(const auto tokenizer,
                       MakeTokenizer({{"format", "gguf"}, {"metadata", metadata}}));
  EXPECT_THAT(tokenizer->Encode("<s>", false, false), IsOkAndHolds(Ids{6, 5}));
  EXPECT_THAT(tokenizer->Encode("<s>", true, true), IsOkAndHolds(Ids{1, 1}));
}

TEST(TextTokenizerTest, MetadataSaysWhatStandsAroundTheText) {
  json spec = ReadGoldenJson("vocab/sentencepiece_bpe.tokenizer.json.xz");
  ASSERT_OK_AND_ASSIGN(const auto by_default, MakeTokenizer(spec));
  EXPECT_THAT(by_default->Encode("", true, false), IsOkAndHolds(Ids{1}));
  spec["metadata"]["tokenizer.ggml.add_bos_token"] = false;
  spec["metadata"]["tokenizer.ggml.add_eos_token"] = true;
  ASSERT_OK_AND_ASSIGN(const auto other, MakeTokenizer(spec));
  EXPECT_THAT(other->Encode("", true, false), IsOkAndHolds(Ids{2}));
  EXPECT_THAT(other->Encode("", false, false), IsOkAndHolds(IsEmpty()));
}

TEST(TextTokenizerTest, EndTokensComeFromTheConfigToo) {
  EXPECT_THAT(Load("byte_level_bpe")->end_tokens(), ElementsAre(2));
}

TEST(TextTokenizerTest, TextMustBeUtf8) {
  const auto tokenizer = Load("smollm2");
  EXPECT_THAT(tokenizer->Encode("ab\xFF", false, false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("0xff at offset 2 of 3")));
  EXPECT_THAT(tokenizer->Encode("\xE2\x82", true, true),  // truncated
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("offset 0")));
  EXPECT_THAT(tokenizer->Encode("a\xED\xA0\x80", true, true),  // a surrogate
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("offset 1")));
  EXPECT_THAT(tokenizer->Encode("\xC0\x80", true, true),  // overlong
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("offset 0")));
}

TEST(TextTokenizerTest, DecodeRefusesIdsOutsideTheVocabulary) {
  const auto tokenizer = Load("smollm2");
  EXPECT_THAT(tokenizer->Decode(Ids{28, 49152}, true),
              StatusIs(absl::StatusCode::kOutOfRange,
                       HasSubstr("49152 at position 1 is not in [0, 49152)")));
  EXPECT_THAT(tokenizer->Decode(Ids{-1}, true),
              StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("-1")));
}

TEST(TextTokenizerTest, AStreamHoldsACharacterBackUntilItIsWhole) {
  const auto tokenizer = Load("sentencepiece_bpe");
  const auto byte = [&](const char* name) { return *tokenizer->TokenId(name); };
  const Ids llama = {byte("<0xF0>"), byte("<0x9F>"), byte("<0xA6>"), byte("<0x99>")};
  const auto stream = tokenizer->NewStreamDecoder();
  EXPECT_EQ(stream->Push(byte("<0x41>")), "A");
  EXPECT_EQ(stream->Push(llama[0]), "");
  EXPECT_EQ(stream->Push(llama[1]), "");
  EXPECT_EQ(stream->Push(llama[2]), "");
  EXPECT_EQ(stream->Push(llama[3]), "🦙");
  EXPECT_EQ(stream->Push(llama[0]), "");
  EXPECT_EQ(stream->Push(byte("<0x42>")),
            "\xEF\xBF\xBD"
            "B");  // the sequence can no longer complete
  EXPECT_EQ(stream->Push(llama[0]), "");
  EXPECT_EQ(stream->Push(-7), "");
  EXPECT_EQ(stream->Flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream->Flush(), "");
}

// Only the invalid part of a run of bytes is lost.
TEST(TextTokenizerTest, DecodeReplacesInvalidBytesOnly) {
  const auto tokenizer = Load("sentencepiece_bpe");
  const Ids ids = {*tokenizer->TokenId("<0xC3>"), *tokenizer->TokenId("<0xA9>"),
                   *tokenizer->TokenId("<0xFF>"), *tokenizer->TokenId("<0x41>")};
  EXPECT_THAT(tokenizer->Decode(ids, true), IsOkAndHolds("é\xEF\xBF\xBD"
                                                         "A"));
}

// A megabyte without a place to cut: what is quadratic does not end within the test's time limit.
class MegabyteTest : public testing::TestWithParam<const char*> {};

TEST_P(MegabyteTest, OneCharacterAMillionTimesIsEncodedAndDecoded) {
  const auto tokenizer = Load(GetParam());
  for (const char c : {'a', ' ', '!'}) {
    const std::string text(kMegabyte, c);
    ASSERT_OK_AND_ASSIGN(const Ids ids, tokenizer->Encode(text, false, true));
    ASSERT_OK_AND_ASSIGN(const std::string back, tokenizer->Decode(ids, true));
    EXPECT_EQ(back, text) << c;
  }
}

INSTANTIATE_TEST_SUITE_P(All, MegabyteTest,
                         testing::Values("smollm2", "llama3_like", "sentencepiece_bpe"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace assay
