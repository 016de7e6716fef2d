// SentencePiece's compiled normalization rules (normalizer_spec.precompiled_charsmap): a uint32
// with the size in bytes of a double array (Darts-clone units of 32 bits, little-endian), the
// array, then the replacements, each ended by a zero. Unit: bits 0-7 label, bit 8 has a leaf, bit 9
// and 10-30 the offset to the children; a leaf's bits 0-30 are the replacement's position. Thread
// rule: immutable.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace assay {

class PrecompiledCharsmap {
 public:
  // InvalidArgument when the sizes contradict each other.
  static absl::StatusOr<PrecompiledCharsmap> Parse(std::string_view bytes);

  // As SentencePiece does it: the longest rule at each position, else one character.
  // ResourceExhausted: more bytes than MostNormalized (normalizer.h), here and below.
  absl::StatusOr<std::string> NormalizeByLongest(std::string_view text) const;
  // As Hugging Face tokenizers does it: short grapheme clusters as a whole, then character by
  // character.
  absl::StatusOr<std::string> NormalizeByGrapheme(std::string_view text) const;

 private:
  struct Rule {
    size_t length;  // bytes of the text
    std::string_view replacement;
  };
  // The rules that match at the beginning of `text`: the shortest, or the longest.
  std::optional<Rule> Match(std::string_view text, bool longest) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace assay
