// y = x W^T for signed bytes with a scale per row on both sides (a8_token times int8_channel), any
// number of rows. Sums are exact; the rest is, operation for operation, the reference kernel's
// (quant/kernels/reference), so that y has its bits:
//
//   y = (x_scale * w_scale) * f32(sum), + bias, + y
//
// How: gemm_tile.h.
#pragma once
#include "quant/kernels/cuda/stored_weight.h"

namespace assay {

struct GemmS8Args {
  const int8_t* x = nullptr;        // [m, k], rows x_stride apart
  const float* x_scales = nullptr;  // [m]; NaN: the row of y is NaN
  const int8_t* w = nullptr;        // [n, k], rows w_stride apart
  const float* w_scales = nullptr;  // [n]
  const float* bias = nullptr;      // [n] or null
  void* y = nullptr;                // [m, n] f32, or T if y_is_t; rows y_stride apart
  int m = 0, n = 0, k = 0;
  int x_stride = 0, w_stride = 0, y_stride = 0;  // in elements
  Half t = Half::kF16;                           // y's, if y_is_t
  bool y_is_t = false;
  bool accumulate = false;  // y += instead of y =; y in f32
  int side = 0;             // 64 or 128; 0: what suits the shape
};

// Why this product cannot be run, or null.
constexpr const char* GemmS8Refuses(const GemmS8Args& args) {
  if (args.m < 1 || args.n < 1 || args.k < 1) return "gemm_s8 needs m, n and k of at least 1";
  if (args.k % 16 != 0) return "gemm_s8 needs k to be a multiple of 16: 16 bytes";
  if (args.k > 131072) return "gemm_s8 needs k of at most 131072: 2^17 * 128 * 127 < 2^31";
  if (args.x_stride % 16 != 0 || args.x_stride < args.k || args.w_stride % 16 != 0 ||
      args.w_stride < args.k)
    return "rows of x and w must be 16 bytes aligned and hold k";
  if (args.y_stride < args.n) return "rows of y must hold n";
  if (args.accumulate && args.y_is_t) return "only y in f32 can be added to";
  if (args.side != 0 && args.side != 64 && args.side != 128) return "tiles have sides 64 or 128";
  return nullptr;
}

// REQUIRES: GemmS8Refuses says null.
ASSAY_LAUNCHER(int GemmS8(const GemmS8Args& args, const LaunchContext& context))

}  // namespace assay
