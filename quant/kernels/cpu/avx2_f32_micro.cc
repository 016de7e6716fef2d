// Compiled with -mavx2 -mfma -ffp-contract=off.
//
// 6 rows x 16 channels: 12 accumulators, 2 weights, 1 activation: per k 12 FMA, 2 loads and 6
// broadcasts. An FMA takes 4 cycles and two start per cycle, so at least 8 chains are kept going
// whatever the number of rows: with 1 row 4 panels at a time, with 2 or 3 rows 2 panels.
#include <immintrin.h>

#include "quant/kernels/cpu/panel_f32_micro.h"

namespace assay {
namespace {

constexpr int kMaxRows = 6;
// From this many rows on a bf16 or s8 panel is widened to f32 once instead of at every use.
constexpr int64_t kWidenFromRows = 13;

struct Tile {
  int64_t row, panel;
};
struct Pair {  // channels 0-7 and 8-15 of one k
  __m256 low, high;
};

struct F32Weights {
  using Element = float;
  static Pair Load(const float* w) { return {_mm256_loadu_ps(w), _mm256_loadu_ps(w + 8)}; }
};
struct Bf16Weights {
  using Element = uint16_t;
  static Pair Load(const uint16_t* w) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    const __m256i high = _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), _mm256_castsi256_ps(high)};
  }
};
struct Int8Weights {
  using Element = int8_t;
  static __m256 Eight(const int8_t* w) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
  static Pair Load(const int8_t* w) { return {Eight(w), Eight(w + 8)}; }
};

inline __m256 Epilogue(__m256 v, const float* scale, const float* bias, const float* old_y) {
  if (scale != nullptr) v = _mm256_mul_ps(_mm256_loadu_ps(scale), v);
  if (bias != nullptr) v = _mm256_add_ps(v, _mm256_loadu_ps(bias));
  if (old_y != nullptr) v = _mm256_add_ps(_mm256_loadu_ps(old_y), v);
  return v;
}

// Columns [8 half, 8 half + 8) of a panel's row, as far as y has them.
void StoreHalf(const F32PanelJob& job, Tile tile, int half, __m256 sum) {
  const int64_t column = tile.panel * kF32PanelColumns + half * 8;
  const int64_t exist = job.n - column;
  const float* scale = job.weight_scales == nullptr ? nullptr : job.weight_scales + column;
  float* y = job.y + tile.row * job.n + column;
  if (exist >= 8) {
    const float* bias = job.bias == nullptr ? nullptr : job.bias + column;
    _mm256_storeu_ps(y, Epilogue(sum, scale, bias, job.accumulate ? y : nullptr));
    return;
  }
  alignas(32) float bias[8] = {}, old_y[8] = {}, result[8];
  for (int64_t i = 0; i < exist; ++i) {
    if (job.bias != nullptr) bias[i] = job.bias[column + i];
    if (job.accumulate) old_y[i] = y[i];
  }
  _mm256_store_ps(result, Epilogue(sum, scale, job.bias == nullptr ? nullptr : bias,
                                   job.accumulate ? old_y : nullptr));
  for (int64_t i = 0; i < exist; ++i) y[i] = result[i];
}

// kRows rows x (16 * kPanels) channels over all of k. `w` is the first panel; the next one follows.
template <int kRows, int kPanels, typename Weights>
void RunTile(const F32PanelJob& job, const typename Weights::Element* w, Tile tile) {
  const int64_t k = job.k, panel_size = k * kF32PanelColumns;
  const float* x = job.x + tile.row * k;
  __m256 acc[kRows][2 * kPanels];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < 2 * kPanels; ++c) acc[r][c] = _mm256_setzero_ps();
  }
  for (int64_t i = 0; i < k; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const Pair pair = Weights::Load(w + p * panel_size + i * kF32PanelColumns);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const __m256 a = _mm256_broadcast_ss(x + r * k + i);
        acc[r][2 * p] = _mm256_fmadd_ps(a, pair.low, acc[r][2 * p]);
        acc[r][2 * p + 1] = _mm256_fmadd_ps(a, pair.high, acc[r][2 * p + 1]);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < 2 * kPanels; ++c)
      StoreHalf(job, {tile.row + r, tile.panel + c / 2}, c % 2, acc[r][c]);
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
      return RunTile<4, 1, Weights>(job, w, tile);
    case 5:
      return RunTile<5, 1, Weights>(job, w, tile);
    default:
      return RunTile<6, 1, Weights>(job, w, tile);
  }
}

// All rows of one panel, in blocks of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
template <typename Weights>
void RunPanel(const F32PanelJob& job, const typename Weights::Element* w, int64_t panel) {
  const int64_t blocks = (job.m + kMaxRows - 1) / kMaxRows;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t row = job.m * b / blocks;
    RunRows<1, Weights>(job, static_cast<int>(job.m * (b + 1) / blocks - row), w, {row, panel});
  }
}

template <typename Weights>
void Widen(const typename Weights::Element* w, int64_t k, float* wide) {
  for (int64_t i = 0; i < k; ++i) {
    const Pair pair = Weights::Load(w + i * kF32PanelColumns);
    _mm256_storeu_ps(wide + i * kF32PanelColumns, pair.low);
    _mm256_storeu_ps(wide + i * kF32PanelColumns + 8, pair.high);
  }
}

template <typename Weights>
void RunPanels(const F32PanelJob& job, int64_t panel_begin, int64_t panel_end, float* wide) {
  using Element = typename Weights::Element;
  const int64_t panel_size = job.k * kF32PanelColumns;
  const auto* panels = static_cast<const Element*>(job.panels);
  int64_t panel = panel_begin;
  if (job.m == 1) {
    for (; panel + 4 <= panel_end; panel += 4)
      RunTile<1, 4, Weights>(job, panels + panel * panel_size, {0, panel});
  }
  if (job.m <= 3) {
    for (; panel + 2 <= panel_end; panel += 2) {
      RunRows<2, Weights>(job, static_cast<int>(job.m), panels + panel * panel_size, {0, panel});
    }
  }
  for (; panel < panel_end; ++panel) {
    const Element* w = panels + panel * panel_size;
    if (sizeof(Element) < sizeof(float) && job.m >= kWidenFromRows) {
      Widen<Weights>(w, job.k, wide);
      RunPanel<F32Weights>(job, wide, panel);
    } else {
      RunPanel<Weights>(job, w, panel);
    }
  }
}

}  // namespace

void Avx2F32Panels(const F32PanelJob& job, int64_t panel_begin, int64_t panel_end, float* wide) {
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
