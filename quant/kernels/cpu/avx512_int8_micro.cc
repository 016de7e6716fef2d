// Compiled with -mavx512f -mavx512bw -mavx512vnni -ffp-contract=off (the epilogue must round like
// the reference kernel).
//
// 6 rows x 32 channels: 12 sums, 2 weights, 1 pair of activations. Codes are widened to s16 in
// registers; vpdpwssd multiplies pairs and adds them to 32-bit sums, exactly. With a scale per
// group 12 more registers hold the sums in f32. The arithmetic is that of avx2_int8_micro.cc and
// avx2_int8_group_micro.cc, so that the results are the same bit for bit.
#include <immintrin.h>

#include "quant/kernels/cpu/panel_int8_micro.h"

namespace assay {
namespace {

constexpr int kMaxRows = 6;
constexpr int64_t kPrefetchBytes = 2048;  // as in avx2_int8_micro.cc

inline __m512i Load(const int8_t* w) {  // a pair of k for 16 channels
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
}
inline __m512 Bf16(const uint16_t* scales) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// The row of a panel, as far as y has its columns.
inline void Store(const Int8PanelJob& job, int64_t row, int64_t panel, __m512 sum) {
  const int64_t column = panel * kInt8PanelColumns, exist = job.n - column;
  const auto mask = static_cast<__mmask16>(exist >= 16 ? 0xffff : (1 << exist) - 1);
  const __m512 scale =
      _mm512_mul_ps(_mm512_set1_ps(job.x_scales[row]), _mm512_loadu_ps(job.weight_scales + column));
  float* y = job.y + row * job.n + column;
  __m512 v = _mm512_mul_ps(scale, sum);
  if (job.bias != nullptr) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, job.bias + column));
  if (job.accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), v);
  _mm512_mask_storeu_ps(y, mask, v);
}

// Some rows of codes, and the panels that they meet.
struct TileInput {
  const int16_t* x;  // [kRows], `stride` apart
  int64_t stride;
  const int8_t* w;  // the first panel
  int64_t panel_bytes;
};

// Exact sums over `inputs` inputs.
template <int kRows, int kPanels>
inline void Sum(const TileInput& in, int64_t inputs, __m512i (&acc)[kRows][kPanels]) {
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) acc[r][p] = _mm512_setzero_si512();
  }
  for (int64_t j = 0; j < inputs; j += 2) {  // pairs of k
    __m512i w[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const int8_t* codes = in.w + p * in.panel_bytes + j * 16;
      _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetchBytes), _MM_HINT_T0);
      w[p] = Load(codes);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      int pair;
      __builtin_memcpy(&pair, in.x + r * in.stride + j, sizeof(pair));
      const __m512i a = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) acc[r][p] = _mm512_dpwssd_epi32(acc[r][p], a, w[p]);
    }
  }
}

// Weights with a scale per row: kRows rows x (16 * kPanels) channels over all of k.
struct ByRow {
  using Job = Int8PanelJob;
  static const Int8PanelJob& panel(const Job& job) { return job; }

  template <int kRows, int kPanels>
  static void RunTile(const Job& job, const TileInput& in, int64_t row, int64_t panel) {
    __m512i acc[kRows][kPanels];
    Sum<kRows, kPanels>(in, in.stride, acc);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
        Store(job, row + r, panel + p, _mm512_cvtepi32_ps(acc[r][p]));
    }
  }
};

// The same with a scale per group of inputs.
struct ByGroup {
  using Job = Int8GroupJob;
  static const Int8PanelJob& panel(const Job& job) { return job.panel; }

  template <int kRows, int kPanels>
  static void RunTile(const Job& job, const TileInput& in, int64_t row, int64_t panel) {
    const int64_t groups = (in.stride + job.group - 1) / job.group;
    const uint16_t* scales = job.group_scales + panel * groups * 16;
    __m512 sums[kRows][kPanels];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) sums[r][p] = _mm512_setzero_ps();
    }
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * job.group, rest = in.stride - begin;
      __m512i acc[kRows][kPanels];
      Sum<kRows, kPanels>({in.x + begin, in.stride, in.w + begin * 16, in.panel_bytes},
                          rest < job.group ? rest : job.group, acc);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        const __m512 scale = Bf16(scales + (p * groups + g) * 16);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r)
          sums[r][p] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(acc[r][p]), sums[r][p]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) Store(job.panel, row + r, panel + p, sums[r][p]);
    }
  }
};

template <typename Kind, int kPanels>
void RunRows(const typename Kind::Job& job, const TileInput& in, int rows, int64_t row,
             int64_t panel) {
  switch (rows) {
    case 1:
      return Kind::template RunTile<1, kPanels>(job, in, row, panel);
    case 2:
      return Kind::template RunTile<2, kPanels>(job, in, row, panel);
    case 3:
      return Kind::template RunTile<3, kPanels>(job, in, row, panel);
    case 4:
      return Kind::template RunTile<4, kPanels>(job, in, row, panel);
    case 5:
      return Kind::template RunTile<5, kPanels>(job, in, row, panel);
    default:
      return Kind::template RunTile<6, kPanels>(job, in, row, panel);
  }
}

// All rows of kPanels panels, in blocks of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
template <typename Kind, int kPanels>
void RunBlocks(const typename Kind::Job& job, const int16_t* x, int64_t panel) {
  const Int8PanelJob& panels = Kind::panel(job);
  const int64_t stride = panels.groups * kInt8PanelGroup,
                blocks = (panels.m + kMaxRows - 1) / kMaxRows;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t row = panels.m * b / blocks;
    const TileInput in = {x + row * stride, stride, panels.panels + panel * stride * 16,
                          stride * 16};
    RunRows<Kind, kPanels>(job, in, static_cast<int>(panels.m * (b + 1) / blocks - row), row,
                           panel);
  }
}

template <typename Kind>
void RunPanels(const typename Kind::Job& job, const int16_t* x, int64_t begin, int64_t end) {
  const Int8PanelJob& panels = Kind::panel(job);
  int64_t panel = begin;
  for (; panels.m == 1 && panel + 4 <= end; panel += 4) {
    const int64_t stride = panels.groups * kInt8PanelGroup;
    Kind::template RunTile<1, 4>(job, {x, stride, panels.panels + panel * stride * 16, stride * 16},
                                 0, panel);
  }
  for (; panel + 2 <= end; panel += 2) RunBlocks<Kind, 2>(job, x, panel);
  for (; panel < end; ++panel) RunBlocks<Kind, 1>(job, x, panel);
}

}  // namespace

void Avx512Int8Panels(const Int8PanelJob& job, const int16_t* x, int64_t panel_begin,
                      int64_t panel_end) {
  RunPanels<ByRow>(job, x, panel_begin, panel_end);
}

void Avx512Int8GroupPanels(const Int8GroupJob& job, const int16_t* x, int64_t panel_begin,
                           int64_t panel_end) {
  RunPanels<ByGroup>(job, x, panel_begin, panel_end);
}

}  // namespace assay
