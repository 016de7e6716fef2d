// A tokenizer's specification as JSON, a zero byte, a text: a Status or a tokenizer whose ids are
// in its vocabulary, and whose stream of them adds up to what it decodes.
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "engine/model/tokenizer.h"

namespace assay {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void Exercise(const Tokenizer& tokenizer, std::string_view text) {
  for (const bool special : {false, true}) {
    const auto ids = tokenizer.Encode(text, special, special);
    if (!ids.ok()) {
      Require(absl::IsInvalidArgument(ids.status()) || absl::IsResourceExhausted(ids.status()));
      continue;
    }
    for (const int32_t id : *ids) Require(id >= 0 && id < tokenizer.vocab_size());
    const auto decoded = tokenizer.Decode(*ids, true);
    Require(decoded.ok());
    const auto stream = tokenizer.NewStreamDecoder();
    std::string streamed;
    for (const int32_t id : *ids) streamed += stream->Push(id);
    streamed += stream->Flush();
    Require(streamed == *decoded);
    (void)nlohmann::json(*decoded).dump();  // throws for text that is not UTF-8
  }
  const std::vector<ChatMessage> messages = {{"user", std::string(text)}};
  (void)tokenizer.ApplyChatTemplate(messages);
}

}  // namespace
}  // namespace assay

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t zero = std::min(bytes.find('\0'), size);
  const auto spec = nlohmann::json::parse(bytes.substr(0, zero), nullptr, false);
  if (spec.is_discarded()) return 0;
  const auto tokenizer = assay::MakeTokenizer(spec);
  if (!tokenizer.ok()) {
    assay::Require(absl::IsInvalidArgument(tokenizer.status()) ||
                   absl::IsUnimplemented(tokenizer.status()));
    return 0;
  }
  assay::Exercise(**tokenizer, bytes.substr(std::min(zero + 1, size)));
  return 0;
}
