#include "engine/lifecycle/evaluation.h"

#include <set>

#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using testing::SizeIs;

class EvaluationTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(Stories260k()));
    ASSERT_OK_AND_ASSIGN(tokenizer_, MakeTokenizer(checkpoint->tokenizer()));
    ASSERT_OK_AND_ASSIGN(spec_, FamilyOf(*checkpoint).value()->parse(*checkpoint));
  }
  std::unique_ptr<const Tokenizer> tokenizer_;
  ModelSpec spec_;
};

TEST_F(EvaluationTest, TheBundledTextGivesWindowsOfDifferentArticles) {
  ASSERT_OK_AND_ASSIGN(const EvaluationSet set,
                       MakeEvaluationSet(BundledEvaluationText(), "bundled", tokenizer_.get(),
                                         spec_, {.documents = 8, .window = 512}));
  ASSERT_THAT(set.documents, SizeIs(8));
  std::set<std::vector<int32_t>> different;
  for (const std::vector<int32_t>& document : set.documents) {
    EXPECT_EQ(document.size(), 512u);
    different.insert(document);
  }
  EXPECT_THAT(different, SizeIs(8));
  EXPECT_EQ(set.num_tokens(), 8 * 512);
}

TEST_F(EvaluationTest, LongContextIsWhatTheOtherWindowsDoNotReach) {
  const auto make = [&](int window, std::string_view text) {
    return MakeLongContextSet(text, "bundled", tokenizer_.get(), spec_, {.window = window}).value();
  };
  const EvaluationSet set = make(128, BundledEvaluationText());
  ASSERT_THAT(set.documents, SizeIs(2));
  for (const std::vector<int32_t>& document : set.documents) EXPECT_THAT(document, SizeIs(512));
  EXPECT_NE(set.documents[0], set.documents[1]);
  EXPECT_EQ(set.name, "bundled, long context: 2 windows of 512 tokens");
  EXPECT_THAT(make(512, BundledEvaluationText()).documents, SizeIs(0));  // the model's context
  EXPECT_THAT(make(128, "Too short for one.").documents, SizeIs(0));
  spec_.max_context = 8192;
  EXPECT_THAT(make(512, BundledEvaluationText()).documents[0], SizeIs(4096));
  // A text with less for two windows: all of it, in halves.
  const std::string_view part = BundledEvaluationText().substr(0, 8000);
  ASSERT_OK_AND_ASSIGN(const TokenDocument ids, tokenizer_->Encode(part, true, false));
  ASSERT_LT(ids.size(), 2 * 4096u);
  const EvaluationSet halves = make(512, part);
  ASSERT_THAT(halves.documents, SizeIs(2));
  EXPECT_THAT(halves.documents[1], SizeIs(ids.size() / 2));
  EXPECT_THAT(make(static_cast<int>(ids.size() / 2), part).documents, SizeIs(0));
}

TEST_F(EvaluationTest, TheSameInputGivesTheSameHashAndAnotherTextAnother) {
  const auto hash = [&](std::string_view text) {
    return MakeEvaluationSet(text, "t", tokenizer_.get(), spec_, {})->hash;
  };
  EXPECT_EQ(hash(BundledEvaluationText()), hash(BundledEvaluationText()));
  EXPECT_NE(hash(BundledEvaluationText()), hash(BundledEvaluationText().substr(1000)));
}

TEST_F(EvaluationTest, ATextWithoutTitlesIsCutIntoPieces) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "A line of plain text, number " + std::to_string(i) + ".\n";
  ASSERT_OK_AND_ASSIGN(
      const EvaluationSet set,
      MakeEvaluationSet(text, "plain", tokenizer_.get(), spec_, {.documents = 4, .window = 64}));
  EXPECT_THAT(set.documents, SizeIs(4));
}

TEST_F(EvaluationTest, WindowsKeepToTheContextOfTheModel) {
  spec_.max_context = 32;
  ASSERT_OK_AND_ASSIGN(
      const EvaluationSet set,
      MakeEvaluationSet(BundledEvaluationText(), "bundled", tokenizer_.get(), spec_, {}));
  for (const std::vector<int32_t>& document : set.documents) EXPECT_LE(document.size(), 32u);
}

TEST_F(EvaluationTest, EncodersGetSentencesThatEndWithTheirSpecialToken) {
  spec_.task = ModelTask::kEmbed;
  ASSERT_OK_AND_ASSIGN(const EvaluationSet set,
                       MakeEvaluationSet(BundledEvaluationText(), "bundled", tokenizer_.get(),
                                         spec_, {.sentences = 40, .sentence_tokens = 24}));
  EXPECT_THAT(set.documents, SizeIs(40));
  for (const std::vector<int32_t>& document : set.documents) EXPECT_LE(document.size(), 24u);
}

TEST_F(EvaluationTest, WithoutATokenizerTheNameSaysSo) {
  ASSERT_OK_AND_ASSIGN(const EvaluationSet set,
                       MakeEvaluationSet("", "none", nullptr, spec_, {.documents = 3}));
  EXPECT_THAT(set.name, HasSubstr("no tokenizer"));
  EXPECT_THAT(set.documents, SizeIs(3));
  for (const int32_t id : set.documents[0]) EXPECT_LT(id, spec_.vocab);
}

TEST_F(EvaluationTest, ShortTextsAndBrokenUtf8AreInvalid) {
  EXPECT_THAT(MakeEvaluationSet("", "empty", tokenizer_.get(), spec_, {}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("text=empty")));
  EXPECT_THAT(MakeEvaluationSet("hi", "short", tokenizer_.get(), spec_, {}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("too short")));
  EXPECT_THAT(MakeEvaluationSet("broken \xff utf-8 that is long enough to be used", "broken",
                                tokenizer_.get(), spec_, {}),
              StatusIs(StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace assay
