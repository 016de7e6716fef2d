// Weights whose rows are cut into groups with a scale each, rounded to nearest: bit for bit what
// Encode of int4_group, int8_group and nf4 makes (quant/schemes/*).
#pragma once
#include "quant/kernels/cuda/quantize.h"

namespace assay {

// int4_group: all three; int8_group: sym and asym.
enum class GroupGrid { kSym, kFull, kAsym };

struct QuantizeGroupsArgs {
  const void* from = nullptr;  // Number [n, k]: all finite
  uint8_t* codes = nullptr;    // [n, k * bits / 8 rounded up]
  uint16_t* scales = nullptr;  // bf16 [n, groups]
  uint8_t* zeros = nullptr;    // [n, groups * bits / 8 rounded up]; asym only
  int n = 0, k = 0;
  int group = 128;  // >= k: the whole row
  int bits = 4;     // or 8
  Number number = Number::kF32;
  GroupGrid grid = GroupGrid::kSym;
};

constexpr const char* QuantizeGroupsRefuses(const QuantizeGroupsArgs& args) {
  if (args.n < 1 || args.k < 1) return "quantizing needs n and k of at least 1";
  if (args.bits != 4 && args.bits != 8) return "codes of groups have 4 or 8 bits";
  if (args.bits == 8 && args.grid == GroupGrid::kFull) return "8 bits have the grids sym and asym";
  if (args.group < 1 || (args.group < args.k && args.group % 8 != 0))
    return "groups must be multiples of 8";
  if (args.grid == GroupGrid::kAsym && args.zeros == nullptr)
    return "the grid asym has zero points";
  return nullptr;
}

// REQUIRES: QuantizeGroupsRefuses says null.
ASSAY_LAUNCHER(int QuantizeGroups(const QuantizeGroupsArgs& args, const LaunchContext& context))

struct QuantizeNf4Args {
  const void* from = nullptr;  // Number [n, k]: all finite
  uint8_t* codes = nullptr;    // [n, k / 2 rounded up]
  float* scales = nullptr;     // [n, k / block rounded up]
  int n = 0, k = 0;
  int block = 64;
  Number number = Number::kF32;
};

constexpr const char* QuantizeNf4Refuses(const QuantizeNf4Args& args) {
  if (args.n < 1 || args.k < 1) return "quantizing needs n and k of at least 1";
  return args.block < 8 || args.block % 8 != 0 ? "blocks must be multiples of 8" : nullptr;
}

// REQUIRES: QuantizeNf4Refuses says null.
ASSAY_LAUNCHER(int QuantizeNf4(const QuantizeNf4Args& args, const LaunchContext& context))

}  // namespace assay
