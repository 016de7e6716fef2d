// Compiled with -mavx2 -ffp-contract=off (the epilogue must round like the reference kernel).
//
// The product of a few rows: |x| as u8 times w with the sign of x, in vpmaddubsw. Two products of
// at most 127 * 127 fit 16 bit, so nothing saturates; vpmaddwd by ones widens to 32 bit.
#include "quant/kernels/cpu/avx2_int8_micro.h"

#include <immintrin.h>

#include "quant/kernels/a8_token.h"
#include "quant/kernels/cpu/avx2_int8_epilogue.h"

namespace assay {
namespace {

constexpr int kMaxRows = 4;
// How far ahead of the weights the prefetch runs. Measured on Zen 3 with 4 KB pages, where the
// hardware's stops at each page's end: 16.5 GB/s instead of 13; 1 KB is too short, 4 KB no better.
constexpr int64_t kPrefetchBytes = 2048;

inline __m256i Load(const int8_t* w) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
}

// acc + 8 channels' sums of 4 products each.
inline __m256i MultiplyAdd(__m256i acc, __m256i x, __m256i magnitude, __m256i w) {
  const __m256i products = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, x));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}

// kRows rows x 16 channels over all of k.
template <int kRows>
void RunTile(const Int8PanelJob& job, const int8_t* codes, const int8_t* w, Int8Tile tile) {
  const int64_t stride = job.groups * kInt8PanelGroup;
  const int8_t* x = codes + tile.row * stride;
  __m256i low[kRows], high[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  for (int64_t j = 0; j < job.groups; ++j, w += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(w + kPrefetchBytes), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(w + kPrefetchBytes + 64), _MM_HINT_T0);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i w0 = Load(w + half * 32), w1 = Load(w + 64 + half * 32);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        int four;
        __builtin_memcpy(&four, x + r * stride + j * 8 + half * 4, sizeof(four));
        const __m256i a = _mm256_set1_epi32(four), magnitude = _mm256_abs_epi8(a);
        low[r] = MultiplyAdd(low[r], a, magnitude, w0);
        high[r] = MultiplyAdd(high[r], a, magnitude, w1);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    StoreHalf(job, {tile.row + r, tile.panel}, 0, low[r]);
    StoreHalf(job, {tile.row + r, tile.panel}, 1, high[r]);
  }
}

void RunRows(const Int8PanelJob& job, const int8_t* x, int rows, const int8_t* w, Int8Tile tile) {
  switch (rows) {
    case 1:
      return RunTile<1>(job, x, w, tile);
    case 2:
      return RunTile<2>(job, x, w, tile);
    case 3:
      return RunTile<3>(job, x, w, tile);
    default:
      return RunTile<4>(job, x, w, tile);
  }
}

}  // namespace

void Avx2Int8Panels(const Int8PanelJob& job, const int8_t* x, int64_t panel_begin,
                    int64_t panel_end) {
  // Blocks of rows of nearly equal height: 6 rows are 3 + 3, not 4 + 2.
  const int64_t blocks = (job.m + kMaxRows - 1) / kMaxRows;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int8_t* w = job.panels + panel * job.groups * 128;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t row = job.m * b / blocks;
      RunRows(job, x, static_cast<int>(job.m * (b + 1) / blocks - row), w, {row, panel});
    }
  }
}

void Avx2Int8Rescale(const Int8RescaleJob& job) {
  for (int64_t row = 0; row < job.rows; ++row) {
    const int32_t* acc = job.acc + row * job.columns;
    float* y = job.y + row * job.y_stride;
    int64_t c = 0;
    for (; c + 8 <= job.columns; c += 8) {
      const __m256i sum =
          _mm256_sub_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(acc + c)),
                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(job.offsets + c)));
      const __m256 scale = _mm256_mul_ps(_mm256_broadcast_ss(job.x_scales + row),
                                         _mm256_loadu_ps(job.weight_scales + c));
      _mm256_storeu_ps(y + c, Epilogue(sum, scale, job.bias == nullptr ? nullptr : job.bias + c,
                                       job.accumulate ? y + c : nullptr));
    }
    for (; c < job.columns; ++c) {
      const float scale = job.x_scales[row] * job.weight_scales[c];
      float v = scale * static_cast<float>(acc[c] - job.offsets[c]);
      if (job.bias != nullptr) v = v + job.bias[c];
      y[c] = job.accumulate ? y[c] + v : v;
    }
  }
}

namespace {

struct RowScale {
  float scale, inverse;  // inverse 0: all codes are zero
};

// quant/kernels/a8_token.h: as integers, |x| orders finite < infinity < NaN.
RowScale ScaleOf(const float* x, int64_t k) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i max = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    max = _mm256_max_epi32(max, _mm256_and_si256(bits, magnitude));
  }
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), max);
  int32_t bits = 0;
  for (int lane = 0; lane < 8; ++lane) bits = lanes[lane] > bits ? lanes[lane] : bits;
  for (; i < k; ++i) {
    int32_t v;
    __builtin_memcpy(&v, x + i, sizeof(v));
    v &= 0x7fffffff;
    bits = v > bits ? v : bits;
  }
  float absmax;
  __builtin_memcpy(&absmax, &bits, sizeof(absmax));
  if (bits >= 0x7f800000) return {__builtin_nanf(""), 0};
  if (absmax < kA8Smallest) return {0, 0};
  return {absmax / kA8MaxCode, kA8MaxCode / absmax};
}

// 16 codes as s16; vcvtps2dq rounds half to even.
inline __m256i Codes16(const float* x, __m256 inverse) {
  const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
  const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), inverse));
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
}
inline int Code(float x, float inverse) { return _mm_cvtss_si32(_mm_set_ss(x * inverse)); }

// Calls emit(i, 16 codes as s8) for whole sixteens, then emit_one(i, code) for the rest.
template <typename Emit, typename EmitOne>
inline void ForCodes(const float* x, int64_t k, float inverse, Emit emit, EmitOne emit_one) {
  const __m256 inverses = _mm256_set1_ps(inverse);
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    const __m256i wide = Codes16(x + i, inverses);
    emit(i, _mm_packs_epi16(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
  }
  for (; i < k; ++i) emit_one(i, Code(x[i], inverse));
}

}  // namespace

float Avx2QuantizeA8Token(const float* x, int64_t k, int8_t* codes) {
  const RowScale row = ScaleOf(x, k);
  for (int64_t i = row.inverse == 0 ? 0 : k; i < (k + 7) / 8 * 8; ++i) codes[i] = 0;
  if (row.inverse == 0) return row.scale;
  ForCodes(
      x, k, row.inverse,
      [codes](int64_t i, __m128i c) { _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), c); },
      [codes](int64_t i, int c) { codes[i] = static_cast<int8_t>(c); });
  return row.scale;
}

float Avx2QuantizeA8TokenU8(const float* x, int64_t k, uint8_t* codes, bool padded) {
  const RowScale row = ScaleOf(x, k);
  const int64_t end = padded ? (k + 7) / 8 * 8 : k;
  for (int64_t i = row.inverse == 0 ? 0 : k; i < end; ++i) codes[i] = 128;
  if (row.inverse == 0) return row.scale;
  ForCodes(
      x, k, row.inverse,
      [codes](int64_t i, __m128i c) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i),
                         _mm_xor_si128(c, _mm_set1_epi8(static_cast<char>(0x80))));
      },
      [codes](int64_t i, int c) { codes[i] = static_cast<uint8_t>(c + 128); });
  return row.scale;
}

}  // namespace assay
