// How the skinny product (skinny_kernel.h) widens eight codes of a lane to pairs of T, and where it
// finds their scale and zero point. Everything but nf4's rounding to T is exact:
//
//   int4     the code in the low bits of 1024 (f16) or 128 (bf16), minus that and the zero point:
//            integers of at most 15. f16's odd codes lie 4 bits higher: 1024 + 16 c, times 1/16
//   int8     f16: 1024 + byte likewise. bf16 has 7 bits of mantissa: 128 + the low 7 bits, minus
//            128 or, where bit 7 is set, 256; the difference to the zero point has 8 bits
//   e4m3     its bits moved into T's exponent and mantissa, times 2^8 (f16) or 2^120 (bf16);
//            subnormals come out right, NaN does not (no encoder writes it)
//   nf4      a table of the 256 pairs in shared memory
//
// kFourApart: pair i holds the codes i and i + 4 (what one AND of a word of nibbles leaves), else
// 2i and 2i + 1.
#pragma once
#include "base/cuda/simt_math.h"
#include "quant/kernels/cuda/stored_weight.h"

namespace assay::ASSAY_SIMT {

template <typename T>
inline constexpr bool kIsF16 = false;
template <>
inline constexpr bool kIsF16<F16> = true;

// A group of a row's inputs, of `groups` that the row has.
struct GroupAt {
  int row, group, groups;
  ASSAY_DEVICE size_t index() const { return static_cast<size_t>(row) * groups + group; }
};

ASSAY_DEVICE float ScaleBf16(const StoredWeight& w, const GroupAt& at) {
  return ToFloat(Bf16{static_cast<const uint16_t*>(w.scales)[at.index()]});
}
ASSAY_DEVICE float ScaleF32(const StoredWeight& w, const GroupAt& at) {
  return static_cast<const float*>(w.scales)[at.index()];
}
ASSAY_DEVICE int ZeroOfByte(const StoredWeight& w, const GroupAt& at) {
  return static_cast<const uint8_t*>(w.zeros)[at.index()];
}
ASSAY_DEVICE int ZeroOfNibble(const StoredWeight& w, const GroupAt& at) {
  const GroupAt pair = {at.row, at.group / 2, (at.groups + 1) / 2};
  return (ZeroOfByte(w, pair) >> (4 * (at.group % 2))) & 15;
}

struct NoTable {
  static constexpr int kTable = 1;
  template <typename T>
  ASSAY_DEVICE static void FillTable(uint32_t*) {}
};

struct Int4Format : NoTable {
  static constexpr int kBits = 4;
  static constexpr bool kGrouped = true, kFourApart = true;
  ASSAY_DEVICE static float Scale(const StoredWeight& w, const GroupAt& at) {
    return ScaleBf16(w, at);
  }
  ASSAY_DEVICE static int Zero(const StoredWeight& w, const GroupAt& at) {
    return w.zeros == nullptr ? 8 : ZeroOfNibble(w, at);
  }
  template <typename T>
  ASSAY_DEVICE static void Widen(Pair codes, int zero, const uint32_t*, uint32_t (&out)[4]) {
    const uint32_t q = codes.x, zeros = static_cast<uint32_t>(zero) * 0x00010001u;
    if constexpr (kIsF16<T>) {
      const uint32_t base = 0x64006400u + zeros;          // 1024 + z
      const uint32_t minus = 0xd400d400u + (zeros << 4);  // -(64 + z)
      constexpr uint32_t kSixteenth = 0x2c002c00u;
      const uint32_t r = q >> 8;
      out[0] = Sub2<T>((q & 0x000f000fu) | 0x64006400u, base);
      out[1] = Fma2<T>((q & 0x00f000f0u) | 0x64006400u, kSixteenth, minus);
      out[2] = Sub2<T>((r & 0x000f000fu) | 0x64006400u, base);
      out[3] = Fma2<T>((r & 0x00f000f0u) | 0x64006400u, kSixteenth, minus);
    } else {
      const uint32_t base = 0x43004300u + zeros;  // 128 + z
      ASSAY_UNROLL
      for (int i = 0; i < 4; ++i)
        out[i] = Sub2<T>(((q >> (4 * i)) & 0x000f000fu) | 0x43004300u, base);
    }
  }
};

// Eight bytes to pairs of integers minus a zero point; signed codes have bit 7 inverted by `flip`,
// so that they count from 128.
template <typename T>
ASSAY_DEVICE void WidenBytes(Pair codes, uint32_t flip, int zero, uint32_t (&out)[4]) {
  ASSAY_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t word = (i < 2 ? codes.x : codes.y) ^ flip;
    if constexpr (kIsF16<T>) {
      const uint32_t magic = Bytes(word, 0x64646464u, i % 2 == 0 ? 0x4140u : 0x4342u);
      out[i] = Sub2<T>(magic, 0x64006400u + static_cast<uint32_t>(zero) * 0x00010001u);
    } else {
      // Here bit 7 says -128: of byte - 128.
      const uint32_t pair = Bytes(word ^ 0x80808080u, 0, i % 2 == 0 ? 0x4140u : 0x4342u);
      const uint32_t code =
          Sub2<T>((pair & 0x007f007fu) | 0x43004300u, (pair & 0x00800080u) | 0x43004300u);
      const auto shift = static_cast<float>(zero - 128);
      out[i] = Sub2<T>(code, Pack2<T>(shift, shift));
    }
  }
}

