#include <algorithm>

#include "engine/model/tokenizer/byte_trie.h"
#include "engine/model/tokenizer/token_model.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

// Longest match first, from the left; a word that cannot be covered is one unknown token.
class WordPieceModel final : public TokenModel {
 public:
  WordPieceModel(const Vocabulary* vocabulary, const WordPieceOptions& options)
      : unknown_id_(options.unknown_id), max_characters_(options.max_characters_per_word) {
    const std::string_view prefix = options.continuing_subword_prefix;
    std::vector<std::pair<std::string_view, int32_t>> initial, continuing;
    for (int32_t id = 0; id < vocabulary->size(); ++id) {
      const std::string_view text = vocabulary->text(id);
      if (text.empty() || vocabulary->kind(id) == TokenKind::kSpecial) continue;
      initial.emplace_back(text, id);  // "##a" is also what the three characters spell
      if (text.size() > prefix.size() && text.substr(0, prefix.size()) == prefix) {
        continuing.emplace_back(text.substr(prefix.size()), id);
      }
    }
    initial_ = ByteTrie(std::move(initial));
    continuing_ = ByteTrie(std::move(continuing));
  }

  std::string_view kind() const override { return "wordpiece"; }

  void Tokenize(std::string_view piece, std::vector<int32_t>* ids) const override {
    const size_t first = ids->size();
    if (CountCodePoints(piece) > max_characters_) {
      ids->push_back(unknown_id_);
      return;
    }
    for (size_t at = 0; at < piece.size();) {
      const ByteTrie& trie = at == 0 ? initial_ : continuing_;
      const std::optional<ByteTrie::Match> match = trie.LongestPrefix(piece.substr(at));
      if (!match.has_value()) {
        ids->resize(first);
        ids->push_back(unknown_id_);
        return;
      }
      ids->push_back(match->value);
      at += match->length;
    }
  }

 private:
  const int32_t unknown_id_;
  const size_t max_characters_;
  ByteTrie initial_, continuing_;
};

}  // namespace

std::unique_ptr<TokenModel> MakeWordPieceModel(const Vocabulary* vocabulary,
                                               const WordPieceOptions& options) {
  return std::make_unique<WordPieceModel>(vocabulary, options);
}

}  // namespace assay
