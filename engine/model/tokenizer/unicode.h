// UTF-8 and the Unicode properties that tokenizers ask for, all from ICU.
// Thread rule: free functions, thread-safe; a Utf8Sink belongs to one stream.
#pragma once
#include <unicode/utypes.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "base/status.h"

namespace assay {

// InvalidArgument with the offset of the first byte that is not part of a UTF-8 sequence.
absl::Status CheckUtf8(std::string_view text);

// Calls visit(code point, begin, end) for each code point of valid UTF-8; begin and end are byte
// offsets.
template <typename Visit>
void ForEachCodePoint(std::string_view text, Visit visit);

// Length in bytes of the UTF-8 sequence that `lead` begins; 1 for bytes that begin none.
inline size_t Utf8Length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}
size_t CountCodePoints(std::string_view text);
void AppendCodePoint(UChar32 code_point, std::string* out);
UChar32 DecodeCodePoint(std::string_view text, size_t begin);

bool IsWhitespace(UChar32 c);             // property White_Space
bool IsNumeric(UChar32 c);                // Nd, Nl, No
bool IsPunctuation(UChar32 c);            // P* and the ASCII symbols
bool IsWordCharacter(UChar32 c);          // \w of UTS 18: Alphabetic, M, Nd, Pc, Join_Control
bool IsCombiningMark(UChar32 c);          // M*
bool IsNonspacingMark(UChar32 c);         // Mn
bool IsControlOrUnassignable(UChar32 c);  // Cc, Cf, Co, Cs
bool IsCjkIdeograph(UChar32 c);           // the blocks that BERT puts spaces around

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

#include "engine/model/tokenizer/unicode_inl.h"