struct Int8ChannelFormat : NoTable {
  static constexpr int kBits = 8;
  static constexpr bool kGrouped = false, kFourApart = false;
  ASSAY_DEVICE static float Scale(const StoredWeight& w, const GroupAt& at) {
    return static_cast<const float*>(w.scales)[at.row];
  }
  ASSAY_DEVICE static int Zero(const StoredWeight&, const GroupAt&) { return 128; }
  template <typename T>
  ASSAY_DEVICE static void Widen(Pair codes, int, const uint32_t*, uint32_t (&out)[4]) {
    WidenBytes<T>(codes, 0x80808080u, 128, out);
  }
};

template <bool kAsymmetric>
struct Int8GroupFormat : NoTable {
  static constexpr int kBits = 8;
  static constexpr bool kGrouped = true, kFourApart = false;
  ASSAY_DEVICE static float Scale(const StoredWeight& w, const GroupAt& at) {
    return ScaleBf16(w, at);
  }
  ASSAY_DEVICE static int Zero(const StoredWeight& w, const GroupAt& at) {
    if constexpr (!kAsymmetric) return 128;
    return ZeroOfByte(w, at);
  }
  template <typename T>
  ASSAY_DEVICE static void Widen(Pair codes, int zero, const uint32_t*, uint32_t (&out)[4]) {
    WidenBytes<T>(codes, kAsymmetric ? 0 : 0x80808080u, kAsymmetric ? zero : 128, out);
  }
};

template <bool kBlocks>
struct E4M3Format : NoTable {
  static constexpr int kBits = 8;
  static constexpr bool kGrouped = kBlocks, kFourApart = false;
  ASSAY_DEVICE static float Scale(const StoredWeight& w, const GroupAt& at) {
    if constexpr (kBlocks) return ScaleF32(w, {at.row / 128, at.group, at.groups});
    return static_cast<const float*>(w.scales)[at.row / w.scale_rows];
  }
  ASSAY_DEVICE static int Zero(const StoredWeight&, const GroupAt&) { return 0; }
  template <typename T>
  ASSAY_DEVICE static void Widen(Pair codes, int, const uint32_t*, uint32_t (&out)[4]) {
    constexpr uint32_t kFactor = kIsF16<T> ? 0x5c005c00u : 0x7b807b80u;  // 2^8, 2^120
    constexpr int kMove = kIsF16<T> ? 1 : 4;
    ASSAY_UNROLL
    for (int i = 0; i < 4; ++i) {
      // The two bytes on top of the two halves.
      const uint32_t pair = Bytes(i < 2 ? codes.x : codes.y, 0, i % 2 == 0 ? 0x1404u : 0x3424u);
      out[i] = Mul2<T>((pair & 0x80008000u) | ((pair & 0x7f007f00u) >> kMove), kFactor);
    }
  }
};

struct Nf4Format {
  static constexpr int kBits = 4, kTable = 256;
  static constexpr bool kGrouped = true, kFourApart = false;
  template <typename T>
  ASSAY_DEVICE static void FillTable(uint32_t* table) {
    for (int i = ThreadIndex(); i < kTable; i += ThreadsOfBlock())
      table[i] = Pack2<T>(Nf4Value(i & 15), Nf4Value(i >> 4));
  }
  ASSAY_DEVICE static float Scale(const StoredWeight& w, const GroupAt& at) {
    return ScaleF32(w, at);
  }
  ASSAY_DEVICE static int Zero(const StoredWeight&, const GroupAt&) { return 0; }
  template <typename T>
  ASSAY_DEVICE static void Widen(Pair codes, int, const uint32_t* table, uint32_t (&out)[4]) {
    ASSAY_UNROLL
    for (int i = 0; i < 4; ++i) out[i] = table[(codes.x >> (8 * i)) & 255];
  }
};

}  // namespace assay::ASSAY_SIMT
