#include "engine/lifecycle/calibration_set.h"

#include <nlohmann/json.hpp>
#include <set>

#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

// A byte-level BPE with a ChatML template, small enough to be read.
nlohmann::json ChatTokenizer() {
  nlohmann::json vocab;
  for (int c = 33; c < 127; ++c) vocab[std::string(1, static_cast<char>(c))] = c - 33;
  int next = 94;
  for (const char* token : {"Ġ", "Ċ", "Ð", "³", "´", "°", "Ã", "©"}) vocab[token] = next++;
  const auto added = [](int id, const char* content) {
    return nlohmann::json{{"id", id},        {"content", content}, {"single_word", false},
                          {"lstrip", false}, {"rstrip", false},    {"normalized", false},
                          {"special", true}};
  };
  return {{"format", "huggingface"},
          {"tokenizer",
           {{"added_tokens", {added(102, "<|im_start|>"), added(103, "<|im_end|>")}},
            {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
            {"decoder", {{"type", "ByteLevel"}}},
            {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}}},
          {"config",
           {{"eos_token", "<|im_end|>"},
            {"chat_template",
             "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
             "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt "
             "%}{{ '<|im_start|>assistant\n' }}{% endif %}"}}}};
}

class CalibrationSetTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(Stories260k()));
    ASSERT_OK_AND_ASSIGN(tokenizer_, MakeTokenizer(checkpoint->tokenizer()));
    ASSERT_OK_AND_ASSIGN(spec_, FamilyOf(*checkpoint).value()->parse(*checkpoint));
    ASSERT_OK_AND_ASSIGN(chat_, MakeTokenizer(ChatTokenizer()));
  }
  absl::StatusOr<CalibrationSet> Make(std::string_view bytes, const std::string& origin,
                                      CalibrationSize size = {}) {
    return MakeCalibrationSet(bytes, origin, tokenizer_.get(), spec_, size);
  }
  absl::StatusOr<CalibrationSet> MakeChat(std::string_view bytes) {
    return MakeCalibrationSet(bytes, "chat.jsonl", chat_.get(), spec_, {});
  }
  std::unique_ptr<const Tokenizer> tokenizer_, chat_;
  ModelSpec spec_;
};

TEST_F(CalibrationSetTest, TheBundledTextIsSpreadOverItsArticles) {
  ASSERT_OK_AND_ASSIGN(const CalibrationSet set,
                       LoadCalibrationSet("", tokenizer_.get(), spec_, {.samples = 40}));
  EXPECT_THAT(set.samples, SizeIs(40));
  EXPECT_EQ(set.kind, CalibrationKind::kText);
  EXPECT_EQ(set.coverage.documents, 21);  // articles in data/calibration
  EXPECT_EQ(set.coverage.too_short, 0);
  EXPECT_EQ(set.coverage.chat_share(), 0);
  EXPECT_EQ(set.coverage.samples, 40);
  std::set<TokenDocument> different(set.samples.begin(), set.samples.end());
  EXPECT_THAT(different, SizeIs(40));
  const auto bos = tokenizer_->TokenId("<s>");
  ASSERT_TRUE(bos.has_value());
  for (const TokenDocument& sample : set.samples) {
    EXPECT_LE(sample.size(), 512u);
    EXPECT_EQ(sample[0], *bos);  // also in windows from the middle of an article
    EXPECT_NE(sample[1], *bos);
  }
  EXPECT_GT(set.coverage.scripts.at("Latin"), 0.99);
  EXPECT_THAT(set.name, HasSubstr("40 of"));
}

TEST_F(CalibrationSetTest, TheSameInputGivesTheSameHashAndAnotherSizeAnother) {
  const auto hash = [&](CalibrationSize size) {
    return LoadCalibrationSet("", tokenizer_.get(), spec_, size)->hash;
  };
  EXPECT_EQ(hash({.samples = 8}), hash({.samples = 8}));
  EXPECT_NE(hash({.samples = 8}), hash({.samples = 9}));
  EXPECT_NE(hash({.samples = 8}), hash({.samples = 8, .window = 256}));
}

