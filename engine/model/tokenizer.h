// Text <-> token ids. One interface over byte-level BPE, SentencePiece BPE and unigram, and
// WordPiece. Thread rule: a Tokenizer is immutable; all methods are const and thread-safe. A
// StreamDecoder belongs to one stream.
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace assay {

struct ChatMessage {
  std::string role;     // "system", "user", "assistant"
  std::string content;  // UTF-8
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::string_view kind() const = 0;  // "bpe", "spm", "unigram", "wordpiece"
  virtual int32_t vocab_size() const = 0;
  // add_special: the model's BOS/EOS or [CLS]/[SEP] around the text, as its checkpoint says.
  // parse_special: literal special tokens in the text ("<|im_start|>") become their ids; otherwise
  // they are encoded as plain text. InvalidArgument for bytes that are not UTF-8 (with the offset).
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special,
                                                      bool parse_special) const = 0;
  // Whole-sequence decode; invalid byte sequences become U+FFFD. OutOfRange for an id outside the
  // vocabulary.
  virtual absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                             bool skip_special) const = 0;
  virtual std::string_view TokenText(
      int32_t id) const = 0;  // as in the vocabulary; empty when out of range
  virtual std::optional<int32_t> TokenId(std::string_view token) const = 0;
  virtual bool is_special(int32_t id) const = 0;
  virtual std::span<const int32_t> end_tokens()
      const = 0;  // ids that end a generation (eos, eot, <|im_end|>)

  // The model's chat template over the messages, with the assistant's turn opened.
  // FailedPrecondition when the checkpoint has no template that this build understands (ChatML,
  // Llama 2, Llama 3, Mistral, Zephyr are recognised by their marks).
  virtual absl::StatusOr<std::string> ApplyChatTemplate(
      std::span<const ChatMessage> messages) const = 0;

  // Streaming decode: Push returns the text that became certain, never a broken UTF-8 sequence;
  // Flush returns the rest, with U+FFFD for a sequence that never completed. The concatenation
  // equals Decode(all ids, skip_special = true).
  class StreamDecoder {
   public:
    virtual ~StreamDecoder() = default;
    virtual std::string Push(int32_t id) = 0;
    virtual std::string Flush() = 0;
  };
  virtual std::unique_ptr<StreamDecoder> NewStreamDecoder() const = 0;
};

// `spec` is Checkpoint::tokenizer(): {"format": "huggingface", "tokenizer": <tokenizer.json>,
// "config": <tokenizer_config.json or {}>} or {"format": "gguf", "metadata": {every key of the file
// that begins with "tokenizer."}}. InvalidArgument: malformed; Unimplemented: names the model,
// normalizer, pre-tokenizer or decoder that is not supported.
// Whether a container holds a tokenizer at all is HasTokenizer(spec).
absl::StatusOr<std::unique_ptr<const Tokenizer>> MakeTokenizer(const nlohmann::json& spec);

bool HasTokenizer(const nlohmann::json& spec);

}  // namespace assay
