#include "engine/model/tokenizer/chat_template.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

// Llama 3.1's template writes these dates when nobody passes others.
constexpr char kLlama31Dates[] =
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// The literal between two quotes of one kind that contains `part`, when that is all but blanks.
std::optional<std::string> QuotedAround(std::string_view jinja, std::string_view part) {
  for (size_t at = jinja.find(part); at != std::string_view::npos; at = jinja.find(part, at + 1)) {
    size_t begin = at, end = at + part.size();
    while (begin > 0 && jinja[begin - 1] == ' ') --begin;
    while (end < jinja.size() && jinja[end] == ' ') ++end;
    if (begin == 0 || end == jinja.size()) continue;
    const char quote = jinja[begin - 1];
    if ((quote == '\'' || quote == '"') && jinja[end] == quote) {
      return std::string(jinja.substr(begin, end - begin));
    }
  }
  return std::nullopt;
}

// The system prompt that a ChatML template writes out literally for conversations without one;
// empty if it has none.
std::string DefaultSystemPrompt(std::string_view jinja) {
  constexpr std::string_view kOpen = "<|im_start|>system", kClose = "<|im_end|>";
  for (size_t at = jinja.find(kOpen); at != std::string_view::npos;
       at = jinja.find(kOpen, at + 1)) {
    std::string_view rest = jinja.substr(at + kOpen.size());
    if (rest.substr(0, 2) == "\\n") {
      rest.remove_prefix(2);
    } else if (rest.substr(0, 1) == "\n") {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    const std::string_view prompt = rest.substr(0, rest.find(kClose));
    if (prompt.empty() || prompt.size() == rest.size() || Contains(prompt, "'") ||
        Contains(prompt, "{{")) {
      continue;
    }
    return absl::StrReplaceAll(std::string(prompt), {{"\\n", "\n"}});
  }
  return "";
}

absl::Status CheckAlternating(std::span<const ChatMessage> messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string_view expected = i % 2 == 0 ? "user" : "assistant";
    if (messages[i].role == expected) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "chat messages must alternate user and assistant, after at most one system message: "
        "message ",
        i, " after it has role ", Printable(messages[i].role)));
  }
  if (messages.size() % 2 == 0) {
    return absl::InvalidArgumentError("chat messages must end with one of the user");
  }
  return absl::OkStatus();
}

std::string Trimmed(bool trim, std::string_view text) {
  return std::string(trim ? TrimWhitespace(text, true, true) : text);
}

}  // namespace

ChatTemplate::ChatTemplate(std::string_view jinja, SpecialTexts special)
    : special_(std::move(special)), beginning_(Printable(jinja)) {
  if (jinja.empty()) return;
  format_ = Format::kUnknown;
  if (Contains(jinja, "<|im_start|>")) {
    format_ = Format::kChatMl;
    default_system_ = DefaultSystemPrompt(jinja);
  } else if (Contains(jinja, "<|start_header_id|>")) {
    format_ = Format::kLlama3;
    trim_ = Contains(jinja, "| trim") || Contains(jinja, "|trim");
    dated_system_ = Contains(jinja, "Cutting Knowledge Date: December 2023");
  } else if (Contains(jinja, "[INST]") && Contains(jinja, "<<SYS>>")) {
    format_ = Format::kLlama2;
    trim_ = Contains(jinja, ".strip()") || Contains(jinja, "| trim") || Contains(jinja, "|trim");
  } else if (Contains(jinja, "[INST]")) {
    ReadMistral(jinja);
  } else if (Contains(jinja, "<|user|>") && Contains(jinja, "<|assistant|>") &&
             Contains(jinja, "eos_token")) {
    format_ = Format::kZephyr;
  }
}

void ChatTemplate::ReadMistral(std::string_view jinja) {
  format_ = Format::kMistral;
  open_ = QuotedAround(jinja, "[INST]").value_or(open_);
  close_ = QuotedAround(jinja, "[/INST]").value_or(close_);
  if (Contains(jinja, "' ' + message") || Contains(jinja, "\" \" + message")) answer_ = " ";
  system_last_ = Contains(jinja, "loop.last and system_message");
  system_tagged_ = Contains(jinja, "[SYSTEM_PROMPT]");
}

