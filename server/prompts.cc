#include "server/prompts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

// Normalizers drop blanks and control characters, so a text of more bytes than the context could
// hold may still fit: this much is always tokenized (about a millisecond).
constexpr size_t kAlwaysTokenized = size_t{64} << 10;

// Of all texts in one request: a second of tokenizing.
constexpr size_t kMostBytesOfRequest = size_t{4} << 20;

// The first `bytes` of a text, without the beginning of a character that does not fit.
std::string_view Head(std::string_view text, size_t bytes) {
  if (text.size() <= bytes) return text;
  while (bytes > 0 && (static_cast<unsigned char>(text[bytes]) & 0xc0) == 0x80) --bytes;
  return text.substr(0, bytes);
}

}  // namespace

absl::Status CheckTokenizer(const Servable& servable) {
  if (servable.tokenizer != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "model '", servable.name, "' came without a tokenizer: send token ids instead of text"));
}

size_t MostBytes(const Servable& servable, size_t text_bytes) {
  const size_t context =
      static_cast<size_t>(std::max(0, static_cast<int>(servable.spec.max_context)));
  if (text_bytes <= kAlwaysTokenized || context == 0) return std::max(text_bytes, kAlwaysTokenized);
  size_t longest = 1;
  for (int32_t id = 0; id < servable.tokenizer->vocab_size(); ++id) {
    longest = std::max(longest, servable.tokenizer->TokenText(id).size());
  }
  return std::max(kAlwaysTokenized, context * longest);
}

absl::Status CheckBytes(const Servable& servable, size_t text_bytes) {
  if (text_bytes <= MostBytes(servable, text_bytes)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a text of ", text_bytes,
                                                 " bytes cannot fit the context of ",
                                                 servable.spec.max_context, " tokens"));
}

absl::Status CheckTotalBytes(size_t bytes) {
  if (bytes <= kMostBytesOfRequest) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the texts of the request have ", bytes,
                                                 " bytes, at most ", kMostBytesOfRequest,
                                                 " go into one request"));
}

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Servable& servable, std::string_view text) {
  RETURN_IF_ERROR(CheckTokenizer(servable));
  RETURN_IF_ERROR(CheckBytes(servable, text.size()));
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
  size_t bytes = 0;
  for (const ChatMessage& message : messages) bytes += message.content.size();
  RETURN_IF_ERROR(CheckBytes(servable, bytes));
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
  if (truncate) {
    text = Head(text, MostBytes(servable, text.size()));
  } else {
    RETURN_IF_ERROR(CheckBytes(servable, text.size()));
  }
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
