#include "engine/model/tokenizer/added_tokens.h"

#include <algorithm>
#include <optional>

#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

bool IsWholeWord(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && IsWordCharacter(PreviousCodePoint(text, &begin))) return false;
  return end == text.size() || !IsWordCharacter(CodePointAt(text, end));
}

size_t SkipWhitespaceBack(std::string_view text, size_t at, size_t limit) {
  for (size_t before = at; before > limit; at = before) {
    if (!IsWhitespace(PreviousCodePoint(text, &before))) break;
  }
  return at;
}

size_t SkipWhitespace(std::string_view text, size_t at) {
  while (at < text.size() && IsWhitespace(CodePointAt(text, at))) at += Utf8Length(text[at]);
  return at;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::vector<std::pair<std::string_view, int32_t>> entries;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    entries.emplace_back(tokens_[i].content, static_cast<int32_t>(i));
  }
  // Normalization can make two contents equal: the first keeps it.
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  entries.erase(std::unique(entries.begin(), entries.end(),
                            [](const auto& a, const auto& b) { return a.first == b.first; }),
                entries.end());
  std::erase_if(entries, [](const auto& entry) { return entry.first.empty(); });
  trie_ = ByteTrie(std::move(entries));
}

std::vector<TextOrToken> AddedTokens::Split(std::string_view text, bool parse_special) const {
  std::vector<TextOrToken> out;
  size_t from = 0;  // end of the last token
  for (size_t at = 0; at < text.size() && !trie_.empty();) {
    std::optional<ByteTrie::Match> match;
    trie_.ForEachPrefix(text.substr(at), [&](size_t length, int32_t index) {
      if (parse_special || !tokens_[index].special) match = ByteTrie::Match{length, index};
    });
    if (!match.has_value()) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[match->value];
    TextRange range = {at, at + match->length};
    at = range.end;
    if (token.single_word && !IsWholeWord(text, range.begin, range.end)) continue;
    if (token.lstrip) range.begin = SkipWhitespaceBack(text, range.begin, from);
    if (token.rstrip) range.end = SkipWhitespace(text, range.end);
    if (range.begin > from) out.push_back({{from, range.begin}, -1});
    out.push_back({range, token.id});
    at = from = range.end;
  }
  if (from < text.size()) out.push_back({{from, text.size()}, -1});
  return out;
}

}  // namespace assay
