#include "quant/kernels/cuda/quantize_tiles.h"
#include "quant/kernels/cuda/weight_codes.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 256;
constexpr int kRun = 8;  // numbers of a row that a thread takes
// What a block looks at lies in one tile.
constexpr int kStripRows = 64, kStripColumns = 128;
constexpr int kLanes = kStripColumns / kRun;

template <typename Of>
ASSAY_DEVICE Row<Of> RowAt(const void* from, int row, int k) {
  const Of* const at = static_cast<const Of*>(from) + static_cast<size_t>(row) * k;
  return {at, k, reinterpret_cast<uintptr_t>(at) % 16 == 0};
}

ASSAY_DEVICE size_t TileAt(const Tiles& tiles, int row, int column, int k) {
  return static_cast<size_t>(row / tiles.rows) * TilesAlong(k, tiles.columns) +
         column / tiles.columns;
}

template <typename Of>
ASSAY_KERNEL(kThreads)
LargestOfTilesKernel(const LargestOfTilesArgs args) {
  ASSAY_SHARED(uint32_t, partial, kThreads / kWarp);
  const int strips = DivideUp(args.k, kStripColumns);  // along a row
  const int first = BlockX() / strips * kStripRows, left = BlockX() % strips * kStripColumns;
  const int column = left + ThreadIndex() % kLanes * kRun;
  PdlWait();
  uint32_t largest = 0;
  for (int i = ThreadIndex() / kLanes; i < kStripRows; i += kThreads / kLanes) {
    if (first + i >= args.rows) break;
    float v[kRun];
    LoadEight(RowAt<Of>(args.from, first + i, args.k), column, v);
    ASSAY_UNROLL
    for (int j = 0; j < kRun; ++j) {
      const uint32_t bits = MagnitudeBits(v[j]);
      largest = bits > largest ? bits : largest;
    }
  }
  largest = BlockLargest(largest, partial);
  if (ThreadIndex() == 0)
    AtomicMax(args.largest + TileAt(args.tiles, first, left, args.k), static_cast<int>(largest));
}

// A thread per run of a row; the one that begins a tile writes its scale.
template <typename Of>
ASSAY_KERNEL(kThreads)
QuantizeTilesKernel(const QuantizeTilesArgs args) {
  const int runs = DivideUp(args.k, kRun);
  const int64_t index = static_cast<int64_t>(BlockX()) * kThreads + ThreadIndex();
  if (index >= static_cast<int64_t>(runs) * args.rows) return;
  const auto row = static_cast<int>(index / runs), column = static_cast<int>(index % runs) * kRun;
  const size_t tile = TileAt(args.tiles, row, column, args.k);
  PdlWait();
  const float scale = E4M3ScaleOf(FloatOf(static_cast<uint32_t>(args.largest[tile])));
  if (row % args.tiles.rows == 0 && column % args.tiles.columns == 0) args.scales[tile] = scale;
  float v[kRun];
  LoadEight(RowAt<Of>(args.from, row, args.k), column, v);
  uint32_t words[2] = {0, 0};
  ASSAY_UNROLL
  for (int i = 0; i < kRun; ++i) {
    const uint32_t code = scale == 0 ? 0 : E4M3Of(v[i] / scale);
    words[i / 4] |= code << (8 * (i % 4));
  }
  uint8_t* const codes = args.codes + static_cast<size_t>(row) * args.k + column;
  if (reinterpret_cast<uintptr_t>(codes) % 8 == 0 && column + kRun <= args.k) {
    Store8(codes, {words[0], words[1]});
    return;
  }
  ASSAY_UNROLL
  for (int i = 0; i < kRun; ++i)
    if (column + i < args.k) codes[i] = static_cast<uint8_t>(words[i / 4] >> (8 * (i % 4)));
}

}  // namespace

int LargestOfTiles(const LargestOfTilesArgs& args, const LaunchContext& context) {
  const LaunchGrid grid = {.x = DivideUp(args.k, kStripColumns) * DivideUp(args.rows, kStripRows),
                           .threads = kThreads};
  switch (args.number) {
    case Number::kF32:
      return Launch(grid, context, LargestOfTilesKernel<float>, args);
    case Number::kF16:
      return Launch(grid, context, LargestOfTilesKernel<F16>, args);
    case Number::kBf16:
      return Launch(grid, context, LargestOfTilesKernel<Bf16>, args);
  }
  return kInvalidLaunch;
}

int QuantizeTiles(const QuantizeTilesArgs& args, const LaunchContext& context) {
  const int64_t runs = static_cast<int64_t>(DivideUp(args.k, kRun)) * args.rows;
  const LaunchGrid grid = {.x = static_cast<int>((runs + kThreads - 1) / kThreads),
                           .threads = kThreads};
  switch (args.number) {
    case Number::kF32:
      return Launch(grid, context, QuantizeTilesKernel<float>, args);
    case Number::kF16:
      return Launch(grid, context, QuantizeTilesKernel<F16>, args);
    case Number::kBf16:
      return Launch(grid, context, QuantizeTilesKernel<Bf16>, args);
  }
  return kInvalidLaunch;
}

}  // namespace assay::ASSAY_SIMT
