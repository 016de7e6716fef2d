// Compiled with -mavx2 -mfma -ffp-contract=off.
//
// The tile of avx2_int8_micro.cc, group by group: 12 integer sums in registers while a group lasts,
// 12 sums in f32 in the L1 cache, which each group adds to. A group of 32 pays 28 instructions for
// that beside 512 of the products.
#include <immintrin.h>

#include "quant/kernels/cpu/avx2_int8_epilogue.h"

namespace assay {
namespace {

constexpr int kMaxRows = 6;
constexpr int64_t kPrefetchBytes = 2048;  // as in avx2_int8_micro.cc

inline __m256i Load(const int8_t* w) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
}
inline __m256 Bf16(const uint16_t* scales) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

// sums [kRows, 16] += scales * the exact dots of `inputs` inputs. x: rows `stride` apart.
template <int kRows>
inline void AddGroup(const int16_t* x, int64_t stride, const int8_t* w, int64_t inputs,
                     const uint16_t* scales, float* sums) {
  __m256i low[kRows], high[kRows];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  for (int64_t j = 0; j < inputs; j += 2) {  // pairs of k
    _mm_prefetch(reinterpret_cast<const char*>(w + j * 16 + kPrefetchBytes), _MM_HINT_T0);
    const __m256i w0 = Load(w + j * 16), w1 = Load(w + j * 16 + 16);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      int pair;
      __builtin_memcpy(&pair, x + r * stride + j, sizeof(pair));
      const __m256i a = _mm256_set1_epi32(pair);
      low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(a, w0));
      high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(a, w1));
      asm volatile("" : "+x"(low[r]), "+x"(high[r]));  // row by row, see avx2_int8_micro.cc
    }
  }
  const __m256 s0 = Bf16(scales), s1 = Bf16(scales + 8);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    float* sum = sums + r * 16;
    _mm256_store_ps(sum, _mm256_fmadd_ps(s0, _mm256_cvtepi32_ps(low[r]), _mm256_load_ps(sum)));
    _mm256_store_ps(sum + 8,
                    _mm256_fmadd_ps(s1, _mm256_cvtepi32_ps(high[r]), _mm256_load_ps(sum + 8)));
  }
}

template <int kRows>
void RunTile(const Int8GroupJob& job, const int16_t* codes, Int8Tile tile) {
  const int64_t stride = job.panel.groups * kInt8PanelGroup;
  const int64_t groups = (stride + job.group - 1) / job.group;
  const int16_t* x = codes + tile.row * stride;
  const int8_t* w = job.panel.panels + tile.panel * stride * 16;
  const uint16_t* scales = job.group_scales + tile.panel * groups * 16;
  alignas(32) float sums[kRows * 16] = {};
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = g * job.group;
    const int64_t inputs = stride - begin < job.group ? stride - begin : job.group;
    AddGroup<kRows>(x + begin, stride, w + begin * 16, inputs, scales + g * 16, sums);
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    StoreHalf(job.panel, {tile.row + r, tile.panel}, 0, _mm256_load_ps(sums + r * 16));
    StoreHalf(job.panel, {tile.row + r, tile.panel}, 1, _mm256_load_ps(sums + r * 16 + 8));
  }
}

void RunRows(const Int8GroupJob& job, const int16_t* x, int rows, Int8Tile tile) {
  switch (rows) {
    case 1:
      return RunTile<1>(job, x, tile);
    case 2:
      return RunTile<2>(job, x, tile);
    case 3:
      return RunTile<3>(job, x, tile);
    case 4:
      return RunTile<4>(job, x, tile);
    case 5:
      return RunTile<5>(job, x, tile);
    default:
      return RunTile<6>(job, x, tile);
  }
}

}  // namespace

void Avx2Int8GroupPanels(const Int8GroupJob& job, const int16_t* x, int64_t panel_begin,
                         int64_t panel_end) {
  const int64_t m = job.panel.m, blocks = (m + kMaxRows - 1) / kMaxRows;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t row = m * b / blocks;
      RunRows(job, x, static_cast<int>(m * (b + 1) / blocks - row), {row, panel});
    }
  }
}

}  // namespace assay
