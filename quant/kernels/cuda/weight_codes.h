// What quantizers of weights share, inside of kernels: loads, and scales bit for bit as
// quant/schemes/* finds them. Numbers that are not finite give some code; who quantizes looks for
// them apart (quantize_tiles.h).
#pragma once
#include "quant/kernels/cuda/row_codes.h"

namespace assay::ASSAY_SIMT {

constexpr float kSmallestNormal = 0x1p-126f;  // FLT_MIN
constexpr uint32_t kInfinity = 0x7f800000u;

template <typename Of>
struct Row {
  const Of* from;
  int k;
  bool aligned;  // to 16 bytes
};

// Eight numbers from `at` on; zeros beyond k.
template <typename Of>
ASSAY_DEVICE void LoadEight(const Row<Of>& row, int at, float (&out)[8]) {
  if (row.aligned && at + 8 <= row.k) {
    if constexpr (sizeof(Of) == 2) {
      const Quad v = Load16(row.from + at);
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
      ASSAY_UNROLL
      for (int i = 0; i < 8; ++i) {
        const Two two = Unpack2<Of>(words[i / 2]);
        out[i] = i % 2 == 0 ? two.low : two.high;
      }
    } else {
      const Quad low = Load16(row.from + at), high = Load16(row.from + at + 4);
      const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      ASSAY_UNROLL
      for (int i = 0; i < 8; ++i) out[i] = FloatOf(words[i]);
    }
    return;
  }
  ASSAY_UNROLL
  for (int i = 0; i < 8; ++i) out[i] = at + i < row.k ? ToFloat(row.from[at + i]) : 0.0f;
}

// Of the E4M3 codes whose largest magnitude is absmax; 0: all codes are 0.
ASSAY_DEVICE float E4M3ScaleOf(float absmax) {
  constexpr float kMax = 448.0f;
  if (absmax <= kSmallestNormal / 2) return 0;
  const float scale = fmaxf(absmax / kMax, kSmallestNormal);
  // Near the top of f32 the quotient may have rounded up to what overflows when multiplied.
  return BitsOf(scale * kMax) == kInfinity ? FloatOf(BitsOf(scale) - 1) : scale;
}

// GroupScale of quant/schemes/affine_group.cc, in bf16: a scale whose `reach`-fold is finite.
ASSAY_DEVICE uint16_t GroupScale(float quotient, int reach) {
  uint16_t bits = FromFloat<Bf16>(fmaxf(quotient, kSmallestNormal)).bits;
  while (BitsOf(ToFloat(Bf16{bits}) * static_cast<float>(reach)) >= kInfinity) --bits;
  return bits;
}

}  // namespace assay::ASSAY_SIMT
