// id <-> token text, and what kind each token is.
// Thread rule: immutable once made.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"

namespace assay {

enum class TokenKind : uint8_t {
  kNormal,
  kAdded,    // matched in the text before the model runs, printed as it is
  kSpecial,  // likewise, but only where special tokens are parsed, and not printed (control and
             // unknown tokens)
};

class Vocabulary {
 public:
  // texts[id]; an empty text is a token that nothing produces. InvalidArgument for two ids with one
  // text.
  static absl::StatusOr<Vocabulary> Create(std::vector<std::string> texts,
                                           std::vector<TokenKind> kinds);

  Vocabulary(Vocabulary&&) =
      default;  // strings keep their address, so the views in ids_ stay valid
  Vocabulary& operator=(Vocabulary&&) = default;

  int32_t size() const { return static_cast<int32_t>(texts_.size()); }
  bool Contains(int32_t id) const { return id >= 0 && id < size(); }
  std::string_view text(int32_t id) const { return texts_[id]; }
  TokenKind kind(int32_t id) const { return kinds_[id]; }
  std::optional<int32_t> Find(std::string_view text) const;
  // Only what a model may produce from plain text: special tokens are not found.
  std::optional<int32_t> FindPlain(std::string_view text) const;
  // The 256 tokens "<0x00>".."<0xFF>"; nullopt unless all are there.
  std::optional<std::vector<int32_t>> ByteTokens() const;
  size_t max_token_bytes() const { return max_token_bytes_; }

 private:
  Vocabulary() = default;
  std::vector<std::string> texts_;
  std::vector<TokenKind> kinds_;
  absl::flat_hash_map<std::string_view, int32_t, std::hash<std::string_view>> ids_;
  size_t max_token_bytes_ = 0;
};

// The byte that a token such as "<0x0A>" stands for.
std::optional<uint8_t> ParseByteToken(std::string_view text);

}  // namespace assay
