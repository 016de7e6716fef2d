#include "engine/ops/cuda/attention_tile.h"
#include "engine/ops/cuda/encoder_attention.h"

namespace assay::ASSAY_SIMT {
namespace {

// What can be read 16 bytes at once.
struct Vectors {
  bool q, k_and_v;
};

template <typename T, int kWidth>
ASSAY_KERNEL_FOR_BLOCKS((TileShape<kWidth>::kThreads), 1)
EncoderKernel(EncoderAttentionArgs args, Vectors vectors) {
  ASSAY_DYNAMIC_SHARED(memory);
  PdlWait();
  const QueryTile tile = args.tiles[BlockX()];
  if (tile.num_rows == 0) return;
  const int head = BlockY(), kv_head = head / (args.heads / args.kv_heads);
  const int head_dim = args.head_dim;
  const int64_t sequence_row = tile.first_row - tile.start_position;
  const auto at = [&](const HeadRows& rows, int64_t row, int of_head) {
    return static_cast<const uint16_t*>(rows.data) + row * rows.row_stride +
           static_cast<int64_t>(of_head) * head_dim;
  };
  TileRows rows;
  rows.q = at(args.q, tile.first_row, head);
  rows.q_stride = args.q.row_stride;
  rows.y_stride = static_cast<int64_t>(args.heads) * head_dim;
  rows.y = static_cast<uint16_t*>(args.y) + tile.first_row * rows.y_stride +
           static_cast<int64_t>(head) * head_dim;
  rows.vector = vectors.q;
  rows.rows = tile.num_rows;
  rows.head_dim = head_dim;
  rows.start = tile.start_position;
  rows.last = args.lengths[tile.sequence];
  rows.causal = false;
  rows.scale = args.scale;
  const StridedSource source = {at(args.k, sequence_row, kv_head),
                                at(args.v, sequence_row, kv_head),
                                {args.k.row_stride, args.v.row_stride},
                                head_dim,
                                vectors.k_and_v};
  RunTile<T, kWidth>(rows, source, memory);
}

template <typename T, int kWidth>
int LaunchEncoderOf(const EncoderAttentionArgs& args, const LaunchContext& context) {
  using Shape = TileShape<kWidth>;
  const auto vector = [&](const HeadRows& rows) {
    return IsVectorizable(rows.data, rows.row_stride, args.head_dim);
  };
  const Vectors vectors = {vector(args.q), vector(args.k) && vector(args.v)};
  return Launch({.x = args.num_tiles,
                 .y = args.heads,
                 .threads = Shape::kThreads,
                 .shared_bytes = Shape::kSharedBytes},
                context, EncoderKernel<T, kWidth>, args, vectors);
}

template <typename T>
int LaunchEncoder(const EncoderAttentionArgs& args, const LaunchContext& context) {
  if (args.head_dim <= 16) return LaunchEncoderOf<T, 16>(args, context);
  if (args.head_dim <= 32) return LaunchEncoderOf<T, 32>(args, context);
  if (args.head_dim <= 64) return LaunchEncoderOf<T, 64>(args, context);
  if (args.head_dim <= 96) return LaunchEncoderOf<T, 96>(args, context);
  if (args.head_dim <= 128) return LaunchEncoderOf<T, 128>(args, context);
  return LaunchEncoderOf<T, 256>(args, context);
}

bool IsEven(const HeadRows& rows) {
  return reinterpret_cast<uintptr_t>(rows.data) % 4 == 0 && rows.row_stride % 2 == 0;
}

}  // namespace

const char* EncoderAttentionRefuses(const EncoderAttentionArgs& args) {
  if (args.head_dim < 2 || args.head_dim > 256 || args.head_dim % 2 != 0)
    return "head_dim must be even, 2 to 256";
  if (args.kv_heads < 1 || args.heads < 1 || args.heads % args.kv_heads != 0)
    return "heads must be a multiple of kv_heads";
  if (!IsEven(args.q) || !IsEven(args.k) || !IsEven(args.v))
    return "rows of q, k and v must begin at multiples of 4 bytes";
  return nullptr;
}

int EncoderAttention(const EncoderAttentionArgs& args, const LaunchContext& context) {
  if (args.num_tiles == 0) return 0;
  return args.type == Half::kF16 ? LaunchEncoder<F16>(args, context)
                                 : LaunchEncoder<Bf16>(args, context);
}

}  // namespace assay::ASSAY_SIMT
