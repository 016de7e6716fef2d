// What turns one pre-token into ids: byte-pair encoding by merge ranks (GPT-2, Llama 3,
// tokenizer.json's BPE), by piece scores (SentencePiece BPE in GGUF), unigram language model, word
// pieces.
//
// Thread rule: immutable; the vocabulary must outlive the model.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "engine/model/tokenizer/vocabulary.h"

namespace assay {

class TokenModel {
 public:
  virtual ~TokenModel() = default;
  virtual std::string_view kind() const = 0;  // Tokenizer::kind()
  // Appends the ids of one non-empty pre-token, valid UTF-8 of less than 2^31 bytes.
  virtual void Tokenize(std::string_view piece, std::vector<int32_t>* ids) const = 0;
};

struct BpeOptions {
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  std::optional<int32_t>
      unknown_id;  // for characters outside the vocabulary; without one they vanish
  bool fuse_unknown = false;
  bool byte_fallback = false;  // "<0x00>".."<0xFF>" before unknown_id
  bool ignore_merges = false;  // a pre-token that is in the vocabulary is that token
  std::string continuing_subword_prefix;
  std::string end_of_word_suffix;
};
// InvalidArgument for a merge whose parts or result are not in the vocabulary.
absl::StatusOr<std::unique_ptr<TokenModel>> MakeBpeModel(const Vocabulary* vocabulary,
                                                         const BpeOptions& options);

struct SentencePieceBpeOptions {
  std::vector<float> scores;  // [vocabulary size], higher first
  std::optional<int32_t> unknown_id;
};
// InvalidArgument when the scores do not fit, or a character could end up without a token (neither
// bytes nor unknown).
absl::StatusOr<std::unique_ptr<TokenModel>> MakeSentencePieceBpeModel(
    const Vocabulary* vocabulary, const SentencePieceBpeOptions& options);

struct UnigramOptions {
  std::vector<double> scores;  // [tokens of the model], log probabilities
  std::vector<bool> usable;    // likewise; false for control tokens and bytes
  std::optional<int32_t> unknown_id;
  bool byte_fallback = false;
};
// Likewise.
absl::StatusOr<std::unique_ptr<TokenModel>> MakeUnigramModel(const Vocabulary* vocabulary,
                                                             UnigramOptions options);

struct WordPieceOptions {
  int32_t unknown_id = 0;
  std::string continuing_subword_prefix = "##";
  size_t max_characters_per_word = 100;  // a longer word is unknown as a whole
};
std::unique_ptr<TokenModel> MakeWordPieceModel(const Vocabulary* vocabulary,
                                               const WordPieceOptions& options);

}  // namespace assay
