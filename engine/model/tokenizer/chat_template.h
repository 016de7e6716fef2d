// Conversations as text, in the few formats that models were trained with. A checkpoint's template
// is a Jinja program; this does not run it, it recognises the format by its marks and reads the
// details that vary (default system prompt, blanks around [INST]) from the program's literals.
//
// The text begins with the BOS token where the template writes one, so it is encoded with
// parse_special and without add_special.
//
// Thread rule: immutable.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "engine/model/tokenizer.h"

namespace assay {

class ChatTemplate {
 public:
  struct SpecialTexts {
    std::string bos;  // empty when the vocabulary has none
    std::string eos;
  };
  ChatTemplate() = default;  // Apply is FailedPrecondition
  ChatTemplate(std::string_view jinja, SpecialTexts special);

  // The messages and the opening of the assistant's turn. FailedPrecondition: no template, or none
  // of these formats. InvalidArgument: no messages, or a role or an order of roles that the format
  // cannot express.
  absl::StatusOr<std::string> Apply(std::span<const ChatMessage> messages) const;

 private:
  enum class Format { kNone, kUnknown, kChatMl, kLlama2, kLlama3, kMistral, kZephyr };
  void ReadMistral(std::string_view jinja);
  std::string ApplyChatMl(std::span<const ChatMessage> messages) const;
  std::string ApplyLlama3(std::span<const ChatMessage> messages) const;
  std::string ApplyZephyr(std::span<const ChatMessage> messages) const;
  std::string ApplyLlama2(std::string_view system, std::span<const ChatMessage> messages) const;
  std::string ApplyMistral(std::string_view system, std::span<const ChatMessage> messages) const;

  Format format_ = Format::kNone;
  SpecialTexts special_;
  std::string beginning_;  // of the template, for messages
  std::string
      default_system_;  // ChatML, Llama 3: used when the first message is not a system message
  bool trim_ = false;   // Llama 2 and 3: contents lose their surrounding white space
  std::string open_ = "[INST] ", close_ = " [/INST]",
              answer_;  // Mistral: around user's text, before assistant's
  bool system_last_ =
      false;  // Mistral: the system prompt goes into the last user message, not the first
  bool system_tagged_ = false;  // Mistral: [SYSTEM_PROMPT]
  bool dated_system_ = false;   // Llama 3.1: a system turn with dates comes first
};

}  // namespace assay
