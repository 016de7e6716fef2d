// Compiled with -mavx512f -ffp-contract=off.
//
// 8 rows x 32 channels: 16 accumulators, 2 weights, 1 activation: per k 16 FMA, 2 loads and 8
// broadcasts. One row takes 4 panels at a time, to keep four chains going. The chains are those of
// avx2_f32_micro.cc, so that the results are the same bit for bit.
#include <immintrin.h>

#include "quant/kernels/cpu/panel_f32_micro.h"

namespace assay {
namespace {

constexpr int kMaxRows = 8;
// From this many rows on a bf16 or s8 panel is widened to f32 once instead of at every use.
constexpr int64_t kWidenFromRows = 17;

struct Tile {
  int64_t row, panel;
};

struct F32Weights {
  using Element = float;
  static __m512 Load(const float* w) { return _mm512_loadu_ps(w); }
};
struct Bf16Weights {
  using Element = uint16_t;
  static __m512 Load(const uint16_t* w) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    const __m256i high = _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
    const __m512i low = _mm512_castsi256_si512(_mm256_slli_epi32(both, 16));
    return _mm512_castsi512_ps(_mm512_inserti64x4(low, high, 1));
  }
};
struct Int8Weights {
  using Element = int8_t;
  static __m512 Load(const int8_t* w) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
};

// A panel's row, as far as y has its columns.
void Store(const F32PanelJob& job, Tile tile, __m512 sum) {
  const int64_t column = tile.panel * kF32PanelColumns;
  const int64_t exist = job.n - column;
  const auto mask = static_cast<__mmask16>(exist >= 16 ? 0xffff : (1 << exist) - 1);
  float* y = job.y + tile.row * job.n + column;
  if (job.weight_scales != nullptr)
    sum = _mm512_mul_ps(_mm512_loadu_ps(job.weight_scales + column), sum);
  if (job.bias != nullptr) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, job.bias + column));
  if (job.accumulate) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum);
  _mm512_mask_storeu_ps(y, mask, sum);
}

// kRows rows x (16 * kPanels) channels over all of k. `w` is the first panel; the next one follows.
template <int kRows, int kPanels, typename Weights>
void RunTile(const F32PanelJob& job, const typename Weights::Element* w, Tile tile) {
  const int64_t k = job.k, panel_size = k * kF32PanelColumns;
  const float* x = job.x + tile.row * k;
  __m512 acc[kRows][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) acc[r][p] = _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < k; ++i) {
    __m512 weights[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
      weights[p] = Weights::Load(w + p * panel_size + i * kF32PanelColumns);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 a = _mm512_set1_ps(x[r * k + i]);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) acc[r][p] = _mm512_fmadd_ps(a, weights[p], acc[r][p]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) Store(job, {tile.row + r, tile.panel + p}, acc[r][p]);
  }
}

template <int kPanels, typename Weights>
void RunRows(const F32PanelJob& job, int rows, const typename Weights::Element* w, Tile tile) {
  switch (rows) {
    case 1:
      return RunTile<1, kPanels, Weights>(job, w, tile);
    case 2:
      return RunTile<2, kPanels, Weights>(job, w, tile);
    case 3:
      return RunTile<3, kPanels, Weights>(job, w, tile);
    case 4:
      return RunTile<4, kPanels, Weights>(job, w, tile);
    case 5:
      return RunTile<5, kPanels, Weights>(job, w, tile);
    case 6:
      return RunTile<6, kPanels, Weights>(job, w, tile);
    case 7:
      return RunTile<7, kPanels, Weights>(job, w, tile);
    default:
      return RunTile<8, kPanels, Weights>(job, w, tile);
  }
}

// All rows of kPanels panels, in blocks of nearly equal height: 10 rows are 5 + 5, not 8 + 2.
template <int kPanels, typename Weights>
void RunBlocks(const F32PanelJob& job, const typename Weights::Element* w, int64_t panel) {
  const int64_t blocks = (job.m + kMaxRows - 1) / kMaxRows;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t row = job.m * b / blocks;
    const int rows = static_cast<int>(job.m * (b + 1) / blocks - row);
    RunRows<kPanels, Weights>(job, rows, w, {row, panel});
  }
}

template <typename Weights>
void Widen(const typename Weights::Element* w, int64_t k, float* wide) {
  for (int64_t i = 0; i < k; ++i)
    _mm512_storeu_ps(wide + i * kF32PanelColumns, Weights::Load(w + i * kF32PanelColumns));
}

template <typename Weights>
void RunPanels(const F32PanelJob& job, int64_t panel_begin, int64_t panel_end, float* wide) {
  using Element = typename Weights::Element;
  const int64_t panel_size = job.k * kF32PanelColumns;
  const auto* panels = static_cast<const Element*>(job.panels);
  const bool widen = sizeof(Element) < sizeof(float) && job.m >= kWidenFromRows;
  int64_t panel = panel_begin;
  for (; job.m == 1 && panel + 4 <= panel_end; panel += 4)
    RunTile<1, 4, Weights>(job, panels + panel * panel_size, {0, panel});
  for (; !widen && panel + 2 <= panel_end; panel += 2)
    RunBlocks<2, Weights>(job, panels + panel * panel_size, panel);
  for (; panel < panel_end; ++panel) {
    const Element* w = panels + panel * panel_size;
    if (widen) {
      Widen<Weights>(w, job.k, wide);
      RunBlocks<1, F32Weights>(job, wide, panel);
    } else {
      RunBlocks<1, Weights>(job, w, panel);
    }
  }
}

}  // namespace

void Avx512F32Panels(const F32PanelJob& job, int64_t panel_begin, int64_t panel_end, float* wide) {
  if (job.m == 0) return;
  switch (job.type) {
    case F32WeightType::kF32:
      return RunPanels<F32Weights>(job, panel_begin, panel_end, wide);
    case F32WeightType::kBf16:
      return RunPanels<Bf16Weights>(job, panel_begin, panel_end, wide);
    case F32WeightType::kInt8:
      return RunPanels<Int8Weights>(job, panel_begin, panel_end, wide);
  }
}

}  // namespace assay
