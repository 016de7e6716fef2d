// The kernel of prefill attention and its instances: included by one file per T.
#pragma once
#include "engine/ops/cuda/attention_tile.h"
#include "engine/ops/cuda/prefill_attention.h"

namespace assay::ASSAY_SIMT {

template <typename T, KvCodes kFormat, int kWidth>
ASSAY_KERNEL_FOR_BLOCKS((TileShape<kWidth>::kThreads), 1)
PrefillKernel(PrefillAttentionArgs args) {
  ASSAY_DYNAMIC_SHARED(memory);
  PdlWait();
  const QueryTile tile = args.tiles[BlockX()];
  if (tile.num_rows == 0) return;
  const int head = BlockY(), head_dim = args.kv.head_dim;
  const int64_t stride = static_cast<int64_t>(args.heads) * head_dim;
  const int64_t first = tile.first_row * stride + static_cast<int64_t>(head) * head_dim;
  TileRows rows;
  rows.q = static_cast<const uint16_t*>(args.q) + first;
  rows.y = static_cast<uint16_t*>(args.y) + first;
  rows.q_stride = rows.y_stride = stride;
  rows.vector = head_dim % 8 == 0;
  rows.rows = tile.num_rows;
  rows.head_dim = head_dim;
  rows.start = tile.start_position;
  rows.last = tile.start_position + tile.num_rows;
  if (args.sliding_window > 0 && tile.start_position + 1 > args.sliding_window)
    rows.first = tile.start_position + 1 - args.sliding_window;
  rows.window = args.sliding_window;
  rows.scale = args.scale;
  const PagedSource<kFormat> source = {
      args.kv, args.block_tables + static_cast<int64_t>(tile.sequence) * args.max_blocks,
      head / (args.heads / args.kv.kv_heads)};
  RunTile<T, kWidth>(rows, source, memory);
}

template <typename T, KvCodes kFormat, int kWidth>
int LaunchPrefillOf(const PrefillAttentionArgs& args, const LaunchContext& context) {
  using Shape = TileShape<kWidth>;
  return Launch({.x = args.num_tiles,
                 .y = args.heads,
                 .threads = Shape::kThreads,
                 .shared_bytes = Shape::kSharedBytes},
                context, PrefillKernel<T, kFormat, kWidth>, args);
}

template <typename T, KvCodes kFormat>
int LaunchPrefillWidth(const PrefillAttentionArgs& args, const LaunchContext& context) {
  const int width = KvWidth(args.kv.head_dim);
  if (width == 16) return LaunchPrefillOf<T, kFormat, 16>(args, context);
  if (width <= 64) return LaunchPrefillOf<T, kFormat, 64>(args, context);
  if (width <= 96) return LaunchPrefillOf<T, kFormat, 96>(args, context);
  if (width <= 128) return LaunchPrefillOf<T, kFormat, 128>(args, context);
  return LaunchPrefillOf<T, kFormat, 256>(args, context);
}

template <typename T>
int LaunchPrefill(const PrefillAttentionArgs& args, const LaunchContext& context) {
  switch (args.kv.format) {
    case KvCodes::kHalf:
      return LaunchPrefillWidth<T, KvCodes::kHalf>(args, context);
    case KvCodes::kS8:
      return LaunchPrefillWidth<T, KvCodes::kS8>(args, context);
    case KvCodes::kE4m3:
      return LaunchPrefillWidth<T, KvCodes::kE4m3>(args, context);
  }
  return 0;
}

}  // namespace assay::ASSAY_SIMT
