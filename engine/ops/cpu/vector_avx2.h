// Eight f32 lanes in one AVX register, with FMA and F16C. Included only by files compiled for them.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace assay {

struct VectorAvx2 {
  __m256 v;

  static VectorAvx2 Zero() { return {_mm256_setzero_ps()}; }
  static VectorAvx2 Set(float f) { return {_mm256_set1_ps(f)}; }
  static VectorAvx2 Load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static VectorAvx2 Load(const uint16_t* p) {  // f16
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  void Store(float* p) const { _mm256_storeu_ps(p, v); }
  void Store(uint16_t* p) const {  // f16, round half to even
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  friend VectorAvx2 operator+(VectorAvx2 a, VectorAvx2 b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend VectorAvx2 operator-(VectorAvx2 a, VectorAvx2 b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend VectorAvx2 operator*(VectorAvx2 a, VectorAvx2 b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend VectorAvx2 operator/(VectorAvx2 a, VectorAvx2 b) { return {_mm256_div_ps(a.v, b.v)}; }
  // a * b + c
  static VectorAvx2 MulAdd(VectorAvx2 a, VectorAvx2 b, VectorAvx2 c) {
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
  }
  // Both return b where either is NaN.
  static VectorAvx2 Max(VectorAvx2 a, VectorAvx2 b) { return {_mm256_max_ps(a.v, b.v)}; }
  static VectorAvx2 Min(VectorAvx2 a, VectorAvx2 b) { return {_mm256_min_ps(a.v, b.v)}; }
  // +0 where a < b, else x (also where either is NaN).
  static VectorAvx2 ZeroWhereLess(VectorAvx2 a, VectorAvx2 b, VectorAvx2 x) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ), x.v)};
  }
  static VectorAvx2 Round(VectorAvx2 a) {  // half to even
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // a * 2^n for integral n in [-126, 127]
  static VectorAvx2 Scale2(VectorAvx2 a, VectorAvx2 n) {
    const __m256i power =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
    return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(power))};
  }
  // ((0+1) + (2+3)) + ((4+5) + (6+7)), of four vectors at once.
  static void Sum4(VectorAvx2 a, VectorAvx2 b, VectorAvx2 c, VectorAvx2 d, float* out) {
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
  }
  float Sum() const {
    alignas(16) float out[4];
    Sum4(*this, Zero(), Zero(), Zero(), out);
    return out[0];
  }
  // out[c] = sum of a[i] b[c * stride + i], codes in [-127, 127]: exact, as the products of two
  // neighbours sum below 2^15.
  static void DotCodes4(const int8_t* a, const int8_t* b, int64_t stride, int n, int32_t* out) {
    const auto load = [](const int8_t* p) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    };
    __m256i sum[4] = {};
    const __m256i ones = _mm256_set1_epi16(1);
    int i = 0;
    for (; i + 32 <= n; i += 32) {
      const __m256i x = load(a + i), magnitude = _mm256_abs_epi8(x);
      for (int c = 0; c < 4; ++c) {
        const __m256i y = _mm256_sign_epi8(load(b + c * stride + i), x);
        sum[c] =
            _mm256_add_epi32(sum[c], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, y), ones));
      }
    }
    const __m256i s =
        _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]), _mm256_hadd_epi32(sum[2], sum[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)));
    for (; i < n; ++i) {
      for (int c = 0; c < 4; ++c) out[c] += a[i] * b[c * stride + i];
    }
  }
  float Maximum() const {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    m = _mm_max_ss(m, _mm_shuffle_ps(m, m, 1));
    return _mm_cvtss_f32(m);
  }
};

}  // namespace assay
