// The one implementation of Tokenizer: added tokens -> normalizer -> pre-tokenizer -> model, and a
// decoder. Every format is a choice of these parts.
#pragma once
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/model/tokenizer.h"
#include "engine/model/tokenizer/added_tokens.h"
#include "engine/model/tokenizer/chat_template.h"
#include "engine/model/tokenizer/decoder.h"
#include "engine/model/tokenizer/normalizer.h"
#include "engine/model/tokenizer/pre_tokenizer.h"
#include "engine/model/tokenizer/token_model.h"
#include "engine/model/tokenizer/vocabulary.h"

namespace assay {

struct TokenizerParts {
  std::unique_ptr<const Vocabulary> vocabulary;
  std::unique_ptr<const TokenModel> model;  // refers to *vocabulary
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  AddedTokens added;             // looked for in the text as it comes
  AddedTokens normalized_added;  // looked for behind the normalizer
  Decoder decoder;
  ChatTemplate chat_template;
  std::vector<int32_t> before, after;  // what add_special puts around the text
  std::vector<int32_t> end_tokens;
};

// One for tokenizer.json, one for GGUF metadata. Status codes: MakeTokenizer.
absl::StatusOr<TokenizerParts> PartsFromHuggingFace(const Json& tokenizer, const Json& config);
absl::StatusOr<TokenizerParts> PartsFromGguf(const Json& metadata);

// The tokens that chat formats end a turn with, by their text, and `eos`; ascending. Only those
// that `vocabulary` has.
std::vector<int32_t> FindEndTokens(const Vocabulary& vocabulary, std::optional<int32_t> eos);
// Those texts.
std::span<const std::string_view> EndTokenTexts();

std::unique_ptr<const Tokenizer> MakeTextTokenizer(TokenizerParts parts);

}  // namespace assay