TEST_F(CalibrationSetTest, WindowsKeepToTheContextOfTheModel) {
  spec_.max_context = 32;
  ASSERT_OK_AND_ASSIGN(const CalibrationSet set,
                       LoadCalibrationSet("", tokenizer_.get(), spec_, {}));
  for (const TokenDocument& sample : set.samples) EXPECT_LE(sample.size(), 32u);
}

TEST_F(CalibrationSetTest, JsonLinesGiveTextAndChats) {
  const std::string lines = R"({"text": "Once upon a time there was a plain text."})"
                            "\n\n"
                            R"({"messages": [{"role": "user", "content": "Hi there"}, )"
                            R"({"role": "assistant", "content": "Hello"}]})"
                            "\n";
  ASSERT_OK_AND_ASSIGN(const CalibrationSet set, MakeChat(lines));
  EXPECT_EQ(set.kind, CalibrationKind::kJsonl);
  EXPECT_EQ(set.coverage.documents, 2);
  EXPECT_EQ(set.coverage.chat_documents, 1);
  EXPECT_DOUBLE_EQ(set.coverage.chat_share(), 0.5);
  ASSERT_THAT(set.samples, SizeIs(2));
  EXPECT_EQ(chat_->Decode(set.samples[1], false).value(),
            "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_THAT(ToText(set.coverage), HasSubstr("chat: 50 %"));
}

TEST_F(CalibrationSetTest, ScriptsAreCountedByLetter) {
  ASSERT_OK_AND_ASSIGN(const CalibrationSet set,
                       MakeChat("{\"text\": \"ab, cde 123! \xD0\xB3\xD0\xB4\xD0\xB0 \xC3\xA9\"}"));
  EXPECT_THAT(set.coverage.scripts, testing::ElementsAre(testing::Pair("Cyrillic", 3.0 / 9),
                                                         testing::Pair("Latin", 6.0 / 9)));
}

TEST_F(CalibrationSetTest, LinesOfIdsAndArraysAreTakenAsTheyAre) {
  ASSERT_OK_AND_ASSIGN(const CalibrationSet set,
                       Make("[1, 2, 3]\n{\"input_ids\": [4, 5], \"labels\": null}\n[9]\n", "ids"));
  EXPECT_EQ(set.kind, CalibrationKind::kTokenIds);
  EXPECT_THAT(set.samples, ElementsAre(ElementsAre(1, 2, 3), ElementsAre(4, 5)));
  EXPECT_EQ(set.coverage.too_short, 1);
  std::string npy("\x93NUMPY\x01\x00v\x00", 10);
  const std::string header = "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2), }";
  npy += header + std::string(117 - header.size(), ' ') + "\n";
  npy += std::string("\x05\x00\x00\x00\xf6\x01\x00\x00", 8);
  ASSERT_OK_AND_ASSIGN(const CalibrationSet array, Make(npy, "ids.npy"));
  EXPECT_EQ(array.kind, CalibrationKind::kNpy);
  EXPECT_THAT(array.samples, ElementsAre(ElementsAre(5, 502)));
  npy[npy.size() - 3] = 2;  // 758: the vocabulary has 512
  EXPECT_THAT(Make(npy, "ids.npy"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("row=0: token id outside the "
                                                               "vocabulary: column=1 id=758")));
}

TEST_F(CalibrationSetTest, IdsNeedNoTokenizerAndTextDoes) {
  EXPECT_OK(MakeCalibrationSet("[1, 2, 3]", "a.jsonl", nullptr, spec_, {}));
  EXPECT_THAT(MakeCalibrationSet("plain", "a.txt", nullptr, spec_, {}),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("no tokenizer")));
  ASSERT_OK_AND_ASSIGN(const CalibrationSet random, LoadCalibrationSet("", nullptr, spec_, {}));
  EXPECT_THAT(random.name, HasSubstr("no tokenizer"));
  ASSERT_OK_AND_ASSIGN(const EvaluationSet other, MakeEvaluationSet("", "e", nullptr, spec_, {}));
  EXPECT_OK(CheckDisjoint(random, other));
}

