// What each activation mode (quant/scheme.h) makes of a row of x: the definitions that kernels and
// tests share. Pure; any thread.
//
//   mode          code                                            x stands for
//   a8_token      quant/kernels/a8_token.h                        scale * code
//   a8_tensor     clamp(rint(x / scale) + zero, -128, 127)        scale * (code - zero)
//   a8_mix        a8_token in prefill, a8_tensor in decode
//   int8_outlier  a8_token over the other columns; outliers: 0    scale * code, or x itself
//   a4_token      clamp(rint(x / scale), -7, 7), scale =          scale * code
//                 clip * absmax / 7
//   fp8_token     E4M3(x / scale), scale = absmax / 448           scale * value of the code
//   fp8_block     the same per 128 inputs of a row                likewise
//   fp8_tensor    E4M3(x / scale)                                 likewise
//
// E4M3 rounds half to even and saturates at 448 (base/float8.h).
//
// rint rounds half to even; x / scale is computed as x * (1 / scale) with one rounding each. A row
// with NaN or infinity (outside the outlier columns) gets scale NaN; rows that are all zero or tiny
// are handled as in a8_token, blocks of a row likewise.
//
// Sources: design.md section 2; a8_tensor, a8_mix: msmodelslim W8A8 and W8A8_mix; int8_outlier:
// bitsandbytes LLM.int8() with columns fixed at calibration, so that a row does not depend on its
// batch; a4_token: QuaRot; fp8_block: DeepSeek-V3's activations, 1 x 128.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "quant/scheme.h"

namespace assay {

// What a mode needs beyond its name. Stored with the weight, in QuantizedTensor::extra, so that
// artifacts carry it:
//   a8_tensor, a8_mix  "x_scale" f32 [1], > 0; "x_zero" i32 [1] in [-128, 127]
//   int8_outlier       "x_outliers" i32 [c], columns, strictly ascending
//   fp8_tensor         "x_scale" f32 [1], > 0
//   a4_token           "x_clip" f32 [1] in (0, 1], absent: 1
struct ActivationParams {
  float scale = 1;
  int32_t zero = 0;
  std::vector<int32_t> outliers;
  float clip = 1;
};
// InvalidArgument names the tensor that is missing or wrong.
absl::StatusOr<ActivationParams> ReadActivationParams(const QuantizedTensor& w,
                                                      ActivationMode mode);
// ResourceExhausted.
absl::Status WriteActivationParams(const ActivationParams& params, ActivationMode mode,
                                   QuantizedTensor& w);

// What codes of a calibrated scale stand for; x outside of it is cut off. Of a8_mix: in decode.
struct StaticRange {
  float low = 0, high = 0;
};
// nullopt: the mode finds its scales from x.
std::optional<StaticRange> StaticRangeOf(ActivationMode mode, const ActivationParams& params);

// The modes in which x is replaced by codes: all but a16.
inline bool HasCodes(ActivationMode mode) { return mode != ActivationMode::kA16; }
// Those of them whose codes are 8-bit floats; the others' are integers.
inline bool HasFp8Codes(ActivationMode mode) {
  return mode == ActivationMode::kFp8Token || mode == ActivationMode::kFp8Block ||
         mode == ActivationMode::kFp8Tensor;
}
inline bool HasIntegerCodes(ActivationMode mode) { return HasCodes(mode) && !HasFp8Codes(mode); }
inline constexpr int64_t kFp8BlockInputs = 128;

struct RowPhase {
  bool decode = false;
};
// REQUIRES: HasIntegerCodes(mode). x [k] -> codes [k] with the zero point already subtracted, in
// [-255, 255]; returns the scale.
float QuantizeRow(ActivationMode mode, const ActivationParams& params, RowPhase phase,
                  std::span<const float> x, std::span<int16_t> codes);
// x [k] as the mode sees it, f32 [k]; outlier columns as they are. `codes` is scratch [k].
void RepresentRow(ActivationMode mode, const ActivationParams& params, RowPhase phase,
                  std::span<const float> x, std::span<int16_t> codes, std::span<float> out);

}  // namespace assay
