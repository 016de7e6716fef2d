// Texts as documents of token ids: what calibration and evaluation sets are cut from. Deterministic
// and pure.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/model/tokenizer.h"

namespace assay {

using TokenDocument = std::vector<int32_t>;

inline constexpr size_t kMinDocumentTokens = 8;  // of text; what is shorter says little

// Articles of a text, as WikiText marks their titles (" = Title = "); a text with fewer than two
// titles is cut into `pieces` > 0 of about equal size at line ends.
std::vector<std::string_view> SplitArticles(std::string_view text, int pieces);
// Sentences of a text in its order: up to " . " or the end of the line; headings and what is
// shorter than 24 bytes left out.
std::vector<std::string_view> SplitSentences(std::string_view text);

// `wanted` of the numbers [0, count), ascending, spread evenly; all of them when there are fewer.
std::vector<size_t> SpreadIndices(size_t count, size_t wanted);

// At most `limit` > 0 tokens of an encoder's input, the closing special token kept.
void TruncateEncoded(size_t limit, TokenDocument* ids);

// Pseudo-random ids in [0, vocab): splitmix64 (Steele, Lea, Flood 2014).
struct RandomDocumentShape {
  size_t documents = 0, tokens = 0;
};
std::vector<TokenDocument> RandomDocuments(RandomDocumentShape shape, int vocab, uint64_t seed);

// SHA-256 over the lengths and ids, 64 hex digits.
std::string HashDocuments(const std::vector<TokenDocument>& documents);

}  // namespace assay
