// UTF-8 and the Unicode properties that tokenizers ask for, all from ICU.
// Thread rule: free functions, thread-safe; a Utf8Sink belongs to one stream.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace assay {

// InvalidArgument with the offset of the first byte that is not part of a UTF-8 sequence.
absl::Status CheckUtf8(std::string_view text);

using CodePoint = int32_t;

// The code point that begins at *at, which moves behind it; U+FFFD for bytes that are none. `at`
// must be in the text.
CodePoint NextCodePoint(std::string_view text, size_t* at);
inline CodePoint CodePointAt(std::string_view text, size_t at) { return NextCodePoint(text, &at); }
// The code point that ends at *at > 0, which moves to its beginning.
CodePoint PreviousCodePoint(std::string_view text, size_t* at);
// Calls visit(code point, begin, end) for each; begin and end are byte offsets.
template <typename Visit>
void ForEachCodePoint(std::string_view text, Visit visit) {
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const CodePoint c = NextCodePoint(text, &at);
    visit(c, begin, at);
  }
}
void AppendCodePoint(CodePoint c, std::string* out);
size_t CountCodePoints(std::string_view text);
// Length in bytes of the UTF-8 sequence that `lead` begins; 1 for bytes that begin none.
inline size_t Utf8Length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}
// Letters by script: "Latin", "Han", "Cyrillic", ... (UAX 24, long names; General_Category L).
// Letters that all scripts share count as "Common".
std::map<std::string, int64_t> CountScripts(std::string_view text);
// The ends of the extended grapheme clusters (UAX 29), as byte offsets.
std::vector<size_t> ClusterEnds(std::string_view text);

bool IsWhitespace(CodePoint c);             // property White_Space
bool IsNumeric(CodePoint c);                // Nd, Nl, No
bool IsPunctuation(CodePoint c);            // P* and the ASCII symbols
bool IsWordCharacter(CodePoint c);          // \w of UTS 18: Alphabetic, M, Nd, Pc, Join_Control
bool IsCombiningMark(CodePoint c);          // M*
bool IsNonspacingMark(CodePoint c);         // Mn
bool IsControlOrUnassignable(CodePoint c);  // Cc, Cf, Co, Cs
bool IsCjkIdeograph(CodePoint c);           // the blocks that BERT puts spaces around

// `text` without the white space at its ends.
std::string_view TrimWhitespace(std::string_view text, bool left, bool right);
// For messages: escaped, at most 80 bytes of it.
std::string Printable(std::string_view text);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
std::string Normalize(NormalForm form, std::string_view text);
// Code point by code point, without context: a capital sigma becomes a medial one wherever it
// stands.
std::string Lowercase(std::string_view text);

// Bytes in, valid UTF-8 out: a sequence that is still incomplete is held back, one that can never
// complete becomes U+FFFD (one for each maximal subpart, as the WHATWG decoder does).
class Utf8Sink {
 public:
  void Append(std::string_view bytes, std::string* out);
  void Flush(std::string* out);

 private:
  std::string pending_;
};

}  // namespace assay