absl::StatusOr<std::string> ChatTemplate::Apply(std::span<const ChatMessage> messages) const {
  if (format_ == Format::kNone) {
    return absl::FailedPreconditionError("the checkpoint has no chat template");
  }
  if (format_ == Format::kUnknown) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint's chat template is none of ChatML, Llama 2, Llama 3, Mistral, Zephyr: ",
        beginning_));
  }
  if (messages.empty()) return absl::InvalidArgumentError("a chat needs at least one message");
  for (const ChatMessage& message : messages) {
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      return absl::InvalidArgumentError(
          absl::StrCat("chat role must be system, user or assistant: ", Printable(message.role)));
    }
  }
  if (format_ == Format::kChatMl) return ApplyChatMl(messages);
  if (format_ == Format::kLlama3) return ApplyLlama3(messages);
  if (format_ == Format::kZephyr) return ApplyZephyr(messages);
  std::string_view system;
  if (messages.front().role == "system") {
    system = messages.front().content;
    messages = messages.subspan(1);
  }
  RETURN_IF_ERROR(CheckAlternating(messages));
  return format_ == Format::kLlama2 ? ApplyLlama2(system, messages)
                                    : ApplyMistral(system, messages);
}

std::string ChatTemplate::ApplyChatMl(std::span<const ChatMessage> messages) const {
  std::string out;
  if (!default_system_.empty() && messages.front().role != "system") {
    absl::StrAppend(&out, "<|im_start|>system\n", default_system_, "<|im_end|>\n");
  }
  for (const ChatMessage& message : messages) {
    absl::StrAppend(&out, "<|im_start|>", message.role, "\n", message.content, "<|im_end|>\n");
  }
  return out + "<|im_start|>assistant\n";
}

std::string ChatTemplate::ApplyLlama3(std::span<const ChatMessage> messages) const {
  const auto turn = [](std::string_view role, const std::string& content) {
    return absl::StrCat("<|start_header_id|>", std::string(role), "<|end_header_id|>\n\n", content,
                        "<|eot_id|>");
  };
  std::string out = special_.bos;
  if (dated_system_) {
    const bool given = messages.front().role == "system";
    out += turn("system", kLlama31Dates + (given ? Trimmed(trim_, messages.front().content) : ""));
    if (given) messages = messages.subspan(1);
  }
  for (const ChatMessage& message : messages) {
    out += turn(message.role, Trimmed(trim_, message.content));
  }
  return out + "<|start_header_id|>assistant<|end_header_id|>\n\n";
}

std::string ChatTemplate::ApplyZephyr(std::span<const ChatMessage> messages) const {
  std::string out;
  for (const ChatMessage& message : messages) {
    absl::StrAppend(&out, "<|", message.role, "|>\n", message.content, special_.eos, "\n");
  }
  return out + "<|assistant|>\n";
}

std::string ChatTemplate::ApplyLlama2(std::string_view system,
                                      std::span<const ChatMessage> messages) const {
  std::string out;
  for (size_t i = 0; i < messages.size(); ++i) {
    std::string content = messages[i].content;
    if (messages[i].role == "assistant") {
      absl::StrAppend(&out, " ", Trimmed(trim_, content), " ", special_.eos);
      continue;
    }
    if (i == 0 && !system.empty()) {
      content = absl::StrCat("<<SYS>>\n", std::string(system), "\n<</SYS>>\n\n", content);
    }
    absl::StrAppend(&out, special_.bos, "[INST] ", Trimmed(trim_, content), " [/INST]");
  }
  return out;
}

std::string ChatTemplate::ApplyMistral(std::string_view system,
                                       std::span<const ChatMessage> messages) const {
  std::string out = special_.bos;
  if (system_tagged_ && !system.empty()) {
    absl::StrAppend(&out, "[SYSTEM_PROMPT]", std::string(system), "[/SYSTEM_PROMPT]");
    system = {};
  }
  const size_t system_at = system_last_ ? messages.size() - 1 : 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role == "assistant") {
      absl::StrAppend(&out, answer_, messages[i].content, special_.eos);
      continue;
    }
    out += open_;
    if (i == system_at && !system.empty()) absl::StrAppend(&out, std::string(system), "\n\n");
    absl::StrAppend(&out, messages[i].content, close_);
  }
  return out;
}

}  // namespace assay
