// The template of unicode.h.
#pragma once
#include <unicode/utf8.h>

#include "engine/model/tokenizer/unicode.h"

namespace assay {

template <typename Visit>
void ForEachCodePoint(std::string_view text, Visit visit) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    UChar32 c;
    U8_NEXT_OR_FFFD(bytes, at, text.size(), c);
    visit(c, begin, at);
  }
}

}  // namespace assay
