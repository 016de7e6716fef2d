#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/model/tokenizer/byte_trie.h"
#include "engine/model/tokenizer/token_model.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

constexpr double kUnknownPenalty = 10;  // below the worst piece, as SentencePiece

// Viterbi over the pieces (Kudo 2018), one pass over the characters.
class UnigramModel final : public TokenModel {
 public:
  UnigramModel(const Vocabulary* vocabulary, UnigramOptions options)
      : vocabulary_(*vocabulary),
        scores_(std::move(options.scores)),
        unknown_id_(options.unknown_id.value_or(-1)) {
    if (options.byte_fallback) byte_ids_ = vocabulary_.ByteTokens();
    std::vector<std::pair<std::string_view, int32_t>> pieces;
    double worst = std::numeric_limits<double>::infinity();
    for (size_t id = 0; id < scores_.size(); ++id) {
      const std::string_view text = vocabulary_.text(static_cast<int32_t>(id));
      if (!options.usable[id] || text.empty()) continue;
      worst = std::min(worst, scores_[id]);
      pieces.emplace_back(text, static_cast<int32_t>(id));
    }
    unknown_score_ = (pieces.empty() ? 0 : worst) - kUnknownPenalty;
    trie_ = ByteTrie(std::move(pieces));
  }

  std::string_view kind() const override { return "unigram"; }

  void Tokenize(std::string_view piece, std::vector<int32_t>* ids) const override {
    struct Best {  // way to reach one byte offset
      double score = 0;
      int32_t id = -1;
      int64_t from = -1;  // -1: not reached
    };
    std::vector<Best> best(piece.size() + 1);
    const auto offer = [&](size_t at, size_t length, double score, int32_t id) {
      const double total = best[at].score + score;
      Best& target = best[at + length];
      if (target.from < 0 || total > target.score) {
        target = {total, id, static_cast<int64_t>(at)};
      }
    };
    for (size_t at = 0; at < piece.size();) {
      const size_t width = std::min(Utf8Length(piece[at]), piece.size() - at);
      bool has_single = false;
      trie_.ForEachPrefix(piece.substr(at), [&](size_t length, int32_t id) {
        offer(at, length, scores_[id], id);
        has_single |= length == width;
      });
      if (!has_single) offer(at, width, unknown_score_, unknown_id_);
      at += width;
    }
    Backtrack(piece, best, ids);
  }

 private:
  template <typename Path>
  void Backtrack(std::string_view piece, const Path& best, std::vector<int32_t>* ids) const {
    const size_t first = ids->size();
    size_t unknown_end = 0;  // end of the run of unknown characters being gathered, 0 outside one
    const auto flush = [&](size_t begin) {
      if (unknown_end == 0) return;
      AppendUnknown(piece.substr(begin, unknown_end - begin), ids);
      unknown_end = 0;
    };
    for (size_t end = piece.size(); end > 0; end = static_cast<size_t>(best[end].from)) {
      if (best[end].id == unknown_id_) {
        if (unknown_end == 0) unknown_end = end;
        continue;
      }
      flush(end);
      ids->push_back(best[end].id);
    }
    flush(0);
    std::reverse(ids->begin() + static_cast<std::ptrdiff_t>(first), ids->end());
  }

  // In reverse, because Backtrack turns everything round.
  void AppendUnknown(std::string_view text, std::vector<int32_t>* ids) const {
    if (!byte_ids_.has_value()) {
      ids->push_back(unknown_id_);
      return;
    }
    for (size_t i = text.size(); i-- > 0;) {
      ids->push_back((*byte_ids_)[static_cast<uint8_t>(text[i])]);
    }
  }

  const Vocabulary& vocabulary_;
  const std::vector<double> scores_;
  const int32_t unknown_id_;  // -1: none, bytes instead
  std::optional<std::vector<int32_t>> byte_ids_;
  double unknown_score_ = 0;
  ByteTrie trie_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenModel>> MakeUnigramModel(const Vocabulary* vocabulary,
                                                             UnigramOptions options) {
  if (options.scores.size() > static_cast<size_t>(vocabulary->size()) ||
      options.usable.size() != options.scores.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Unigram needs one score per token: scores=", options.scores.size(),
                     " tokens=", vocabulary->size()));
  }
  if (std::any_of(options.scores.begin(), options.scores.end(),
                  [](double score) { return score != score; })) {
    return absl::InvalidArgumentError("Unigram scores contain NaN");
  }
  const bool has_bytes = options.byte_fallback && vocabulary->ByteTokens().has_value();
  if (!options.unknown_id.has_value() && !has_bytes) {
    return absl::InvalidArgumentError(
        "Unigram vocabulary has neither an unknown token nor byte fallback with all of "
        "<0x00>..<0xFF>");
  }
  return std::make_unique<UnigramModel>(vocabulary, std::move(options));
}

}  // namespace assay
