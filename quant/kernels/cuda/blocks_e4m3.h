// Operands of FP8 products with a scale per row and 128 inputs (LtScales::kRows128): rows of x as
// mode fp8_block quantizes them, and weights that are E4M3 numbers already. Both without loss: an
// integer of at most 16 is an E4M3 number.
//
// Scales lie as the products want them, f32 [k / 128 rounded up][rows]: x ~ scale * code.
#pragma once
#include "quant/kernels/cuda/stored_weight.h"

namespace assay {

inline constexpr int kE4M3Block = 128;  // inputs that share a scale

ASSAY_BOTH constexpr int E4M3Blocks(int k) { return (k + kE4M3Block - 1) / kE4M3Block; }

// Bit for bit the codes of fp8_block (quant/activation.h), of x in 16 bit.
struct QuantizeBlocksArgs {
  const void* x = nullptr;   // T [rows, k], dense; 16 bytes aligned
  uint8_t* codes = nullptr;  // E4M3 [rows, k], dense
  float* scales = nullptr;   // [E4M3Blocks(k)][rows]; NaN where the block has NaN or infinity
  int rows = 0, k = 0;
  Half t = Half::kF16;
};
constexpr const char* QuantizeBlocksRefuses(const QuantizeBlocksArgs& args) {
  if (args.rows < 1 || args.k < 1) return "quantizing needs rows and k of at least 1";
  return args.k % 8 != 0 ? "quantizing in blocks needs k to be a multiple of 8" : nullptr;
}
// REQUIRES: QuantizeBlocksRefuses says null.
ASSAY_LAUNCHER(int QuantizeBlocks(const QuantizeBlocksArgs& args, const LaunchContext& context))

// scale * code is the weight's value, but for its rounding where it is multiplied.
struct BlocksOfWeightArgs {
  StoredWeight w;            // kInt4Group, or kE4M3, whose codes stay where they are
  uint8_t* codes = nullptr;  // E4M3 [n, k], dense; 8 bytes aligned. Not touched for kE4M3
  float* scales = nullptr;   // [E4M3Blocks(k)][n]
};
constexpr const char* BlocksOfWeightRefuses(const StoredWeight& w) {
  if (w.storage != Storage::kInt4Group && w.storage != Storage::kE4M3)
    return "weights whose codes are E4M3 numbers are int4_group (but float) and fp8_e4m3";
  if (w.n < 1 || w.k < 1 || w.k % 8 != 0) return "k must be a multiple of 8";
  if (w.group > 0 && w.group < w.k && w.group % kE4M3Block != 0)
    return "groups must be multiples of 128";
  return nullptr;
}
// REQUIRES: BlocksOfWeightRefuses says null.
ASSAY_LAUNCHER(int BlocksOfWeight(const BlocksOfWeightArgs& args, const LaunchContext& context))

}  // namespace assay
