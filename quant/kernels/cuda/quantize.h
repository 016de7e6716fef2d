// Rows to codes of 8 bits with a scale each: bit for bit what the CPU makes (quant/activation.h for
// x, quant/schemes/* for weights).
#pragma once
#include "quant/kernels/cuda/stored_weight.h"

namespace assay {

enum class Number { kF32, kF16, kBf16 };  // of what is quantized

// a is a row's absmax. Rows of x: r = max / a, code = round(x * r), scale = a / max; a below 2^-119
// counts as zero: scale 0, codes 0; NaN or infinity in a row: scale NaN, codes 0. Rows of a weight
// (all finite): scale = max(a / max, FLT_MIN), code = round(w / scale); a up to FLT_MIN / 2: 0.
enum class RowCodes {
  kA8Token,      // s8, max 127
  kFp8Token,     // E4M3, max 448
  kInt8Channel,  // s8, scheme int8_channel
  kE4M3Channel,  // scheme fp8_e4m3
};

struct QuantizeRowsArgs {
  const void* from = nullptr;  // Number [rows, k], rows from_stride apart
  uint8_t* codes = nullptr;    // [rows, k], rows codes_stride apart
  float* scales = nullptr;     // [rows]
  int rows = 0, k = 0;
  int from_stride = 0, codes_stride = 0;
  Number number = Number::kF32;
  RowCodes to = RowCodes::kA8Token;
};

constexpr const char* QuantizeRowsRefuses(const QuantizeRowsArgs& args) {
  if (args.rows < 1 || args.k < 1) return "quantizing needs rows and k of at least 1";
  if (args.from_stride < args.k || args.codes_stride < args.k) return "rows must hold k";
  return nullptr;
}

// REQUIRES: QuantizeRowsRefuses says null.
ASSAY_LAUNCHER(int QuantizeRows(const QuantizeRowsArgs& args, const LaunchContext& context))

}  // namespace assay
