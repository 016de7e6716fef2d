#include "engine/model/tokenizer/vocabulary.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {

absl::StatusOr<Vocabulary> Vocabulary::Create(std::vector<std::string> texts,
                                              std::vector<TokenKind> kinds) {
  if (texts.empty()) return absl::InvalidArgumentError("tokenizer vocabulary is empty");
  Vocabulary vocabulary;
  vocabulary.texts_ = std::move(texts);
  vocabulary.kinds_ = std::move(kinds);
  vocabulary.ids_.reserve(vocabulary.texts_.size());
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const std::string_view text = vocabulary.texts_[id];
    if (text.empty()) continue;
    const auto [other, inserted] = vocabulary.ids_.emplace(text, id);
    if (!inserted) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", Printable(text), " has two ids: ", other->second, " and ", id));
    }
    vocabulary.max_token_bytes_ = std::max(vocabulary.max_token_bytes_, text.size());
  }
  return vocabulary;
}

std::optional<int32_t> Vocabulary::Find(std::string_view text) const {
  const auto found = ids_.find(text);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

std::optional<int32_t> Vocabulary::FindPlain(std::string_view text) const {
  const auto found = ids_.find(text);
  if (found == ids_.end() || kinds_[found->second] == TokenKind::kSpecial) return std::nullopt;
  return found->second;
}

std::optional<std::vector<int32_t>> Vocabulary::ByteTokens() const {
  std::vector<int32_t> ids;
  for (int byte = 0; byte < 256; ++byte) {
    const std::optional<int32_t> id = Find(absl::StrFormat("<0x%02X>", byte));
    if (!id.has_value()) return std::nullopt;
    ids.push_back(*id);
  }
  return ids;
}

std::optional<uint8_t> ParseByteToken(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text.back() != '>') return std::nullopt;
  uint32_t value = 0;
  if (!absl::SimpleHexAtoi(std::string(text.substr(3, 2)), &value)) return std::nullopt;
  return static_cast<uint8_t>(value);
}

}  // namespace assay
