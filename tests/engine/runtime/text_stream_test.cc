#include "engine/runtime/text_stream.h"

#include <gmock/gmock.h>

#include <random>

#include "tests/support/fake_tokenizer.h"

namespace assay {
namespace {

using ::testing::ElementsAre;

struct Outcome {
  std::vector<std::string> pieces;  // one per token until it stopped, then what Flush gave
  bool stopped = false;
  std::string text() const {
    std::string all;
    for (const std::string& piece : pieces) all += piece;
    return all;
  }
};

Outcome Stream(const std::vector<std::string>& tokens, const std::vector<std::string>& stop) {
  const FakeTokenizer tokenizer(tokens, {});
  TextStream stream(tokenizer.NewStreamDecoder(), stop);
  Outcome outcome;
  for (size_t i = 0; i < tokens.size() && !stream.stopped(); ++i)
    outcome.pieces.push_back(stream.Push(static_cast<int32_t>(i)));
  if (!stream.stopped()) outcome.pieces.push_back(stream.Flush());
  outcome.stopped = stream.stopped();
  return outcome;
}

TEST(TextStreamTest, WithoutStopStringsTextPassesThrough) {
  const Outcome outcome = Stream({"He", "llo", " world"}, {});
  EXPECT_THAT(outcome.pieces, ElementsAre("He", "llo", " world", ""));
}

TEST(TextStreamTest, EndsExactlyBeforeTheMatch) {
  const Outcome outcome = Stream({"one", " two END three", "four"}, {"END"});
  EXPECT_THAT(outcome.pieces, ElementsAre("one", " two "));
  EXPECT_TRUE(outcome.stopped);
}

TEST(TextStreamTest, HoldsBackWhatMayBecomeAStopString) {
  const Outcome outcome = Stream({"a", "E", "N", "x", "E", "N", "D"}, {"END"});
  EXPECT_THAT(outcome.pieces, ElementsAre("a", "", "", "ENx", "", "", ""));
  EXPECT_TRUE(outcome.stopped);
}

TEST(TextStreamTest, FlushReturnsWhatWasHeld) {
  const Outcome outcome = Stream({"abc", "EN"}, {"END"});
  EXPECT_THAT(outcome.pieces, ElementsAre("abc", "", "EN"));
  EXPECT_FALSE(outcome.stopped);
}

TEST(TextStreamTest, RestartsInsideAFailedCandidate) {
  EXPECT_EQ(Stream({"x", "aa", "ab", "z"}, {"aab"}).text(), "xa");
  EXPECT_EQ(Stream({"aaaaab"}, {"aab"}).text(), "aaa");
}

TEST(TextStreamTest, OverlappingCandidatesTheFirstToCompleteWins) {
  EXPECT_EQ(Stream({"xabcd"}, {"abcd", "bc"}).text(), "xa");
  EXPECT_EQ(Stream({"x", "a", "b", "c", "d"}, {"abcd", "bc"}).text(), "xa");
}

TEST(TextStreamTest, OfTwoThatCompleteTogetherTheLongerWins) {
  EXPECT_EQ(Stream({"xab", "c"}, {"bc", "abc"}).text(), "x");
  EXPECT_EQ(Stream({"xabc"}, {"abc", "bc"}).text(), "x");
}

TEST(TextStreamTest, NothingComesAfterAStop) {
  const FakeTokenizer tokenizer({"stop", "more"}, {});
  TextStream stream(tokenizer.NewStreamDecoder(), {"stop"});
  EXPECT_EQ(stream.Push(0), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.Push(1), "");
  EXPECT_EQ(stream.Flush(), "");
}

TEST(TextStreamTest, CharactersSplitOverTokensArriveWhole) {
  const Outcome outcome = Stream({"\xe4", "\xbd", "\xa0!", "\xe4"}, {"!!"});
  EXPECT_THAT(outcome.pieces, ElementsAre("", "", "\xe4\xbd\xa0", "", "!\xef\xbf\xbd"));
}

TEST(TextStreamTest, StopStringOfManyBytesPerCharacter) {
  EXPECT_EQ(Stream({"a\xe4\xbd", "\xa0", "\xe5\xa5\xbd z"}, {"\xe4\xbd\xa0\xe5\xa5\xbd"}).text(),
            "a");
}

TEST(TextStreamTest, FlushedTextMayCompleteAStopString) {
  const Outcome outcome = Stream({"a", "\xe4"}, {"\xef\xbf\xbd"});
  EXPECT_EQ(outcome.text(), "a");
  EXPECT_TRUE(outcome.stopped);
}

// Byte by byte, without any holding back: the definition.
std::string Expected(const std::string& text, const std::vector<std::string>& stop) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& s : stop)
      if (text.substr(0, end).ends_with(s)) longest = std::max(longest, s.size());
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

TEST(TextStreamTest, TheOutcomeDoesNotDependOnTheDivisionIntoTokens) {
  std::minstd_rand random(7);
  const auto letters = [&](int most) {
    std::string s;
    for (int i = static_cast<int>(random() % most); i >= 0; --i)
      s += static_cast<char>('a' + random() % 2);
    return s;
  };
  int stopped = 0;
  for (int round = 0; round < 3000; ++round) {
    const std::vector<std::string> stop = {letters(5) + "c", "b" + letters(6)};
    std::vector<std::string> tokens;
    std::string text;
    for (int i = 0; i < 8; ++i) {
      tokens.push_back(letters(4) + (random() % 4 == 0 ? "c" : ""));
      text += tokens.back();
    }
    const Outcome outcome = Stream(tokens, stop);
    ASSERT_EQ(outcome.text(), Expected(text, stop)) << text << " " << stop[0] << " " << stop[1];
    stopped += outcome.stopped;
  }
  EXPECT_GT(stopped, 300);
  EXPECT_LT(stopped, 2900);
}

}  // namespace
}  // namespace assay