TEST_F(CalibrationSetTest, BadLinesAreNamedWithTheirValue) {
  const struct {
    const char *bytes, *expected;
  } cases[] = {
      {"[1, 2]\n[3, 512]\n", "f.jsonl:2: expected token ids from 0 to 511: index=1 value='512'"},
      {"[1, 2]\n[1.5]\n", "f.jsonl:2: expected token ids from 0 to 511: index=0 value='1.5'"},
      {"[1, 2]\n{\"text\": \"x\"}\n", "f.jsonl:2: expected an array of token ids or"},
      {"{\"text\": \"x\"}\n{\"txt\": \"y\"}\n", "f.jsonl:2: expected one of {\"text\": ...}"},
      {"{\"text\": 7}\n", "f.jsonl:1: \"text\" must be a text: '7'"},
      {"{\"text\": \"x\"}\n{\"text\":\n", "f.jsonl:2: not a JSON value: '{\\\"text\\\":'"},
      {"{\"messages\": []}", "f.jsonl:1: \"messages\" must be a list"},
      {"{\"messages\": [{\"role\": \"user\"}]}", "f.jsonl:1: a message needs texts"},
      {"{\"messages\": [{\"role\": \"tool\", \"content\": \"\"}]}", "message=0 role='tool'"},
      {"{\"text\": \"\xff\"}\n", "f.jsonl:1: JSON is not UTF-8"},
  };
  for (const auto& [bytes, expected] : cases) {
    EXPECT_THAT(Make(bytes, "f.jsonl"), StatusIs(StatusCode::kInvalidArgument, HasSubstr(expected)))
        << bytes;
  }
  EXPECT_THAT(Make("fine\nbroken \xff here\n", "f.txt"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("f.txt:2: not UTF-8: offset=12")));
  EXPECT_THAT(Make("short", "f.txt", {.samples = 1}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("f.txt: no document is long")));
  EXPECT_THAT(Make(std::string((64 << 20) + 1, 'a'), "f.txt"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("too large")));
  EXPECT_THAT(Make("text", "f.txt", {.samples = 0}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("samples=0")));
  // A template that this tokenizer does not have.
  EXPECT_THAT(Make("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", "f.jsonl"),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("f.jsonl:1: ")));
}

TEST_F(CalibrationSetTest, EveryTruncationIsRefusedOrASet) {
  const std::string lines = "[1, 2, 3]\n{\"input_ids\": [4, 5]}\n";
  for (size_t size = 0; size < lines.size(); ++size) {
    const auto set = Make(lines.substr(0, size), "t.jsonl");
    if (!set.ok()) {
      EXPECT_THAT(set, StatusIs(StatusCode::kInvalidArgument, HasSubstr("t.jsonl")));
    }
  }
}

TEST_F(CalibrationSetTest, TheKindIsFoundFromNameAndContent) {
  EXPECT_EQ(FindCalibrationKind("{\"text\": \"a\"}", "x"), CalibrationKind::kJsonl);
  EXPECT_EQ(FindCalibrationKind("\n[1]", "x"), CalibrationKind::kTokenIds);
  EXPECT_EQ(FindCalibrationKind("[not json", "x.txt"), CalibrationKind::kText);
  EXPECT_EQ(FindCalibrationKind("not json", "x.jsonl"), CalibrationKind::kJsonl);
  EXPECT_EQ(FindCalibrationKind("\x93NUMPY", "x"), CalibrationKind::kNpy);
  EXPECT_EQ(FindCalibrationKind("", "x"), CalibrationKind::kText);
}

TEST_F(CalibrationSetTest, EncodersKeepTheClosingToken) {
  spec_.task = ModelTask::kEmbed;
  ASSERT_OK_AND_ASSIGN(const CalibrationSet set, Make("[1, 2, 3, 4, 5]", "ids", {.window = 3}));
  EXPECT_THAT(set.samples, ElementsAre(ElementsAre(1, 2, 5)));
}

