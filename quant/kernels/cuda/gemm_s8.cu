#include "quant/kernels/cuda/gemm_s8.h"
#include "quant/kernels/cuda/gemm_tile.h"

namespace assay::ASSAY_SIMT {
namespace {

ASSAY_DEVICE void Store(const GemmS8Args& args, int row, int column, int sum) {
  if (row >= args.m || column >= args.n) return;
  float value = (args.x_scales[row] * args.w_scales[column]) * static_cast<float>(sum);
  if (args.bias != nullptr) value += args.bias[column];
  const size_t at = static_cast<size_t>(row) * args.y_stride + column;
  if (args.y_is_t) {
    // Both types are 16 bits wide: no kernel of its own for each.
    static_cast<uint16_t*>(args.y)[at] =
        args.t == Half::kF16 ? FromFloat<F16>(value).bits : FromFloat<Bf16>(value).bits;
    return;
  }
  float* const y = static_cast<float*>(args.y) + at;
  *y = args.accumulate ? *y + value : value;
}

template <class Tile>
ASSAY_KERNEL(Tile::kThreads)
GemmS8Kernel(const GemmS8Args args) {
  ASSAY_DYNAMIC_SHARED(memory);
  const TileOperands in = {.a = reinterpret_cast<const unsigned char*>(args.x),
                           .b = reinterpret_cast<const unsigned char*>(args.w),
                           .m = args.m,
                           .n = args.n,
                           .k_bytes = args.k,
                           .a_stride = static_cast<size_t>(args.x_stride),
                           .b_stride = static_cast<size_t>(args.w_stride),
                           .m0 = BlockX() * Tile::kSide,
                           .n0 = BlockY() * Tile::kSide};
  typename Tile::Sums sums = {};
  Tile::Multiply(in, memory, sums);
  Tile::ForEach(in, sums, [&](int row, int column, int sum) { Store(args, row, column, sum); });
}

template <int kSide>
int LaunchSide(const GemmS8Args& args, const LaunchContext& context) {
  using Tile = GemmTile<TileS8, kSide>;
  LaunchGrid grid = GemmGrid(args.m, args.n, kSide);
  grid.threads = Tile::kThreads;
  grid.shared_bytes = Tile::kBytes;
  return Launch(grid, context, GemmS8Kernel<Tile>, args);
}

}  // namespace

int GemmS8(const GemmS8Args& args, const LaunchContext& context) {
  const int side = args.side != 0 ? args.side : GemmSide(args.m, args.n);
  return side == 64 ? LaunchSide<64>(args, context) : LaunchSide<128>(args, context);
}

}  // namespace assay::ASSAY_SIMT
