// A checkpoint's chat template, a zero byte, what a user and a system prompt say.
#include "engine/model/tokenizer/chat_template.h"
#include "tests/fuzz/require.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const assay::Halves halves = assay::SplitAtZero(assay::TextOf(data, size));
  const assay::ChatTemplate chat(halves.first, {.bos = "<s>", .eos = "</s>"});
  const std::string text(halves.second), half(halves.second.substr(0, halves.second.size() / 2));
  const std::vector<assay::ChatMessage> talks[] = {
      {},
      {{"user", text}},
      {{"system", half}, {"user", text}, {"assistant", half}, {"user", text}},
      {{"assistant", text}, {half, text}},
  };
  for (const auto& messages : talks) {
    const auto prompt = chat.Apply(messages);
    assay::RequireCode(prompt.status(), absl::StatusCode::kInvalidArgument,
                       absl::StatusCode::kFailedPrecondition);
    assay::Require(!prompt.ok() || !prompt->empty(), "a prompt that is empty");
  }
  return 0;
}