// Sentences of 5 tokens where windows of 20 were asked for: half of 4 x 20 tokens are 8 sentences.
TEST_F(CalibrationSetTest, EncodersTakeMoreSentencesThanDecodersTakeWindows) {
  std::string lines;
  for (int i = 0; i < 100; ++i) lines += "[1, 2, 3, 4, 5]\n";
  const CalibrationSize size{.samples = 4, .window = 20};
  ASSERT_OK_AND_ASSIGN(const CalibrationSet windows, Make(lines, "ids", size));
  EXPECT_EQ(windows.samples.size(), 4u);
  spec_.task = ModelTask::kEmbed;
  ASSERT_OK_AND_ASSIGN(const CalibrationSet sentences, Make(lines, "ids", size));
  EXPECT_EQ(sentences.samples.size(), 8u);
  EXPECT_EQ(sentences.coverage.sample_tokens, 40);
}

TEST_F(CalibrationSetTest, LengthsAreBinnedByPowersOfTwo) {
  ASSERT_OK_AND_ASSIGN(const CalibrationSet set,
                       Make("[1,2]\n[1,2,3]\n[1,2,3,4]\n[1,2,3,4,5]\n", "ids"));
  std::vector<std::pair<int64_t, int>> bins;
  for (const auto& bin : set.coverage.lengths) bins.emplace_back(bin.up_to, bin.documents);
  EXPECT_THAT(bins, ElementsAre(testing::Pair(2, 1), testing::Pair(4, 2), testing::Pair(8, 1)));
  EXPECT_EQ(set.coverage.median_tokens, 3.5);
  EXPECT_EQ(set.coverage.longest_tokens, 5);
}

TEST_F(CalibrationSetTest, TheBundledTextsAreDisjoint) {
  ASSERT_OK_AND_ASSIGN(const CalibrationSet set,
                       LoadCalibrationSet("", tokenizer_.get(), spec_, {.samples = 1000}));
  ASSERT_OK_AND_ASSIGN(const EvaluationSet evaluation,
                       MakeEvaluationSet(BundledEvaluationText(), "e", tokenizer_.get(), spec_,
                                         {.documents = 1000}));
  EXPECT_OK(CheckDisjoint(set, evaluation));
}

TEST_F(CalibrationSetTest, ASharedPassageIsFound) {
  ASSERT_OK_AND_ASSIGN(
      const EvaluationSet evaluation,
      MakeEvaluationSet(BundledEvaluationText(), "e", tokenizer_.get(), spec_, {.documents = 4}));
  CalibrationSet set{.name = "mine"};
  set.samples = RandomDocuments({.documents = 3, .tokens = 100}, spec_.vocab, 1);
  EXPECT_OK(CheckDisjoint(set, evaluation));
  const auto from = evaluation.documents[2].begin() + 200;
  std::copy_n(from, 31, set.samples[1].begin() + 40);
  EXPECT_OK(CheckDisjoint(set, evaluation));  // one token fewer than is a passage
  std::copy_n(from, 32, set.samples[1].begin() + 40);
  EXPECT_THAT(CheckDisjoint(set, evaluation),
              StatusIs(StatusCode::kFailedPrecondition,
                       HasSubstr("calibration sample 1 from token 40 is evaluation document 2 from "
                                 "token 200")));
}

TEST_F(CalibrationSetTest, AShortEvaluationDocumentIsFoundWhole) {
  const EvaluationSet evaluation{.name = "sentences", .documents = {{1, 2, 3, 4, 5, 6, 7, 8, 9}}};
  CalibrationSet set{.name = "mine", .samples = {{0, 1, 2, 3, 4, 5, 6, 7, 8, 0}}};
  EXPECT_OK(CheckDisjoint(set, evaluation));
  set.samples[0].back() = 9;
  EXPECT_THAT(CheckDisjoint(set, evaluation),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("share 9 tokens")));
}

}  // namespace
}  // namespace assay
