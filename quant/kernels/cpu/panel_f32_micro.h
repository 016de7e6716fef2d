// The inner loops of avx2_f32 (AVX2 and FMA) and avx512_f32 (AVX512-F), each compiled for its
// instruction set: enter only where HostCpu() has it. This header includes nothing that
// instantiates inline code in their translation units. Pure.
#pragma once
#include <cstdint>

namespace assay {

inline constexpr int64_t kF32PanelColumns = 16;

// Weights, packed once: panels of 16 output channels, k outermost (n padded to 16 with zeros).
//
//   f32   element (p * k + i) * 16 + c  =  W[16 p + c, i]
//   s8    likewise, one byte each; the scale of the channel is applied to the sum
//   bf16  16 elements of one i are 8 words of 32 bit: word c holds channel c in its low half and
//         channel c + 8 in its high half, so that a shift and a mask widen them to f32
enum class F32WeightType { kF32, kBf16, kInt8 };

struct F32PanelJob {
  F32WeightType type;
  const void* panels;          // [num_panels, k, 16]
  const float* weight_scales;  // [num_panels * 16], or nullptr: no scales
  int64_t k;
  const float* x;  // [m, k]
  int64_t m;
  const float* bias;  // [n] or nullptr
  float* y;           // [m, n]
  int64_t n;
  bool accumulate;
};

// y[:, 16 panel_begin .. 16 panel_end) = s_w * sum (+ bias) (+ y), where sum is one chain of fused
// multiply-adds over k in order, whatever m is. `wide` is f32 scratch [k * 16] that keeps a widened
// panel while many rows use it.
void Avx2F32Panels(const F32PanelJob& job, int64_t panel_begin, int64_t panel_end, float* wide);
// The same results.
void Avx512F32Panels(const F32PanelJob& job, int64_t panel_begin, int64_t panel_end, float* wide);

}  // namespace assay
