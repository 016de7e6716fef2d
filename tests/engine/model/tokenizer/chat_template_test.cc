#include "engine/model/tokenizer/chat_template.h"

#include <nlohmann/json.hpp>

#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

std::vector<ChatMessage> Messages(const nlohmann::json& list) {
  std::vector<ChatMessage> messages;
  for (const auto& message : list) messages.push_back({message["role"], message["content"]});
  return messages;
}

TEST(ChatTemplateTest, RendersLikeJinja) {
  const nlohmann::json golden = ReadGoldenJson("vocab/chat.json.xz");
  ASSERT_GE(golden["cases"].size(), 35u);
  for (const auto& chat : golden["cases"]) {
    const ChatTemplate chat_template(chat["template"].get<std::string>(),
                                     {.bos = "<s>", .eos = "</s>"});
    EXPECT_THAT(chat_template.Apply(Messages(chat["messages"])),
                IsOkAndHolds(chat["text"].get<std::string>()))
        << chat["name"] << " " << chat["messages"];
  }
}

TEST(ChatTemplateTest, Llama31WritesItsDatesFirst) {
  const ChatTemplate chat_template(
      "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}"
      "{{- \"Cutting Knowledge Date: December 2023\\n\" }} | trim",
      {.bos = "<B>", .eos = "<E>"});
  const std::vector<ChatMessage> messages = {{"system", "Be kind."}, {"user", "Hi"}};
  EXPECT_THAT(chat_template.Apply(messages),
              IsOkAndHolds("<B><|start_header_id|>system<|end_header_id|>\n\n"
                           "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
                           "Be kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
                           "Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"));
}

TEST(ChatTemplateTest, RefusesWhatItCannotExpress) {
  const std::vector<ChatMessage> user = {{"user", "x"}};
  EXPECT_THAT(ChatTemplate().Apply(user),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("has no chat template")));
  EXPECT_THAT(ChatTemplate("{{ 'Human: ' }}", {}).Apply(user),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("Human: ")));
  const ChatTemplate chat_ml("<|im_start|>", {});
  EXPECT_THAT(chat_ml.Apply({}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at least one")));
  EXPECT_THAT(chat_ml.Apply(std::vector<ChatMessage>{{"tool", "x"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'tool'")));
  const ChatTemplate llama2("[INST] <<SYS>>", {});
  EXPECT_THAT(llama2.Apply(std::vector<ChatMessage>{{"user", "x"}, {"user", "y"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("message 1")));
  EXPECT_THAT(llama2.Apply(std::vector<ChatMessage>{{"user", "x"}, {"assistant", "y"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("must end with")));
  EXPECT_THAT(llama2.Apply(std::vector<ChatMessage>{{"system", "x"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("must end with")));
}

}  // namespace
}  // namespace assay
