// How one row of the KV cache (the keys or values of one position in one head) is stored, by the
// pool's element type. Rows are a multiple of 4 bytes long.
//
//   f32, f16  head_dim numbers
//   i8        | scale f32 | head_dim codes s8 | padding |         x ~ scale * code
//   u4        | scale f32 | minimum f32 | ceil(head_dim / 2) bytes, low nibble first | padding |
//                                                                 x ~ minimum + scale * code
//
// Integer rows are quantized when they are written, each with a range of its own (per token), so a
// row does not depend on how its sequence was cut into chunks:
//
//   i8  scale = absmax / 127,        code = rint(x / scale) in [-127, 127]
//   u4  scale = (max - min) / 15,    code = rint((x - min) / scale) in [0, 15]
//
// A row that holds NaN or infinity gets scale NaN: it decodes to NaN and stays visible. Pure.
// Compiled once per instruction set, so it calls nothing that other files share.
#pragma once
#include <cfloat>
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace assay {

static constexpr bool IsKvDType(DType t) {
  return t == DType::kF32 || t == DType::kF16 || t == DType::kI8 || t == DType::kU4;
}

static constexpr int64_t KvRowBytes(DType t, int64_t head_dim) {
  const int64_t bytes = t == DType::kF32   ? head_dim * 4
                        : t == DType::kF16 ? head_dim * 2
                        : t == DType::kI8  ? 4 + head_dim
                                           : 8 + (head_dim + 1) / 2;
  return t == DType::kF16 ? bytes : (bytes + 3) / 4 * 4;
}

// static: each translation unit keeps the copy compiled for its own instruction set.
static inline float KvCode(float v) {  // rounds half to even; exact for |v| < 2^22
  constexpr float kMagic = 12582912.0f;
  return (v + kMagic) - kMagic;
}

static inline void EncodeKvI8(const float* x, int64_t n, std::byte* row) {
  float absmax = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    const float magnitude = __builtin_fabsf(x[i]);
    finite &= magnitude <= FLT_MAX;
    absmax = magnitude > absmax ? magnitude : absmax;
  }
  const bool zero = absmax < 1e-30f;
  const float scale = !finite ? __builtin_nanf("") : zero ? 0 : absmax / 127;
  __builtin_memcpy(row, &scale, sizeof(scale));
  auto* codes = reinterpret_cast<int8_t*>(row + sizeof(scale));
  const float inverse = finite && !zero ? 127 / absmax : 0;
  for (int64_t i = 0; i < n; ++i)
    codes[i] = finite ? static_cast<int8_t>(KvCode(x[i] * inverse)) : int8_t{0};
}

static inline void DecodeKvI8(const std::byte* row, int64_t n, float* x) {
  float scale;
  __builtin_memcpy(&scale, row, sizeof(scale));
  const auto* codes = reinterpret_cast<const int8_t*>(row + sizeof(scale));
  for (int64_t i = 0; i < n; ++i) x[i] = scale * static_cast<float>(codes[i]);
}

static inline void EncodeKvU4(const float* x, int64_t n, std::byte* row) {
  float low = x[0], high = x[0];
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    finite &= __builtin_fabsf(x[i]) <= FLT_MAX;
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  const float range = high - low;
  finite &= range <= FLT_MAX;
  const bool flat = !(range >= 1e-30f);
  const float head[2] = {!finite ? __builtin_nanf("") : flat ? 0 : range / 15, low};
  __builtin_memcpy(row, head, sizeof(head));
  auto* bytes = reinterpret_cast<uint8_t*>(row + sizeof(head));
  const float inverse = finite && !flat ? 15 / range : 0;
  for (int64_t i = 0; i < n; i += 2) {
    const auto code = [&](int64_t at) -> uint8_t {
      if (!finite || at >= n) return 0;
      const float rounded = KvCode((x[at] - low) * inverse);
      return static_cast<uint8_t>(rounded > 15 ? 15 : rounded);
    };
    bytes[i / 2] = static_cast<uint8_t>(code(i) | code(i + 1) << 4);
  }
}

static inline void DecodeKvU4(const std::byte* row, int64_t n, float* x) {
  float head[2];
  __builtin_memcpy(head, row, sizeof(head));
  const auto* bytes = reinterpret_cast<const uint8_t*>(row + sizeof(head));
  int64_t i = 0;
  for (; i + 2 <= n; i += 2) {
    x[i] = head[1] + head[0] * static_cast<float>(bytes[i / 2] & 15);
    x[i + 1] = head[1] + head[0] * static_cast<float>(bytes[i / 2] >> 4);
  }
  if (i < n) x[i] = head[1] + head[0] * static_cast<float>(bytes[i / 2] & 15);
}

}  // namespace assay
