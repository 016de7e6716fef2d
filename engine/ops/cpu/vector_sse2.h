// Eight f32 lanes in two SSE2 registers: every x86-64 processor has them.
#pragma once
#include <emmintrin.h>

#include <cstdint>

#include "base/float16.h"

namespace assay {

struct VectorSse2 {
  __m128 lo, hi;

  static VectorSse2 Zero() { return {_mm_setzero_ps(), _mm_setzero_ps()}; }
  static VectorSse2 Set(float v) { return {_mm_set1_ps(v), _mm_set1_ps(v)}; }
  static VectorSse2 Load(const float* p) { return {_mm_loadu_ps(p), _mm_loadu_ps(p + 4)}; }
  static VectorSse2 Load(const uint16_t* p) {  // f16
    alignas(16) float f[8];
    for (int i = 0; i < 8; ++i) f[i] = F16ToF32(p[i]);
    return Load(f);
  }
  void Store(float* p) const {
    _mm_storeu_ps(p, lo);
    _mm_storeu_ps(p + 4, hi);
  }
  void Store(uint16_t* p) const {  // f16, round half to even
    alignas(16) float f[8];
    Store(f);
    for (int i = 0; i < 8; ++i) p[i] = F32ToF16(f[i]);
  }
  friend VectorSse2 operator+(VectorSse2 a, VectorSse2 b) {
    return {_mm_add_ps(a.lo, b.lo), _mm_add_ps(a.hi, b.hi)};
  }
  friend VectorSse2 operator-(VectorSse2 a, VectorSse2 b) {
    return {_mm_sub_ps(a.lo, b.lo), _mm_sub_ps(a.hi, b.hi)};
  }
  friend VectorSse2 operator*(VectorSse2 a, VectorSse2 b) {
    return {_mm_mul_ps(a.lo, b.lo), _mm_mul_ps(a.hi, b.hi)};
  }
  friend VectorSse2 operator/(VectorSse2 a, VectorSse2 b) {
    return {_mm_div_ps(a.lo, b.lo), _mm_div_ps(a.hi, b.hi)};
  }
  // a * b + c
  static VectorSse2 MulAdd(VectorSse2 a, VectorSse2 b, VectorSse2 c) { return a * b + c; }
  // Both return b where either is NaN.
  static VectorSse2 Max(VectorSse2 a, VectorSse2 b) {
    return {_mm_max_ps(a.lo, b.lo), _mm_max_ps(a.hi, b.hi)};
  }
  static VectorSse2 Min(VectorSse2 a, VectorSse2 b) {
    return {_mm_min_ps(a.lo, b.lo), _mm_min_ps(a.hi, b.hi)};
  }
  // +0 where a < b, else x (also where either is NaN).
  static VectorSse2 ZeroWhereLess(VectorSse2 a, VectorSse2 b, VectorSse2 x) {
    return {_mm_andnot_ps(_mm_cmplt_ps(a.lo, b.lo), x.lo),
            _mm_andnot_ps(_mm_cmplt_ps(a.hi, b.hi), x.hi)};
  }
  static VectorSse2 Round(VectorSse2 a) {  // half to even; REQUIRES |a| < 2^31
    return {_mm_cvtepi32_ps(_mm_cvtps_epi32(a.lo)), _mm_cvtepi32_ps(_mm_cvtps_epi32(a.hi))};
  }
  // a * 2^n for integral n in [-126, 127]
  static VectorSse2 Scale2(VectorSse2 a, VectorSse2 n) {
    const auto power = [](__m128 v) {
      return _mm_castsi128_ps(
          _mm_slli_epi32(_mm_add_epi32(_mm_cvtps_epi32(v), _mm_set1_epi32(127)), 23));
    };
    return {_mm_mul_ps(a.lo, power(n.lo)), _mm_mul_ps(a.hi, power(n.hi))};
  }
  // ((0+1) + (2+3)) + ((4+5) + (6+7)), of four vectors at once.
  static void Sum4(VectorSse2 a, VectorSse2 b, VectorSse2 c, VectorSse2 d, float* out) {
    const auto quarter = [](__m128 p, __m128 q, __m128 r, __m128 s) {
      _MM_TRANSPOSE4_PS(p, q, r, s);
      return _mm_add_ps(_mm_add_ps(p, q), _mm_add_ps(r, s));
    };
    _mm_storeu_ps(out,
                  _mm_add_ps(quarter(a.lo, b.lo, c.lo, d.lo), quarter(a.hi, b.hi, c.hi, d.hi)));
  }
  float Sum() const {
    alignas(16) float f[8];
    Store(f);
    return ((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7]));
  }
  // out[c] = sum of a[i] b[c * stride + i], codes in [-127, 127].
  static void DotCodes4(const int8_t* a, const int8_t* b, int64_t stride, int n, int32_t* out) {
    for (int c = 0; c < 4; ++c) {
      out[c] = 0;
      for (int i = 0; i < n; ++i) out[c] += a[i] * b[c * stride + i];
    }
  }
  float Maximum() const {
    alignas(16) float f[4];
    _mm_store_ps(f, _mm_max_ps(lo, hi));
    const float a = f[0] > f[1] ? f[0] : f[1], b = f[2] > f[3] ? f[2] : f[3];
    return a > b ? a : b;
  }
};

}  // namespace assay
