#include <algorithm>
#include <limits>
#include <numeric>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/model/tokenizer/merge_queue.h"
#include "engine/model/tokenizer/token_model.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

class BpeModel final : public TokenModel {
 public:
  BpeModel(const Vocabulary* vocabulary, const BpeOptions& options)
      : vocabulary_(*vocabulary),
        unknown_id_(options.unknown_id),
        fuse_unknown_(options.fuse_unknown),
        ignore_merges_(options.ignore_merges),
        prefix_(options.continuing_subword_prefix),
        suffix_(options.end_of_word_suffix) {
    if (options.byte_fallback) byte_ids_ = vocabulary_.ByteTokens();
  }

  absl::Status AddMerge(const std::pair<std::string, std::string>& merge, uint32_t rank) {
    const auto& [left, right] = merge;
    const bool continues = !prefix_.empty() && right.compare(0, prefix_.size(), prefix_) == 0;
    const std::string joined = left + (continues ? right.substr(prefix_.size()) : right);
    int32_t ids[3];
    const std::string* parts[3] = {&left, &right, &joined};
    for (int i = 0; i < 3; ++i) {
      const std::optional<int32_t> id = vocabulary_.Find(*parts[i]);
      if (!id.has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat("merge ", rank, " (", Printable(left), " ", Printable(right),
                         ") names a token that is not in the vocabulary: ", Printable(*parts[i])));
      }
      ids[i] = *id;
    }
    rules_[PairKey(ids[0], ids[1])] = {.rank = rank, .id = ids[2]};
    return absl::OkStatus();
  }

  std::string_view kind() const override { return "bpe"; }

  void Tokenize(std::string_view piece, std::vector<int32_t>* ids) const override {
    if (ignore_merges_) {
      if (const std::optional<int32_t> id = vocabulary_.FindPlain(piece)) {
        ids->push_back(*id);
        return;
      }
    }
    std::vector<MergeSymbol> symbols = Split(piece);
    MergeSymbols(
        [this](const MergeSymbol& left, const MergeSymbol& right) -> std::optional<MergeRule> {
          const auto found = rules_.find(PairKey(left.id, right.id));
          if (found == rules_.end()) return std::nullopt;
          return found->second;
        },
        &symbols);
    for (const MergeSymbol& symbol : symbols) {
      if (symbol.alive) ids->push_back(symbol.id);
    }
  }

 private:
  // One symbol per character that is in the vocabulary; bytes, unknown tokens or nothing for the
  // others.
  std::vector<MergeSymbol> Split(std::string_view piece) const {
    std::vector<MergeSymbol> symbols;
    symbols.reserve(piece.size());
    bool after_unknown = false;
    std::string decorated;
    for (size_t begin = 0, end; begin < piece.size(); begin = end) {
      end = std::min(piece.size(), begin + Utf8Length(piece[begin]));
      std::string_view text = piece.substr(begin, end - begin);
      if (!prefix_.empty() || !suffix_.empty()) {
        decorated =
            (begin > 0 ? prefix_ : "") + std::string(text) + (end == piece.size() ? suffix_ : "");
        text = decorated;
      }
      const auto at = static_cast<uint32_t>(begin), to = static_cast<uint32_t>(end);
      const std::optional<int32_t> id = vocabulary_.FindPlain(text);
      if (!id.has_value() && !byte_ids_.has_value()) {
        if (unknown_id_.has_value() && !(after_unknown && fuse_unknown_)) {
          AppendSymbol(*unknown_id_, at, to, &symbols);
        } else if (unknown_id_.has_value()) {
          symbols.back().end = to;
        }
        after_unknown = true;
        continue;
      }
      after_unknown = false;
      if (id.has_value()) {
        AppendSymbol(*id, at, to, &symbols);
        continue;
      }
      for (uint32_t i = 0; i < text.size(); ++i) {
        AppendSymbol((*byte_ids_)[static_cast<uint8_t>(text[i])], at + i, at + i + 1, &symbols);
      }
    }
    return symbols;
  }

  const Vocabulary& vocabulary_;
  const std::optional<int32_t> unknown_id_;
  const bool fuse_unknown_, ignore_merges_;
  const std::string prefix_, suffix_;
  std::optional<std::vector<int32_t>> byte_ids_;
  absl::flat_hash_map<uint64_t, MergeRule> rules_;
};

