// Canonical Huffman codes of bytes, at most 12 bits long. Codes are written most significant bit
// first. Shorter codes come first, codes of one length in the order of their symbols, so that the
// 256 lengths say everything (as in RFC 1951, 3.2.2). Thread-safe.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace assay {

inline constexpr int kMaxCodeLength = 12;
using CodeLengths = std::array<uint8_t, 256>;  // by symbol; 0 = the symbol does not occur

// The lengths that make the text shortest within the limit (package-merge: Larmore, Hirschberg
// 1990). A text of one symbol has length 1.
CodeLengths OptimalLengths(const std::array<int64_t, 256>& counts);

// The codes of `lengths`: a code's bits in the low `lengths[symbol]` bits. REQUIRES: lengths from
// OptimalLengths, or accepted by HuffmanDecoder::Init.
std::array<uint16_t, 256> CanonicalCodes(const CodeLengths& lengths);

// Appends the codes of `symbols`, filled up to a byte with zero bits.
void AppendTile(std::span<const uint8_t> symbols, const CodeLengths& lengths,
                const std::array<uint16_t, 256>& codes, std::vector<uint8_t>& out);

// Lives on the stack: 8 KB.
class HuffmanDecoder {
 public:
  // InvalidArgument unless the lengths are those of a prefix code.
  absl::Status Init(std::span<const uint8_t> lengths);  // [256]
  // Fills `symbols` from a tile; false if its bytes are not exactly the codes of so many symbols.
  bool DecodeTile(std::span<const uint8_t> tile, std::span<uint8_t> symbols) const;

 private:
  struct Entry {
    uint8_t symbol, length;  // length 0: no code begins so
  };
  std::array<Entry, 1 << kMaxCodeLength> table_;  // by the next 12 bits
};

}  // namespace assay
