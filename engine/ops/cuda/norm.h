// Norms at the seams of a layer: what the residual stream gains from the layer before, the norm,
// and the form in which the next product wants it, in one pass. The stream is f32, sums are f32.
#pragma once
#include <cstdint>

#include "base/cuda/simt.h"
#include "quant/kernels/cuda/row_form.h"

namespace assay {

struct NormArgs {
  float* stream = nullptr;      // [rows, width]
  const float* add = nullptr;   // [rows, width] or null: added to the stream first, and kept there
  const float* gain = nullptr;  // [width]
  // [width]: LayerNorm, (x - mean) / sqrt(var + eps) * gain + bias, which replaces the stream (BERT
  // is normed behind the sum). Null: RMS norm, x / sqrt(mean(x^2) + eps) * gain, which leaves it.
  const float* bias = nullptr;
  float eps = 0;
  int rows = 0, width = 0;
  // Row i of the result is of row pick[i] of the stream; null: of row i. With it nothing is added,
  // and the stream stays.
  const int32_t* pick = nullptr;
  RowForm form = RowForm::kHalf;
  Half half = Half::kBf16;
  void* out = nullptr;      // [rows, width] in `form`
  float* scales = nullptr;  // [rows], of codes
};
// nullptr, or why there is no such norm.
inline const char* NormRefuses(int width) {
  return width % 4 != 0 ? "the width of a norm is a multiple of 4" : nullptr;
}
ASSAY_LAUNCHER(int Norm(const NormArgs& args, const LaunchContext& context))

// out[row] = gate(x[row, :width]) * x[row, width:], in `form`; x is f32 [rows, 2 width]. Without
// `gated`: out = gate(x), x [rows, width]. kNone: x itself, in another form.
enum class Gate { kNone, kSilu, kGelu, kGeluTanh, kRelu, kTanh };
struct GateArgs {
  const float* x = nullptr;
  int rows = 0, width = 0;  // width: a multiple of 4
  bool gated = true;
  Gate gate = Gate::kSilu;
  RowForm form = RowForm::kHalf;
  Half half = Half::kBf16;
  void* out = nullptr;
  float* scales = nullptr;
};
ASSAY_LAUNCHER(int Activate(const GateArgs& args, const LaunchContext& context))

}  // namespace assay
