// From sums of products, in f32, to y, as in the reference kernel. Only for translation units
// compiled for AVX2: everything here has internal linkage.
#pragma once
#include <immintrin.h>

#include "quant/kernels/cpu/panel_int8_micro.h"

namespace assay {
namespace {

// Where a tile starts.
struct Int8Tile {
  int64_t row, panel;
};

inline __m256 Epilogue(__m256 sum, __m256 scale, const float* bias, const float* old_y) {
  __m256 v = _mm256_mul_ps(scale, sum);
  if (bias != nullptr) v = _mm256_add_ps(v, _mm256_loadu_ps(bias));
  if (old_y != nullptr) v = _mm256_add_ps(_mm256_loadu_ps(old_y), v);
  return v;
}

// Columns [8 half, 8 half + 8) of a panel's row; `columns` of the panel exist in y.
inline void StoreHalf(const Int8PanelJob& job, Int8Tile tile, int half, __m256 sum) {
  const int64_t column = tile.panel * kInt8PanelColumns + half * 8;
  const int64_t exist = job.n - column;
  const __m256 scale = _mm256_mul_ps(_mm256_broadcast_ss(job.x_scales + tile.row),
                                     _mm256_loadu_ps(job.weight_scales + column));
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

}  // namespace
}  // namespace assay
