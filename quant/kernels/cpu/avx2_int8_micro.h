// The inner loops of avx2_int8, compiled for AVX2. Enter only where HostCpu().avx2 holds. This
// header includes nothing that instantiates inline code in the AVX2 translation unit. Pure.
#pragma once
#include <cstdint>

namespace assay {

inline constexpr int64_t kInt8PanelColumns = 16;

// Weights, packed once: panels of 16 output channels, k in pairs (odd k padded with a zero code, n
// padded to 16 with zero channels).
//
//   panel p, pair j, channel c, i in {0, 1}:
//   byte  ((p * k_pairs + j) * 16 + c) * 2 + i  =  code of W[16 p + c, 2 j + i]
//
// so 16 bytes widened to s16 meet one broadcast pair of activations in vpmaddwd, exactly.
struct Int8PanelJob {
  const int8_t* panels;        // [num_panels, k_pairs, 16, 2]
  const float* weight_scales;  // [num_panels * 16]
  int64_t k_pairs;
  const int16_t* x;       // [m, 2 * k_pairs] codes of the activations
  const float* x_scales;  // [m]
  int64_t m;
  const float* bias;  // [n] or nullptr
  float* y;           // [m, n]
  int64_t n;
  bool accumulate;
};

// y[:, 16 panel_begin .. 16 panel_end) = (s_x * s_w) * f32(exact integer dot) (+ bias) (+ y), each
// step rounded once, as in the reference kernel.
void Avx2Int8Panels(const Int8PanelJob& job, int64_t panel_begin, int64_t panel_end);

// quant/kernels/a8_token.h, bit for bit, with the codes as s16 [k + k % 2]. Returns the scale.
float Avx2QuantizeA8Token(const float* x, int64_t k, int16_t* codes);
// Likewise, with code + 128 as u8 [k].
float Avx2QuantizeA8TokenU8(const float* x, int64_t k, uint8_t* codes);

// The same epilogue over integer sums made elsewhere, from which `offsets` are taken first.
struct Int8RescaleJob {
  const int32_t* acc;          // [rows, columns]
  const int32_t* offsets;      // [columns]
  const float* x_scales;       // [rows]
  const float* weight_scales;  // [columns]
  const float* bias;           // [columns] or nullptr
  float* y;                    // [rows, columns], rows y_stride apart
  int64_t rows, columns, y_stride;
  bool accumulate;
};
void Avx2Int8Rescale(const Int8RescaleJob& job);

}  // namespace assay
