// Compiled with -mavx2 -mfma -ffp-contract=off.
#include "quant/kernels/cpu/avx2_int8_bounded_micro.h"

#include <immintrin.h>

#include "quant/kernels/cpu/avx2_int8_epilogue.h"

namespace assay {
namespace {

constexpr int kMaxRows = 4;

// Rows of the 8 x 8 matrix become columns.
inline void Transpose(__m256 (&r)[8]) {
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    r[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}

// 16 rows of one input: bf16 in 8 words, rows 0-7 in the low halves and 8-15 in the high ones.
struct Columns16 {
  __m256 low, high;
};
inline Columns16 LoadColumns(const uint16_t* x) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i high = _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), _mm256_castsi256_ps(high)};
}

// sums[16 v + r] = sum over the channel's excess of x e, for kSixteens * 16 rows. Exact: integers
// below 2^24.
template <int kSixteens>
void SparseDot(const Int8ExcessView& excess, int64_t channel, const uint16_t* x_columns,
               float* sums) {
  __m256 low[kSixteens], high[kSixteens];
#pragma GCC unroll 4
  for (int v = 0; v < kSixteens; ++v) low[v] = high[v] = _mm256_setzero_ps();
  const int32_t end = excess.first[channel + 1];
  for (int32_t entry = excess.first[channel]; entry < end; ++entry) {
    const __m256 value = _mm256_set1_ps(static_cast<float>(excess.value[entry]));
    const uint16_t* x = x_columns + excess.index[entry] * kBoundedRows;
#pragma GCC unroll 4
    for (int v = 0; v < kSixteens; ++v) {
      const Columns16 columns = LoadColumns(x + v * 16);
      low[v] = _mm256_fmadd_ps(value, columns.low, low[v]);
      high[v] = _mm256_fmadd_ps(value, columns.high, high[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kSixteens; ++v) {
    _mm256_storeu_ps(sums + v * 16, low[v]);
    _mm256_storeu_ps(sums + v * 16 + 8, high[v]);
  }
}

void SparseDots(const Int8BoundedJob& job, const Int8ExcessView& excess, int64_t channel,
                float* sums) {
  switch ((job.panel.m + 15) / 16) {
    case 1:
      return SparseDot<1>(excess, channel, job.x_columns, sums);
    case 2:
      return SparseDot<2>(excess, channel, job.x_columns, sums);
    case 3:
      return SparseDot<3>(excess, channel, job.x_columns, sums);
    default:
      return SparseDot<4>(excess, channel, job.x_columns, sums);
  }
}

// start[r, c] = sum of x e - 128 sum of w': where the integer sums of a tile start.
void StartSums(const Int8BoundedJob& job, const Int8ExcessView& excess, int64_t panel,
               float* by_channel, int32_t* start) {
  const int64_t channel = panel * kInt8PanelColumns;
  for (int64_t c = 0; c < kInt8PanelColumns; ++c)
    SparseDots(job, excess, channel + c, by_channel + c * kBoundedRows);
  for (int64_t half = 0; half < 2; ++half) {
    const __m256i offsets =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(excess.offsets + channel + half * 8));
    for (int64_t row = 0; row < job.panel.m; row += 8) {
      __m256 block[8];
#pragma GCC unroll 8
      for (int c = 0; c < 8; ++c)
        block[c] = _mm256_loadu_ps(by_channel + (half * 8 + c) * kBoundedRows + row);
      Transpose(block);
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(start + (row + r) * 16 + half * 8),
                            _mm256_add_epi32(_mm256_cvtps_epi32(block[r]), offsets));
      }
    }
  }
}

// 8 channels x 8 inputs: four 16-bit products per sum, which the bound keeps from saturating.
inline __m256i MultiplyAdd(__m256i acc, __m256i x0, __m256i x1, const int8_t* w) {
  const auto* vectors = reinterpret_cast<const __m256i*>(w);
  const __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(x0, _mm256_load_si256(vectors)),
                                        _mm256_maddubs_epi16(x1, _mm256_load_si256(vectors + 1)));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
}

inline __m256i Broadcast(const uint8_t* x) {
  int four;
  __builtin_memcpy(&four, x, sizeof(four));
  return _mm256_set1_epi32(four);
}

