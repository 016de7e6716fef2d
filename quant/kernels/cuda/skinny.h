// y = x W^T for few rows of x: weights stay in 4 or 8 bits and in their canonical layout, are read
// once per 64 rows and widened in registers on their way to the tensor cores.
//
// Result: every product of x and a code is exact (nf4: with the value rounded to T), sums are in
// f32; a group's scale multiplies, in f32, the sums of 32 inputs each. Order of sums: fixed by
// (n, k) alone, so that a row does not depend on the rows beside it. x and the codes begin at
// multiples of 16 bytes. How: skinny_kernel.h.
#pragma once
#include "quant/kernels/cuda/stored_weight.h"

namespace assay {

struct SkinnyArgs {
  const void* x = nullptr;      // T [m, k], rows x_stride apart
  StoredWeight w;               // [n, k]
  const float* bias = nullptr;  // [n] or null
  void* y = nullptr;            // [m, n] f32, or T if y_is_t; rows y_stride apart
  float* workspace = nullptr;   // [SkinnyWorkspaceFloats(m, n, k)], or null where that is 0
  int* counters = nullptr;      // [SkinnyCounters(m, n)], zero; zero again afterwards
  int m = 0;
  int x_stride = 0, y_stride = 0;  // in elements; x_stride a multiple of 8
  Half t = Half::kF16;
  bool y_is_t = false;
  bool accumulate = false;  // y += instead of y =; y in f32
};

inline constexpr int kSkinnyColumns = 64;  // of y, per block
inline constexpr int kSkinnySpan = 256;    // inputs that are not split further

// Rows of x that a block takes.
constexpr int SkinnyRows(int m) { return m >= 64 ? 64 : (m + 15) / 16 * 16; }

// Spans of k in each of the parts that blocks share k by.
ASSAY_BOTH constexpr int SkinnySpansPerSplit(int n, int k) {
  constexpr int kBlocks = 264;  // two for each SM of an H100
  const int tiles = (n + kSkinnyColumns - 1) / kSkinnyColumns;
  const int spans = (k + kSkinnySpan - 1) / kSkinnySpan;
  const int wanted = kBlocks / tiles, most = spans / 2 < 16 ? spans / 2 : 16;
  const int splits = wanted < most ? wanted : most;
  return splits <= 1 ? spans : (spans + splits - 1) / splits;
}
constexpr int SkinnySplits(int n, int k) {
  const int spans = (k + kSkinnySpan - 1) / kSkinnySpan, each = SkinnySpansPerSplit(n, k);
  return (spans + each - 1) / each;
}
constexpr size_t SkinnyWorkspaceFloats(int m, int n, int k) {
  const int splits = SkinnySplits(n, k), rows = SkinnyRows(m);
  const size_t columns = static_cast<size_t>((n + kSkinnyColumns - 1) / kSkinnyColumns);
  return splits == 1
             ? 0
             : columns * kSkinnyColumns * static_cast<size_t>((m + rows - 1) / rows * rows) *
                   static_cast<size_t>(splits);
}
constexpr int SkinnyCounters(int m, int n) {
  return (n + kSkinnyColumns - 1) / kSkinnyColumns * ((m + SkinnyRows(m) - 1) / SkinnyRows(m));
}

// Why this product cannot be run, or null.
constexpr const char* SkinnyRefuses(const SkinnyArgs& args, int compute_capability) {
  const StoredWeight& w = args.w;
  if (args.m < 1 || w.n < 1 || w.k < 1) return "the skinny product needs m, n and k of at least 1";
  if (args.t == Half::kBf16 && compute_capability < 80) return "bf16 needs compute capability 8.0";
  if (args.x_stride % 8 != 0 || args.x_stride < w.k)
    return "rows of x must be 16 bytes aligned and hold k";
  if (args.y_stride < w.n) return "rows of y must hold n";
  if (args.accumulate && args.y_is_t) return "only y in f32 can be added to";
  const bool one_group = w.group <= 0 || w.group >= w.k;
  switch (w.storage) {
    case Storage::kF32:
    case Storage::kBf16:
    case Storage::kF16:
      return "weights of 16 and 32 bit have other kernels";
    case Storage::kInt4Float:
      return "the grid float of int4_group is multiplied expanded";
    case Storage::kInt8Channel:
      if (!one_group) return "int8_channel has one scale per row";
      break;
    case Storage::kE4M3:
      if (!one_group && (w.group != 128 || w.scale_rows != 128))
        return "fp8_e4m3 has scales per row, per tensor or per block of 128 x 128";
      break;
    case Storage::kInt4Group:
    case Storage::kInt8Group:
    case Storage::kNf4:
      if (!one_group && (w.group < 32 || (w.group & (w.group - 1)) != 0))
        return "groups must be powers of two from 32 on";
      break;
  }
  if (w.k * StorageBits(w.storage) % 128 != 0)
    return "rows of codes must be multiples of 16 bytes: k of 32 in 4 bits, of 16 in 8 bits";
  return nullptr;
}

// REQUIRES: SkinnyRefuses says null.
ASSAY_LAUNCHER(int Skinny(const SkinnyArgs& args, const LaunchContext& context))

}  // namespace assay
