// Text -> tokens for a model that serves. Pure; long texts are TextWorkers' work.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/lifecycle/registry.h"

namespace assay {

// FailedPrecondition: the checkpoint came without a tokenizer.
absl::Status CheckTokenizer(const Servable& servable);

// The most bytes that a text is tokenized with: what the context holds of the vocabulary's longest
// token, and at least 64 KiB. What is longer is refused (or cut) unread.
size_t MostBytes(const Servable& servable, size_t text_bytes);
// InvalidArgument: a text that is longer than that, with both numbers.
absl::Status CheckBytes(const Servable& servable, size_t text_bytes);

// Texts of one request that belong together. InvalidArgument: more than 4 MiB of them in all.
absl::Status CheckTotalBytes(size_t bytes);

// A prompt as the client wrote it; special tokens in the text count. InvalidArgument: not UTF-8, or
// no tokens.
absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Servable& servable, std::string_view text);

// Messages through the model's chat template. InvalidArgument: no messages, unknown role;
// FailedPrecondition: the model has no template.
absl::StatusOr<std::vector<int32_t>> EncodeChat(const Servable& servable,
                                                std::span<const ChatMessage> messages);

// One text for an encoder, special tokens around it. With `truncate` what is longer than the
// context loses its end (but keeps its last special token); else the engine refuses it.
absl::StatusOr<std::vector<int32_t>> EncodeForEncoder(const Servable& servable,
                                                      std::string_view text, bool truncate);

}  // namespace assay
