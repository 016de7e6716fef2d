#include "quant/kernels/cuda/blocks_e4m3.h"
#include "quant/kernels/cuda/row_codes.h"
#include "quant/kernels/cuda/skinny_format.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 256;
constexpr int kRun = 8;                     // elements of a row that a thread takes
constexpr int kLanes = kE4M3Block / kRun;   // that share a block of a row
constexpr int kPieces = kThreads / kLanes;  // blocks of rows that a block of threads takes

// Blocks of a row one after the other, rows one after the other.
template <typename T>
ASSAY_KERNEL(kThreads)
QuantizeBlocksKernel(const QuantizeBlocksArgs args) {
  const int blocks = E4M3Blocks(args.k);
  const int64_t piece = static_cast<int64_t>(BlockX()) * kPieces + ThreadIndex() / kLanes;
  const bool inside = piece < static_cast<int64_t>(blocks) * args.rows;
  const auto row = static_cast<int>(piece / blocks), block = static_cast<int>(piece % blocks);
  const int k = block * kE4M3Block + ThreadIndex() % kLanes * kRun;
  const bool loads = inside && k < args.k;
  const size_t at = static_cast<size_t>(row) * args.k + k;
  PdlWait();
  float v[kRun];
  ASSAY_UNROLL
  for (int i = 0; i < kRun; ++i) v[i] = 0;
  if (loads) {
    const Quad q = Load16(static_cast<const T*>(args.x) + at);
    const uint32_t words[4] = {q.x, q.y, q.z, q.w};
    ASSAY_UNROLL
    for (int i = 0; i < kRun; ++i) {
      const Two two = Unpack2<T>(words[i / 2]);
      v[i] = i % 2 == 0 ? two.low : two.high;
    }
  }
  PdlTrigger();
  uint32_t largest = 0;
  ASSAY_UNROLL
  for (int i = 0; i < kRun; ++i) {
    const uint32_t bits = MagnitudeBits(v[i]);
    largest = bits > largest ? bits : largest;
  }
  ASSAY_UNROLL
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    const uint32_t other = ShuffleXor(largest, mask);
    largest = other > largest ? other : largest;
  }
  if (!loads) return;
  const RowScale scale = ScaleOfRow(largest, RowCode::kE4M3);
  if (ThreadIndex() % kLanes == 0)
    args.scales[static_cast<size_t>(block) * args.rows + row] = scale.scale;
  uint32_t words[2] = {0, 0};
  ASSAY_UNROLL
  for (int i = 0; i < kRun; ++i)
    words[i / 4] |= static_cast<uint32_t>(CodeOf(v[i], scale, RowCode::kE4M3)) << (8 * (i % 4));
  Store8(args.codes + at, {words[0], words[1]});
}

// A thread per run of a row; the one that begins a block writes its scale.
template <Storage kStorage>
ASSAY_KERNEL(kThreads)
BlocksOfWeightKernel(const BlocksOfWeightArgs args) {
  constexpr bool kInt4 = kStorage == Storage::kInt4Group;
  constexpr int kStep = kInt4 ? kRun : kE4M3Block;  // of E4M3 only scales are made
  const StoredWeight& w = args.w;
  const int steps = DivideUp(w.k, kStep);
  const int64_t index = static_cast<int64_t>(BlockX()) * kThreads + ThreadIndex();
  if (index >= static_cast<int64_t>(steps) * w.n) return;
  const auto row = static_cast<int>(index / steps), k = static_cast<int>(index % steps) * kStep;
  const int groups = GroupsOf(w);
  const GroupAt at = {kInt4 ? row : row / w.scale_rows, groups == 1 ? 0 : k / w.group, groups};
  PdlWait();  // the product before may read what is written here
  if (k % kE4M3Block == 0)
    args.scales[static_cast<size_t>(k / kE4M3Block) * w.n + row] =
        kInt4 ? ScaleBf16(w, at) : ScaleF32(w, at);
  if constexpr (kInt4) {
    const size_t from = static_cast<size_t>(row) * w.k + k;
    const uint32_t packed =
        *reinterpret_cast<const uint32_t*>(static_cast<const unsigned char*>(w.codes) + from / 2);
    const int zero = Int4Format::Zero(w, at);
    uint32_t words[2] = {0, 0};
    ASSAY_UNROLL
    for (int i = 0; i < kRun; ++i) {
      const int code = static_cast<int>((packed >> (4 * i)) & 15u) - zero;
      words[i / 4] |= static_cast<uint32_t>(E4M3Of(static_cast<float>(code))) << (8 * (i % 4));
    }
    Store8(args.codes + from, {words[0], words[1]});
  }
}

}  // namespace

int QuantizeBlocks(const QuantizeBlocksArgs& args, const LaunchContext& context) {
  const int64_t pieces = static_cast<int64_t>(E4M3Blocks(args.k)) * args.rows;
  const LaunchGrid grid = {.x = static_cast<int>((pieces + kPieces - 1) / kPieces),
                           .threads = kThreads};
  return args.t == Half::kF16 ? Launch(grid, context, QuantizeBlocksKernel<F16>, args)
                              : Launch(grid, context, QuantizeBlocksKernel<Bf16>, args);
}

int BlocksOfWeight(const BlocksOfWeightArgs& args, const LaunchContext& context) {
  const bool int4 = args.w.storage == Storage::kInt4Group;
  const int64_t runs =
      static_cast<int64_t>(DivideUp(args.w.k, int4 ? kRun : kE4M3Block)) * args.w.n;
  const LaunchGrid grid = {.x = static_cast<int>((runs + kThreads - 1) / kThreads),
                           .threads = kThreads};
  return int4 ? Launch(grid, context, BlocksOfWeightKernel<Storage::kInt4Group>, args)
              : Launch(grid, context, BlocksOfWeightKernel<Storage::kE4M3>, args);
}

}  // namespace assay::ASSAY_SIMT
