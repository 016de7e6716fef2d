// y = x W^T in 16 bits, any number of rows: what weights that were expanded (expand.h) are
// multiplied with, and what stands in for cuBLASLt where there is none.
//
// Products are exact, sums in f32, over k in ascending order of 16 inputs each: a row does not
// depend on the others. How: gemm_tile.h.
#pragma once
#include "quant/kernels/cuda/stored_weight.h"

namespace assay {

struct Gemm16Args {
  const void* x = nullptr;      // T [m, k], rows x_stride apart
  const void* w = nullptr;      // T [n, k], rows w_stride apart
  const float* bias = nullptr;  // [n] or null
  void* y = nullptr;            // [m, n] f32, or T if y_is_t; rows y_stride apart
  int m = 0, n = 0, k = 0;
  int x_stride = 0, w_stride = 0, y_stride = 0;  // in elements
  Half t = Half::kF16;
  bool y_is_t = false;
  bool accumulate = false;  // y += instead of y =; y in f32
  int side = 0;             // 64 or 128; 0: what suits the shape
};

// Why this product cannot be run, or null.
constexpr const char* Gemm16Refuses(const Gemm16Args& args, int compute_capability) {
  if (args.m < 1 || args.n < 1 || args.k < 1) return "gemm16 needs m, n and k of at least 1";
  if (args.t == Half::kBf16 && compute_capability < 80) return "bf16 needs compute capability 8.0";
  if (args.k % 8 != 0) return "gemm16 needs k to be a multiple of 8: 16 bytes";
  if (args.x_stride % 8 != 0 || args.x_stride < args.k || args.w_stride % 8 != 0 ||
      args.w_stride < args.k)
    return "rows of x and w must be 16 bytes aligned and hold k";
  if (args.y_stride < args.n) return "rows of y must hold n";
  if (args.accumulate && args.y_is_t) return "only y in f32 can be added to";
  if (args.side != 0 && args.side != 64 && args.side != 128) return "tiles have sides 64 or 128";
  return nullptr;
}

// REQUIRES: Gemm16Refuses says null.
ASSAY_LAUNCHER(int Gemm16(const Gemm16Args& args, const LaunchContext& context))

}  // namespace assay
