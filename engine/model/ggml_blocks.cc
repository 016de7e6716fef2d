#include "engine/model/ggml_blocks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace assay {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the formats are little-endian and are read in place");

// f16 -> f32 without a branch, so that loops over it vectorise on any x86-64: the normal and the
// subnormal result are both computed and one is selected. The method of
// github.com/Maratyszcza/FP16.
inline float HalfBits(uint16_t half) {
  const uint32_t w = static_cast<uint32_t>(half) << 16;
  const uint32_t magnitude = w + w;
  const float normal = std::bit_cast<float>((magnitude >> 4) + (0xe0u << 23)) * 0x1p-112f;
  const float subnormal = std::bit_cast<float>((magnitude >> 17) | (126u << 23)) - 0.5f;
  const uint32_t bits =
      magnitude < (1u << 27) ? std::bit_cast<uint32_t>(subnormal) : std::bit_cast<uint32_t>(normal);
  return std::bit_cast<float>((w & 0x80000000u) | bits);
}

inline uint16_t Load16(const uint8_t* p) {
  uint16_t v = 0;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline float Half(const uint8_t* p) { return HalfBits(Load16(p)); }

const uint8_t* Bytes(const std::byte* p) { return reinterpret_cast<const uint8_t*>(p); }

// ---- plain types

void DecodeF32(const std::byte* in, int64_t n, float* out) {
  std::memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
}

void DecodeF16(const std::byte* in, int64_t n, float* __restrict out) {
  const uint8_t* b = Bytes(in);
  for (int64_t i = 0; i < n; ++i) out[i] = Half(b + 2 * i);
}

void DecodeBf16(const std::byte* in, int64_t n, float* __restrict out) {
  const uint8_t* b = Bytes(in);
  for (int64_t i = 0; i < n; ++i)
    out[i] = std::bit_cast<float>(static_cast<uint32_t>(Load16(b + 2 * i)) << 16);
}

// ---- blocks of 32: a nibble byte j holds element j (low) and element j + 16 (high)

// f16 d; u8 qs[16]: (q - 8) d
void DecodeQ4_0(const std::byte* in, int64_t n, float* __restrict out) {
  for (const uint8_t* b = Bytes(in); n > 0; --n, b += 18, out += 32) {
    const float d = Half(b);
    for (int j = 0; j < 16; ++j) {
      out[j] = static_cast<float>((b[2 + j] & 15) - 8) * d;
      out[j + 16] = static_cast<float>((b[2 + j] >> 4) - 8) * d;
    }
  }
}

// f16 d, m; u8 qs[16]: q d + m
void DecodeQ4_1(const std::byte* in, int64_t n, float* __restrict out) {
  for (const uint8_t* b = Bytes(in); n > 0; --n, b += 20, out += 32) {
    const float d = Half(b), m = Half(b + 2);
    for (int j = 0; j < 16; ++j) {
      out[j] = static_cast<float>(b[4 + j] & 15) * d + m;
      out[j + 16] = static_cast<float>(b[4 + j] >> 4) * d + m;
    }
  }
}

// The fifth bits of 32 elements lie in a u32, element j at bit j. Combines them with the nibbles to
// codes in [0, 32).
inline void FiveBitCodes(const uint8_t* high_bits, const uint8_t* nibbles,
                         int32_t* __restrict codes) {
  uint32_t high = 0;
  std::memcpy(&high, high_bits, sizeof high);
  for (int j = 0; j < 16; ++j) {
    codes[j] = static_cast<int32_t>((nibbles[j] & 15u) | (((high >> j) & 1u) << 4));
    codes[j + 16] = static_cast<int32_t>((nibbles[j] >> 4) | (((high >> (j + 16)) & 1u) << 4));
  }
}

// f16 d; u32 qh; u8 qs[16]: (q - 16) d
void DecodeQ5_0(const std::byte* in, int64_t n, float* __restrict out) {
  for (const uint8_t* b = Bytes(in); n > 0; --n, b += 22, out += 32) {
    const float d = Half(b);
    int32_t codes[32];
    FiveBitCodes(b + 2, b + 6, codes);
    for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(codes[j] - 16) * d;
  }
}

// f16 d, m; u32 qh; u8 qs[16]: q d + m
void DecodeQ5_1(const std::byte* in, int64_t n, float* __restrict out) {
  for (const uint8_t* b = Bytes(in); n > 0; --n, b += 24, out += 32) {
    const float d = Half(b), m = Half(b + 2);
    int32_t codes[32];
    FiveBitCodes(b + 4, b + 8, codes);
    for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(codes[j]) * d + m;
  }
}

// f16 d; i8 qs[32]: q d
void DecodeQ8_0(const std::byte* in, int64_t n, float* __restrict out) {
  for (const uint8_t* b = Bytes(in); n > 0; --n, b += 34, out += 32) {
    const float d = Half(b);
    for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(static_cast<int8_t>(b[2 + j])) * d;
  }
}

// ---- super-blocks of 256

// u8 scales[16] (low nibble: scale, high: minimum, one per 16 elements); u8 qs[64]; f16 d, dmin: d
// sc q - dmin m. Each 32 bytes of qs hold 128 elements, two bits at a time: bits 0-1 the first 32
// of them, bits 2-3 the next, ...
void DecodeQ2_K(const std::byte* in, int64_t n, float* __restrict out) {
  for (const uint8_t* b = Bytes(in); n > 0; --n, b += 84, out += 256) {
    const float d = Half(b + 80), dmin = Half(b + 82);
    for (int part = 0; part < 16; ++part) {  // 16 elements each
      const uint8_t* q = b + 16 + 32 * (part / 8) + 16 * (part % 2);
      const int shift = part % 8 / 2 * 2;
      const float scale = d * static_cast<float>(b[part] & 15),
                  minimum = dmin * static_cast<float>(b[part] >> 4);
      for (int l = 0; l < 16; ++l)
        out[16 * part + l] = scale * static_cast<float>((q[l] >> shift) & 3) - minimum;
    }
  }
}

// u8 hmask[32]; u8 qs[64] as in Q2_K; u8 scales[12] (16 x 6 bits, offset 32); f16 d: d sc (q - 4),
// the third bit of q in hmask: bit c of byte l belongs to element 32 c + l.
void DecodeQ3_K(const std::byte* in, int64_t n, float* __restrict out) {
  for (const uint8_t* b = Bytes(in); n > 0; --n, b += 110, out += 256) {
    const uint8_t* scales = b + 96;
    const float d = Half(b + 108);
    for (int part = 0; part < 16; ++part) {
      const int low = part < 8 ? scales[part] & 15 : scales[part - 8] >> 4;
      const int high = (scales[8 + part % 4] >> (part / 4 * 2)) & 3;
      const float scale = d * static_cast<float>((low | (high << 4)) - 32);
      const uint8_t* q = b + 32 + 32 * (part / 8) + 16 * (part % 2);
      const uint8_t* hmask = b + 16 * (part % 2);
      const int shift = part % 8 / 2 * 2, bit = part / 2;
      for (int l = 0; l < 16; ++l) {
        const int code = ((q[l] >> shift) & 3) | (((hmask[l] >> bit) & 1) << 2);
        out[16 * part + l] = scale * static_cast<float>(code - 4);
      }
    }
  }
}

struct ScaleAndMinimum {
  float scale, minimum;
};

// Q4_K and Q5_K pack eight 6-bit scales and eight 6-bit minima into 12 bytes.
inline ScaleAndMinimum UnpackScale(const uint8_t* p, int j, float d, float dmin) {
  const int scale = j < 4 ? p[j] & 63 : (p[j + 4] & 15) | ((p[j - 4] >> 6) << 4);
  const int minimum = j < 4 ? p[j + 4] & 63 : (p[j + 4] >> 4) | ((p[j] >> 6) << 4);
  return {d * static_cast<float>(scale), dmin * static_cast<float>(minimum)};
}

// f16 d, dmin; u8 scales[12]; u8 qs[128]: d sc q - dmin m. Each 32 bytes hold 64 elements: low
// nibbles, then high.
void DecodeQ4_K(const std::byte* in, int64_t n, float* __restrict out) {
  for (const uint8_t* b = Bytes(in); n > 0; --n, b += 144, out += 256) {
    const float d = Half(b), dmin = Half(b + 2);
    for (int part = 0; part < 8; ++part) {  // 32 elements each
      const auto [scale, minimum] = UnpackScale(b + 4, part, d, dmin);
      const uint8_t* q = b + 16 + part / 2 * 32;
      const int shift = part % 2 * 4;
      for (int l = 0; l < 32; ++l)
        out[32 * part + l] = scale * static_cast<float>((q[l] >> shift) & 15) - minimum;
    }
  }
}

// f16 d, dmin; u8 scales[12]; u8 qh[32]; u8 qs[128]: as Q4_K, the fifth bit of element 32 c + l at
// bit c of qh[l].
void DecodeQ5_K(const std::byte* in, int64_t n, float* __restrict out) {
  for (const uint8_t* b = Bytes(in); n > 0; --n, b += 176, out += 256) {
    const float d = Half(b), dmin = Half(b + 2);
    const uint8_t* qh = b + 16;
    for (int part = 0; part < 8; ++part) {
      const auto [scale, minimum] = UnpackScale(b + 4, part, d, dmin);
      const uint8_t* q = b + 48 + part / 2 * 32;
      const int shift = part % 2 * 4;
      for (int l = 0; l < 32; ++l) {
        const int code = ((q[l] >> shift) & 15) | (((qh[l] >> part) & 1) << 4);
        out[32 * part + l] = scale * static_cast<float>(code) - minimum;
      }
    }
  }
}

// u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d: d sc (q - 32). Per 128 elements: 64 bytes of ql (low
// nibbles: the first 64 elements, high nibbles: the others) and 32 of qh (bits 0-1: the first 32
// elements, bits 2-3: the next, ...).
void DecodeQ6_K(const std::byte* in, int64_t n, float* __restrict out) {
  for (const uint8_t* b = Bytes(in); n > 0; --n, b += 210, out += 256) {
    const float d = Half(b + 208);
    for (int part = 0; part < 16; ++part) {  // 16 elements each
      const int within = part % 8;
      const uint8_t* ql = b + 64 * (part / 8) + 16 * (within % 4);
      const uint8_t* qh = b + 128 + 32 * (part / 8) + 16 * (within % 2);
      const int low_shift = within / 4 * 4, high_shift = within / 2 * 2;
      const float scale = d * static_cast<float>(static_cast<int8_t>(b[192 + part]));
      for (int l = 0; l < 16; ++l) {
        const int code = ((ql[l] >> low_shift) & 15) | (((qh[l] >> high_shift) & 3) << 4);
        out[16 * part + l] = scale * static_cast<float>(code - 32);
      }
    }
  }
}

struct GgmlFormat {
  uint32_t type;
  BlockFormat format;
};

constexpr GgmlFormat kGgmlFormats[] = {
    {0, {"f32", 1, 4, DecodeF32}},        {1, {"f16", 1, 2, DecodeF16}},
    {2, {"q4_0", 32, 18, DecodeQ4_0}},    {3, {"q4_1", 32, 20, DecodeQ4_1}},
    {6, {"q5_0", 32, 22, DecodeQ5_0}},    {7, {"q5_1", 32, 24, DecodeQ5_1}},
    {8, {"q8_0", 32, 34, DecodeQ8_0}},    {9, {"q8_1", 32, 36, nullptr}},
    {10, {"q2_k", 256, 84, DecodeQ2_K}},  {11, {"q3_k", 256, 110, DecodeQ3_K}},
    {12, {"q4_k", 256, 144, DecodeQ4_K}}, {13, {"q5_k", 256, 176, DecodeQ5_K}},
    {14, {"q6_k", 256, 210, DecodeQ6_K}}, {15, {"q8_k", 256, 292, nullptr}},
    {16, {"iq2_xxs", 256, 66, nullptr}},  {17, {"iq2_xs", 256, 74, nullptr}},
    {18, {"iq3_xxs", 256, 98, nullptr}},  {19, {"iq1_s", 256, 50, nullptr}},
    {20, {"iq4_nl", 32, 18, nullptr}},    {21, {"iq3_s", 256, 110, nullptr}},
    {22, {"iq2_s", 256, 82, nullptr}},    {23, {"iq4_xs", 256, 136, nullptr}},
    {24, {"i8", 1, 1, nullptr}},          {25, {"i16", 1, 2, nullptr}},
    {26, {"i32", 1, 4, nullptr}},         {27, {"i64", 1, 8, nullptr}},
    {28, {"f64", 1, 8, nullptr}},         {29, {"iq1_m", 256, 56, nullptr}},
    {30, {"bf16", 1, 2, DecodeBf16}},     {34, {"tq1_0", 256, 54, nullptr}},
    {35, {"tq2_0", 256, 66, nullptr}},    {39, {"mxfp4", 32, 17, nullptr}},
    {40, {"nvfp4", 64, 36, nullptr}},
};

struct SafetensorsFormat {
  std::string_view dtype;
  BlockFormat format;
};

constexpr SafetensorsFormat kSafetensorsFormats[] = {
    {"F32", {"f32", 1, 4, DecodeF32}},       {"F16", {"f16", 1, 2, DecodeF16}},
    {"BF16", {"bf16", 1, 2, DecodeBf16}},    {"F64", {"f64", 1, 8, nullptr}},
    {"F8_E4M3", {"f8_e4m3", 1, 1, nullptr}}, {"F8_E5M2", {"f8_e5m2", 1, 1, nullptr}},
    {"F8_E8M0", {"f8_e8m0", 1, 1, nullptr}}, {"I64", {"i64", 1, 8, nullptr}},
    {"I32", {"i32", 1, 4, nullptr}},         {"I16", {"i16", 1, 2, nullptr}},
    {"I8", {"i8", 1, 1, nullptr}},           {"U64", {"u64", 1, 8, nullptr}},
    {"U32", {"u32", 1, 4, nullptr}},         {"U16", {"u16", 1, 2, nullptr}},
    {"U8", {"u8", 1, 1, nullptr}},           {"BOOL", {"bool", 1, 1, nullptr}},
    {"C64", {"c64", 1, 8, nullptr}},         {"F4", {"f4", 2, 1, nullptr}},
};

}  // namespace

