// Codes of 3, 4 and 8 bits in bytes: code i lies at bits [bits * i, bits * (i + 1)) of a little-
// endian bit string, the first code in the lowest bits. So in 4 bits byte j holds code 2j in its
// low and code 2j + 1 in its high half; 8 codes of 3 bits take 3 bytes. The bits behind the last
// code are zero. Each row begins at a byte. Thread-safe.
#pragma once
#include <cstdint>
#include <cstring>

namespace assay {

template <int kBits>
constexpr int64_t PackedBytes(int64_t count) {
  return (count * kBits + 7) / 8;
}

// codes [count], each below 2^kBits, one a byte -> out [PackedBytes(count)].
template <int kBits>
void PackCodes(const uint8_t* codes, int64_t count, uint8_t* out) {
  static_assert(kBits == 3 || kBits == 4 || kBits == 8);
  if constexpr (kBits == 8) {
    std::memcpy(out, codes, static_cast<size_t>(count));
  } else if constexpr (kBits == 4) {
    const int64_t pairs = count / 2;
    for (int64_t j = 0; j < pairs; ++j)
      out[j] = static_cast<uint8_t>(codes[2 * j] | codes[2 * j + 1] << 4);
    if (count % 2 != 0) out[pairs] = codes[count - 1];
  } else {
    for (int64_t i = 0; i < count; i += 8) {
      const int64_t rest = count - i < 8 ? count - i : 8;
      uint32_t bits = 0;
      for (int64_t j = 0; j < rest; ++j) bits |= static_cast<uint32_t>(codes[i + j]) << (3 * j);
      for (int64_t b = 0; b < PackedBytes<3>(rest); ++b)
        *out++ = static_cast<uint8_t>(bits >> (8 * b));
    }
  }
}

template <int kBits>
void UnpackCodes(const uint8_t* packed, int64_t count, uint8_t* codes) {
  static_assert(kBits == 3 || kBits == 4 || kBits == 8);
  if constexpr (kBits == 8) {
    std::memcpy(codes, packed, static_cast<size_t>(count));
  } else if constexpr (kBits == 4) {
    const int64_t pairs = count / 2;
    for (int64_t j = 0; j < pairs; ++j) {
      codes[2 * j] = packed[j] & 15;
      codes[2 * j + 1] = packed[j] >> 4;
    }
    if (count % 2 != 0) codes[count - 1] = packed[pairs] & 15;
  } else {
    for (int64_t i = 0; i < count; i += 8) {
      const int64_t rest = count - i < 8 ? count - i : 8;
      uint32_t bits = 0;
      for (int64_t b = 0; b < PackedBytes<3>(rest); ++b)
        bits |= static_cast<uint32_t>(*packed++) << (8 * b);
      for (int64_t j = 0; j < rest; ++j) codes[i + j] = (bits >> (3 * j)) & 7;
    }
  }
}

}  // namespace assay