// SentencePiece's BPE keeps no merges: any two neighbours whose texts together are a piece may
// join, the one with the best score first.
class SentencePieceBpeModel final : public TokenModel {
 public:
  SentencePieceBpeModel(const Vocabulary* vocabulary, const SentencePieceBpeOptions& options,
                        std::optional<std::vector<int32_t>> byte_ids)
      : vocabulary_(*vocabulary),
        unknown_id_(options.unknown_id),
        byte_ids_(std::move(byte_ids)),
        ranks_(options.scores.size()) {
    std::vector<int32_t> order(options.scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int32_t a, int32_t b) { return options.scores[a] > options.scores[b]; });
    uint32_t rank = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0 && options.scores[order[i]] != options.scores[order[i - 1]]) ++rank;
      ranks_[order[i]] = rank;
    }
  }

  std::string_view kind() const override { return "spm"; }

  void Tokenize(std::string_view piece, std::vector<int32_t>* ids) const override {
    std::vector<MergeSymbol> symbols;
    symbols.reserve(piece.size());
    for (size_t begin = 0, end; begin < piece.size(); begin = end) {
      end = std::min(piece.size(), begin + Utf8Length(piece[begin]));
      const std::optional<int32_t> id = vocabulary_.FindPlain(piece.substr(begin, end - begin));
      AppendSymbol(id.value_or(-1), static_cast<uint32_t>(begin), static_cast<uint32_t>(end),
                   &symbols);
    }
    MergeSymbols(
        [&](const MergeSymbol& left, const MergeSymbol& right) -> std::optional<MergeRule> {
          const size_t length = right.end - left.begin;
          if (length > vocabulary_.max_token_bytes()) return std::nullopt;
          const std::optional<int32_t> id = vocabulary_.FindPlain(piece.substr(left.begin, length));
          if (!id.has_value()) return std::nullopt;
          return MergeRule{.rank = ranks_[*id], .id = *id};
        },
        &symbols);
    for (const MergeSymbol& symbol : symbols) {
      if (symbol.alive) Append(symbol, piece, ids);
    }
  }

 private:
  void Append(const MergeSymbol& symbol, std::string_view piece, std::vector<int32_t>* ids) const {
    if (symbol.id >= 0) {
      ids->push_back(symbol.id);
    } else if (byte_ids_.has_value()) {
      for (uint32_t i = symbol.begin; i < symbol.end; ++i) {
        ids->push_back((*byte_ids_)[static_cast<uint8_t>(piece[i])]);
      }
    } else {
      ids->push_back(*unknown_id_);
    }
  }

  const Vocabulary& vocabulary_;
  const std::optional<int32_t> unknown_id_;
  const std::optional<std::vector<int32_t>> byte_ids_;
  std::vector<uint32_t> ranks_;  // [vocabulary size], equal scores share one
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenModel>> MakeBpeModel(const Vocabulary* vocabulary,
                                                         const BpeOptions& options) {
  auto model = std::make_unique<BpeModel>(vocabulary, options);
  for (size_t i = 0; i < options.merges.size(); ++i) {
    RETURN_IF_ERROR(model->AddMerge(options.merges[i], static_cast<uint32_t>(i)));
  }
  return model;
}

absl::StatusOr<std::unique_ptr<TokenModel>> MakeSentencePieceBpeModel(
    const Vocabulary* vocabulary, const SentencePieceBpeOptions& options) {
  if (options.scores.size() != static_cast<size_t>(vocabulary->size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("SentencePiece needs one score per token: scores=", options.scores.size(),
                     " tokens=", vocabulary->size()));
  }
  if (std::any_of(options.scores.begin(), options.scores.end(),
                  [](float score) { return score != score; })) {
    return absl::InvalidArgumentError("SentencePiece scores contain NaN");
  }
  std::optional<std::vector<int32_t>> byte_ids = vocabulary->ByteTokens();
  if (!byte_ids.has_value() && !options.unknown_id.has_value()) {
    return absl::InvalidArgumentError(
        "SentencePiece vocabulary has neither all byte tokens <0x00>..<0xFF> nor an unknown token");
  }
  return std::make_unique<SentencePieceBpeModel>(vocabulary, options, std::move(byte_ids));
}

}  // namespace assay
