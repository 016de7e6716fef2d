// Rows to codes of 8 bits with a scale each, and groups of rows to int4: bit for bit what the CPU
// makes (quant/activation.h for x, quant/schemes/* for weights).
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

// Scheme int4_group, its grids sym, full and asym, rounded to nearest.
enum class Int4Grid { kSym, kFull, kAsym };

struct QuantizeInt4Args {
  const void* from = nullptr;  // Number [n, k]: all finite
  uint8_t* codes = nullptr;    // [n, k / 2 rounded up]
  uint16_t* scales = nullptr;  // bf16 [n, groups]
  uint8_t* zeros = nullptr;    // [n, groups / 2 rounded up]; asym only
  int n = 0, k = 0;
  int group = 128;  // >= k: the whole row
  Number number = Number::kF32;
  Int4Grid grid = Int4Grid::kSym;
};

constexpr const char* QuantizeInt4Refuses(const QuantizeInt4Args& args) {
  if (args.n < 1 || args.k < 1) return "quantizing needs n and k of at least 1";
  if (args.group < 1 || (args.group < args.k && args.group % 8 != 0))
    return "groups must be multiples of 8";
  if (args.grid == Int4Grid::kAsym && args.zeros == nullptr) return "the grid asym has zero points";
  return nullptr;
}

// REQUIRES: QuantizeInt4Refuses says null.
ASSAY_LAUNCHER(int QuantizeInt4(const QuantizeInt4Args& args, const LaunchContext& context))

}  // namespace assay
