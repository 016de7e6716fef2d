// Rows of a weight of any storage (stored_weight.h) to T: for products that have too many rows for
// the skinny one. out = T(what QuantScheme::DecodeRows gives), bit for bit.
#pragma once
#include "quant/kernels/cuda/stored_weight.h"

namespace assay {

struct ExpandArgs {
  StoredWeight w;       // [n, k]
  void* out = nullptr;  // T [rows, k], rows out_stride elements apart
  int row = 0, rows = 0;
  int out_stride = 0;
  Half t = Half::kF16;
  bool float_out = false;         // f32 instead of T
  const int32_t* pick = nullptr;  // [rows]: which rows instead, zeros where negative (embedding)
};

// Why these rows cannot be expanded, or null.
constexpr const char* ExpandRefuses(const ExpandArgs& args, int compute_capability) {
  if (args.rows < 1 || args.row < 0 || (args.pick == nullptr && args.rows > args.w.n - args.row))
    return "the rows to expand must lie in the weight";
  if (args.out_stride < args.w.k) return "rows of the expanded weight must hold k";
  if (args.t == Half::kBf16 && compute_capability < 80) return "bf16 needs compute capability 8.0";
  const bool has_groups = StorageBits(args.w.storage) < 16;
  if (has_groups && args.w.group > 0 && args.w.group < args.w.k && args.w.group % 8 != 0)
    return "groups must be multiples of 8";
  return nullptr;
}

// REQUIRES: ExpandRefuses says null.
ASSAY_LAUNCHER(int Expand(const ExpandArgs& args, const LaunchContext& context))

}  // namespace assay