template <int kRows>
void RunTile(const Int8BoundedJob& job, const int8_t* w, const int32_t* start, Int8Tile tile) {
  const int64_t stride = job.panel.groups * kInt8PanelGroup;
  const uint8_t* x = job.x + tile.row * stride;
  const auto* from = reinterpret_cast<const __m256i*>(start + tile.row * 16);
  __m256i low[kRows], high[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    low[r] = _mm256_loadu_si256(from + 2 * r);
    high[r] = _mm256_loadu_si256(from + 2 * r + 1);
  }
  for (int64_t j = 0; j < job.panel.groups; ++j, w += 128) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256i x0 = Broadcast(x + r * stride + j * 8);
      const __m256i x1 = Broadcast(x + r * stride + j * 8 + 4);
      low[r] = MultiplyAdd(low[r], x0, x1, w);
      high[r] = MultiplyAdd(high[r], x0, x1, w + 64);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    StoreHalf(job.panel, {tile.row + r, tile.panel}, 0, _mm256_cvtepi32_ps(low[r]));
    StoreHalf(job.panel, {tile.row + r, tile.panel}, 1, _mm256_cvtepi32_ps(high[r]));
  }
}

}  // namespace

void Avx2BoundPanel(const Int8PanelJob& job, const Int8ExcessView& excess, int64_t panel,
                    int8_t* bounded) {
  const int8_t* w = job.panels + panel * job.groups * 128;
  for (int64_t j = 0; j < job.groups; ++j) {
    for (int64_t half = 0; half < 2; ++half) {  // 4 inputs: two pairs of all channels
      const auto* from = reinterpret_cast<const __m256i*>(w + j * 128 + half * 64);
      _mm_prefetch(reinterpret_cast<const char*>(from) + 2048, _MM_HINT_T0);
      const __m256i a = _mm256_load_si256(from), b = _mm256_load_si256(from + 1);
      const __m256i low = _mm256_unpacklo_epi16(a, b);   // channels 0-3 and 8-11
      const __m256i high = _mm256_unpackhi_epi16(a, b);  // channels 4-7 and 12-15
      auto* to = reinterpret_cast<__m256i*>(bounded + j * 128 + half * 32);
      _mm256_store_si256(to, _mm256_permute2x128_si256(low, high, 0x20));
      _mm256_store_si256(to + 2, _mm256_permute2x128_si256(low, high, 0x31));
    }
  }
  for (int64_t c = 0; c < kInt8PanelColumns; ++c) {
    int8_t* channel = bounded + c / 8 * 64 + c % 8 * 4;
    const int64_t row = panel * kInt8PanelColumns + c;
    const int32_t end = excess.first[row + 1];
    for (int32_t entry = excess.first[row]; entry < end; ++entry) {
      const uint32_t i = excess.index[entry];
      channel[(i >> 3 << 7) + ((i & 4) << 3) + (i & 3)] -= excess.value[entry];
    }
  }
}

void Avx2BoundedPanel(const Int8BoundedJob& job, const Int8ExcessView& excess, int64_t panel,
                      const int8_t* bounded, int32_t* sums) {
  StartSums(job, excess, panel, reinterpret_cast<float*>(sums + kBoundedRows * 16), sums);
  const int64_t blocks = (job.panel.m + kMaxRows - 1) / kMaxRows;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t row = job.panel.m * b / blocks;
    const Int8Tile tile = {row, panel};
    switch (job.panel.m * (b + 1) / blocks - row) {
      case 1:
        RunTile<1>(job, bounded, sums, tile);
        break;
      case 2:
        RunTile<2>(job, bounded, sums, tile);
        break;
      case 3:
        RunTile<3>(job, bounded, sums, tile);
        break;
      default:
        RunTile<4>(job, bounded, sums, tile);
        break;
    }
  }
}

void Avx2TransposeCodes(const Int8BoundedJob& job, int64_t row, uint16_t* x_columns) {
  const int64_t stride = job.panel.groups * kInt8PanelGroup;
  for (int64_t i = 0; i < stride; i += 8) {
    __m256 block[2][8];
#pragma GCC unroll 2
    for (int64_t half = 0; half < 2; ++half) {
#pragma GCC unroll 8
      for (int64_t r = 0; r < 8; ++r) {
        const int64_t wanted = row + half * 8 + r;
        const int64_t from = wanted < job.panel.m ? wanted : row;
        const __m128i bytes =
            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(job.x + from * stride + i));
        block[half][r] = _mm256_cvtepi32_ps(
            _mm256_sub_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(128)));
      }
      Transpose(block[half]);
    }
#pragma GCC unroll 8
    for (int64_t t = 0; t < 8; ++t) {  // 8 bits of significand: the upper half of the f32 is exact
      const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(block[0][t]), 16);
      const __m256i both = _mm256_blend_epi16(low, _mm256_castps_si256(block[1][t]), 0xaa);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(x_columns + (i + t) * kBoundedRows + row),
                          both);
    }
  }
}

}  // namespace assay
