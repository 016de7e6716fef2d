#include "quant/kernels/cuda/gemm16.h"
#include "quant/kernels/cuda/gemm_tile.h"

namespace assay::ASSAY_SIMT {
namespace {

template <typename T>
ASSAY_DEVICE void Store(const Gemm16Args& args, int row, int column, float value) {
  if (row >= args.m || column >= args.n) return;
  if (args.bias != nullptr) value += args.bias[column];
  const size_t at = static_cast<size_t>(row) * args.y_stride + column;
  if (args.y_is_t) {
    static_cast<T*>(args.y)[at] = FromFloat<T>(value);
    return;
  }
  float* const y = static_cast<float*>(args.y) + at;
  *y = args.accumulate ? *y + value : value;
}

template <class Tile, typename T>
ASSAY_KERNEL(Tile::kThreads)
Gemm16Kernel(const Gemm16Args args) {
  ASSAY_DYNAMIC_SHARED(memory);
  const TileOperands in = {.a = static_cast<const unsigned char*>(args.x),
                           .b = static_cast<const unsigned char*>(args.w),
                           .m = args.m,
                           .n = args.n,
                           .k_bytes = 2 * args.k,
                           .a_stride = 2 * static_cast<size_t>(args.x_stride),
                           .b_stride = 2 * static_cast<size_t>(args.w_stride),
                           .m0 = BlockX() * Tile::kSide,
                           .n0 = BlockY() * Tile::kSide};
  typename Tile::Sums sums = {};
  Tile::Multiply(in, memory, sums);
  Tile::ForEach(in, sums,
                [&](int row, int column, float sum) { Store<T>(args, row, column, sum); });
}

template <class Op, typename T, int kSide>
int LaunchSide(const Gemm16Args& args, const LaunchContext& context) {
  using Tile = GemmTile<Op, kSide>;
  LaunchGrid grid = GemmGrid(args.m, args.n, kSide);
  grid.threads = Tile::kThreads;
  grid.shared_bytes = Tile::kBytes;
  return Launch(grid, context, Gemm16Kernel<Tile, T>, args);
}

template <class Op, typename T>
int LaunchType(const Gemm16Args& args, const LaunchContext& context) {
  const int side = args.side != 0 ? args.side : GemmSide(args.m, args.n);
  return side == 64 ? LaunchSide<Op, T, 64>(args, context) : LaunchSide<Op, T, 128>(args, context);
}

}  // namespace

int Gemm16(const Gemm16Args& args, const LaunchContext& context) {
  return args.t == Half::kF16 ? LaunchType<TileF16, F16>(args, context)
                              : LaunchType<TileBf16, Bf16>(args, context);
}

}  // namespace assay::ASSAY_SIMT
