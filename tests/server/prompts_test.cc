#include "server/prompts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/fake_tokenizer.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

constexpr size_t kTooLong = (size_t{64} << 10) + 1;  // context: 64 tokens of one letter
constexpr const char* kRefusal = "a text of 65537 bytes cannot fit the context of 64 tokens";

// The tokenizer refuses capitals, so that an answer about length comes from before it.
class PromptsTest : public testing::Test {
 protected:
  PromptsTest() {
    servable_.spec.max_context = 64;
    servable_.tokenizer = std::make_shared<FakeTokenizer>(FakeTokenizer::Letters(26, {}));
  }
  Servable servable_;
};

TEST_F(PromptsTest, ATextThatCannotFitIsRefusedBeforeItIsTokenized) {
  const std::string capitals(kTooLong, 'A');
  EXPECT_THAT(EncodePrompt(servable_, capitals),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(kRefusal)));
  EXPECT_THAT(EncodeForEncoder(servable_, capitals, /*truncate=*/false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(kRefusal)));
  const std::vector<ChatMessage> chat{{"user", capitals.substr(1)}, {"assistant", "A"}};
  EXPECT_THAT(EncodeChat(servable_, chat),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(kRefusal)));
}

TEST_F(PromptsTest, ATextThatMayFitIsTokenized) {
  EXPECT_THAT(EncodePrompt(servable_, std::string(kTooLong - 1, 'a')), IsOkAndHolds(SizeIs(65536)));
  EXPECT_THAT(EncodePrompt(servable_, "A"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no token for A")));
}

TEST_F(PromptsTest, TheTextsOfARequestAreBoundedTogether) {
  EXPECT_OK(CheckTotalBytes(size_t{4} << 20));
  EXPECT_THAT(CheckTotalBytes((size_t{4} << 20) + 1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("4194305 bytes, at most")));
}

TEST_F(PromptsTest, TruncationCutsTheTextFirst) {
  EXPECT_THAT(EncodeForEncoder(servable_, std::string(kTooLong - 1, 'a') + "A", /*truncate=*/true),
              IsOkAndHolds(SizeIs(64)));
  // Not inside a character: the two bytes of an umlaut on the border are both left away.
  EXPECT_THAT(
      EncodeForEncoder(servable_, std::string(kTooLong - 2, 'a') + "\xc3\xa4", /*truncate=*/true),
      IsOkAndHolds(SizeIs(64)));
}

}  // namespace
}  // namespace assay