const BlockFormat* FindGgmlFormat(uint32_t ggml_type) {
  const auto* found = std::ranges::find(kGgmlFormats, ggml_type, &GgmlFormat::type);
  return found == std::ranges::end(kGgmlFormats) ? nullptr : &found->format;
}

const BlockFormat* FindSafetensorsFormat(std::string_view dtype) {
  const auto* found = std::ranges::find(kSafetensorsFormats, dtype, &SafetensorsFormat::dtype);
  return found == std::ranges::end(kSafetensorsFormats) ? nullptr : &found->format;
}

void DecodeElements(const BlockFormat& format, const std::byte* blocks, int64_t first,
                    std::span<float> out) {
  const int64_t width = format.block_elements;
  const auto block_at = [&](int64_t index) { return blocks + index * format.block_bytes; };
  float* to = out.data();
  int64_t left = static_cast<int64_t>(out.size()), index = first / width;
  std::array<float, kMaxBlockElements> block;
  if (const int64_t skip = first % width; skip != 0 && left > 0) {
    const int64_t take = std::min(width - skip, left);
    format.decode(block_at(index++), 1, block.data());
    to = std::copy_n(block.data() + skip, take, to);
    left -= take;
  }
  const int64_t whole = left / width;
  if (whole > 0) format.decode(block_at(index), whole, to);
  left -= whole * width;
  if (left > 0) {
    format.decode(block_at(index + whole), 1, block.data());
    std::copy_n(block.data(), left, to + whole * width);
  }
}

}  // namespace assay
