#include "server/prompts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace assay {

absl::Status CheckTokenizer(const Servable& servable) {
  if (servable.tokenizer != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "model '", servable.name, "' came without a tokenizer: send token ids instead of text"));
}

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Servable& servable, std::string_view text) {
  RETURN_IF_ERROR(CheckTokenizer(servable));
  ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                   servable.tokenizer->Encode(text, /*add_special=*/true, /*parse_special=*/true));
  if (ids.empty()) return absl::InvalidArgumentError("the prompt is empty");
  return ids;
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(const Servable& servable,
                                                std::span<const ChatMessage> messages) {
  RETURN_IF_ERROR(CheckTokenizer(servable));
  if (messages.empty()) return absl::InvalidArgumentError("the chat has no messages");
  for (const ChatMessage& message : messages) {
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown role '", message.role, "'; expected system, user or assistant"));
    }
  }
  const Tokenizer& tokenizer = *servable.tokenizer;
  ASSIGN_OR_RETURN(const std::string text, tokenizer.ApplyChatTemplate(messages));
  ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                   tokenizer.Encode(text, /*add_special=*/true, /*parse_special=*/true));
  // A template that writes the BOS token itself must not get a second one.
  if (ids.size() >= 2 && ids[0] == ids[1] && tokenizer.is_special(ids[0])) ids.erase(ids.begin());
  // What the tokenizer puts after a text (EOS) would end the assistant's turn before it begins.
  const std::span<const int32_t> ends = tokenizer.end_tokens();
  ASSIGN_OR_RETURN(const std::vector<int32_t> plain,
                   tokenizer.Encode(text, /*add_special=*/false, /*parse_special=*/true));
  const bool template_ends_so = !plain.empty() && !ids.empty() && plain.back() == ids.back();
  if (!template_ends_so && !ids.empty() &&
      std::find(ends.begin(), ends.end(), ids.back()) != ends.end()) {
    ids.pop_back();
  }
  if (ids.empty()) return absl::InvalidArgumentError("the chat is empty");
  return ids;
}

absl::StatusOr<std::vector<int32_t>> EncodeForEncoder(const Servable& servable,
                                                      std::string_view text, bool truncate) {
  RETURN_IF_ERROR(CheckTokenizer(servable));
  ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                   servable.tokenizer->Encode(text, /*add_special=*/true, /*parse_special=*/false));
  if (ids.empty()) return absl::InvalidArgumentError("the text is empty");
  const size_t longest = static_cast<size_t>(servable.spec.max_context);
  if (truncate && longest > 0 && ids.size() > longest) {
    const int32_t last = ids.back();
    ids.resize(longest);
    if (servable.tokenizer->is_special(last)) ids.back() = last;
  }
  return ids;
}

}  // namespace assay
