// Compiled with -mavx2 -ffp-contract=off (the epilogue must round like the reference kernel).
//
// 6 rows x 16 channels: 12 accumulators, 2 weights, 1 activation, 1 product = 16 registers. Codes
// are widened to s16 in registers (widening a whole panel once, for many rows, was measured: no
// gain) and multiplied by vpmaddwd. |x| times w with the sign of x in vpmaddubsw, exact too, was
// measured: 15 % slower.
#include <immintrin.h>

#include "quant/kernels/a8_token.h"
#include "quant/kernels/cpu/avx2_int8_epilogue.h"
#include "quant/kernels/cpu/panel_int8_micro.h"

namespace assay {
namespace {

constexpr int kMaxRows = 6;
// How far ahead of the weights the prefetch runs. Measured on Zen 3 with 4 KB pages, where the
// hardware's stops at each page's end: 16.5 GB/s instead of 13; 1 KB is too short, 4 KB no better.
constexpr int64_t kPrefetchBytes = 2048;

inline __m256i Load(const int8_t* w) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
}

// kRows rows x 16 channels over all of k.
template <int kRows>
void RunTile(const Int8PanelJob& job, const int16_t* codes, const int8_t* w, Int8Tile tile) {
  const int64_t stride = job.groups * kInt8PanelGroup;
  const int16_t* x = codes + tile.row * stride;
  __m256i low[kRows], high[kRows];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  for (int64_t j = 0; j < stride; j += 2) {  // pairs of k
    _mm_prefetch(reinterpret_cast<const char*>(w + j * 16 + kPrefetchBytes), _MM_HINT_T0);
    const __m256i w0 = Load(w + j * 16), w1 = Load(w + j * 16 + 16);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      int pair;
      __builtin_memcpy(&pair, x + r * stride + j, sizeof(pair));
      const __m256i a = _mm256_set1_epi32(pair);
      low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(a, w0));
      high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(a, w1));
      // Row by row: g++ 12 would load all of x first and keep half the sums on the stack.
      asm volatile("" : "+x"(low[r]), "+x"(high[r]));
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    StoreHalf(job, {tile.row + r, tile.panel}, 0, _mm256_cvtepi32_ps(low[r]));
    StoreHalf(job, {tile.row + r, tile.panel}, 1, _mm256_cvtepi32_ps(high[r]));
  }
}

void RunRows(const Int8PanelJob& job, const int16_t* x, int rows, const int8_t* w, Int8Tile tile) {
  switch (rows) {
    case 1:
      return RunTile<1>(job, x, w, tile);
    case 2:
      return RunTile<2>(job, x, w, tile);
    case 3:
      return RunTile<3>(job, x, w, tile);
    case 4:
      return RunTile<4>(job, x, w, tile);
    case 5:
      return RunTile<5>(job, x, w, tile);
    default:
      return RunTile<6>(job, x, w, tile);
  }
}

}  // namespace

void Avx2Int8Panels(const Int8PanelJob& job, const int16_t* x, int64_t panel_begin,
                    int64_t panel_end) {
  // Blocks of rows of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
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
      _mm256_storeu_ps(y + c, Epilogue(_mm256_cvtepi32_ps(sum), scale,
                                       job.bias == nullptr ? nullptr : job.bias + c,
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
RowScale ScaleOf(const float* x, int64_t k, Int8TokenRange range) {
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
  if (absmax < range.smallest) return {0, 0};
  return {absmax / range.max_code, range.max_code / absmax};
}

// 16 codes as s16; vcvtps2dq rounds half to even.
inline __m256i Codes16(const float* x, __m256 inverse) {
  const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
  const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), inverse));
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
}
inline int Code(float x, float inverse) { return _mm_cvtss_si32(_mm_set_ss(x * inverse)); }

}  // namespace

float Avx2QuantizeToken(const float* x, int64_t k, Int8TokenRange range, int16_t* codes) {
  const RowScale row = ScaleOf(x, k, range);
  int64_t i = 0;
  if (row.inverse != 0) {
    const __m256 inverse = _mm256_set1_ps(row.inverse);
    for (; i + 16 <= k; i += 16)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), Codes16(x + i, inverse));
    for (; i < k; ++i) codes[i] = static_cast<int16_t>(Code(x[i], row.inverse));
  }
  for (; i < (k + 7) / 8 * 8; ++i) codes[i] = 0;
  return row.scale;
}

float Avx2QuantizeA8TokenU8(const float* x, int64_t k, uint8_t* codes, bool padded) {
  const RowScale row = ScaleOf(x, k, {kA8MaxCode, kA8Smallest});
  int64_t i = 0;
  if (row.inverse != 0) {
    const __m256 inverse = _mm256_set1_ps(row.inverse);
    for (; i + 16 <= k; i += 16) {
      const __m256i wide = Codes16(x + i, inverse);
      const __m128i narrow =
          _mm_packs_epi16(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i),
                       _mm_xor_si128(narrow, _mm_set1_epi8(static_cast<char>(0x80))));
    }
    for (; i < k; ++i) codes[i] = static_cast<uint8_t>(Code(x[i], row.inverse) + 128);
  }
  for (; i < (padded ? (k + 7) / 8 * 8 : k); ++i) codes[i] = 128;
  return row.scale;
}

}  // namespace assay
