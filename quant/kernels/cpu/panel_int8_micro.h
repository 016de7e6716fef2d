// The inner loops of avx2_int8 and avx512_int8, each compiled for its instruction set: enter only
// where HostCpu() has it. This header includes nothing that instantiates inline code in their
// translation units. Pure.
//
// Weights, packed once: panels of 16 output channels, k in pairs (n padded to 16 with zero
// channels, k padded to 8 with zero codes):
//
//   panel p, pair j, channel c, i in {0, 1}:
//   byte  ((p * pairs + j) * 16 + c) * 2 + i  =  code of W[16 p + c, 2 j + i]
//
// so 16 bytes, widened to s16, meet one broadcast pair of activations in vpmaddwd.
#pragma once
#include <cstdint>

namespace assay {

inline constexpr int64_t kInt8PanelColumns = 16;
inline constexpr int64_t kInt8PanelGroup = 8;

// Where the code of channel c in [0, 16) and input i lies in a panel. (static: each translation
// unit keeps the copy compiled for its own instruction set.)
static inline int64_t Int8PanelOffset(int64_t c, int64_t i) { return i / 2 * 32 + c * 2 + i % 2; }

// What both products below share.
struct Int8PanelJob {
  const int8_t* panels;        // [num_panels, 4 groups, 16, 2]
  const float* weight_scales;  // [num_panels * 16]
  int64_t groups;              // of 8 inputs
  const float* x_scales;       // [m]
  int64_t m;
  const float* bias;  // [n] or nullptr
  float* y;           // [m, n]
  int64_t n;
  bool accumulate;
};

// y[:, 16 panel_begin .. 16 panel_end) = (s_x * s_w) * f32(exact integer dot) (+ bias) (+ y), each
// step rounded once, as in the reference kernel. x: codes as s16 [m, 8 groups].
void Avx2Int8Panels(const Int8PanelJob& job, const int16_t* x, int64_t panel_begin,
                    int64_t panel_end);
// The same results, with AVX512-F, -BW and -VNNI.
void Avx512Int8Panels(const Int8PanelJob& job, const int16_t* x, int64_t panel_begin,
                      int64_t panel_end);

// Weights whose groups of inputs have scales of their own:
//
//   sum = sum over groups of s_g * f32(exact integer dot of the group), one FMA each, in order;
//   y[:, 16 panel_begin .. 16 panel_end) = (s_x * s_w) * sum (+ bias) (+ y).
//
// Enter only where HostCpu() has AVX2 and FMA (avx2_int8_group_micro.cc).
struct Int8GroupJob {
  Int8PanelJob panel;
  const uint16_t* group_scales;  // bf16 [num_panels, weight_groups, 16]
  int64_t group;                 // inputs that share a scale, a multiple of 8
};
void Avx2Int8GroupPanels(const Int8GroupJob& job, const int16_t* x, int64_t panel_begin,
                         int64_t panel_end);
void Avx512Int8GroupPanels(const Int8GroupJob& job, const int16_t* x, int64_t panel_begin,
                           int64_t panel_end);

// A row of x as s16 codes in [-max_code, max_code] with a scale of its own, which it returns:
// quant/kernels/a8_token.h with another range. A row whose absmax is below `smallest` counts as
// zero; max_code / smallest is finite. Codes are padded with zero codes to a multiple of 8.
struct Int8TokenRange {
  float max_code, smallest;
};
float Avx2QuantizeToken(const float* x, int64_t k, Int8TokenRange range, int16_t* codes);
// a8_token, bit for bit, with code + 128 as u8, padded with 128 if `padded`.
float Avx2QuantizeA8TokenU8(const float* x, int64_t k, uint8_t* codes, bool padded);

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
