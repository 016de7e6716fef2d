#include "engine/ops/cpu/cpu_ops.h"

#include <algorithm>

#include "base/cpu_info.h"
#include "base/thread_pool.h"

namespace assay {
namespace {

// Rows per chunk of a parallel loop, so that a chunk moves at least ~16 K floats: below that the
// hand-off to another core (about 1 us) costs more than it saves.
int64_t RowGrain(int64_t floats_per_row) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, floats_per_row));
}

// Calls fn(sequence, row, position) for rows [begin, end) of the batch.
template <typename F>
void ForRows(const ForwardBatch& batch, int64_t begin, int64_t end, F fn) {
  for (const SequenceSpan& s : batch.sequences) {
    const int64_t from = std::max<int64_t>(begin, s.first_row);
    const int64_t to = std::min<int64_t>(end, int64_t{s.first_row} + s.num_rows);
    for (int64_t row = from; row < to; ++row) fn(s, row, s.start_position + (row - s.first_row));
  }
}

// How attention is cut into tiles: per sequence row_tiles x kv_heads x head_splits of them.
struct Tiling {
  int group = 0;        // query heads per kv head
  int heads = 0;        // of them in one tile
  int head_splits = 0;  // tiles that cover a group
  int rows = 0;         // in one tile

  explicit Tiling(const AttentionArgs& a) : group(a.heads / a.kv_heads) {
    const int width = (a.head_dim + 7) / 8 * 8;
    const int most = std::min(kMaxTileVectors, kMaxTileFloats / width);
    head_splits = (group + most - 1) / most;
    heads = (group + head_splits - 1) / head_splits;
    // 36 vectors: enough to pay for converting a chunk of keys, few enough to stay in L1.
    rows = std::max(1, std::min(36, most) / heads);
  }
  int64_t row_tiles(const SequenceSpan& s) const { return (s.num_rows + rows - 1) / rows; }
};

// Runs fn(sequence, first row within it, num rows, kv head, first head in group, num heads) for
// every tile. Within a sequence the last rows come first: they have the most keys, and a loop whose
// big pieces come first ends evenly.
template <typename F>
void ForTiles(const AttentionArgs& args, const ForwardBatch& batch, int64_t grain,
              ComputeContext& c, F fn) {
  const Tiling tiling(args);
  const int64_t per_row_tile = int64_t{args.kv_heads} * tiling.head_splits;
  int64_t total = 0;
  for (const SequenceSpan& s : batch.sequences) total += tiling.row_tiles(s) * per_row_tile;
  c.pool.ParallelFor(total, grain, [&](int64_t begin, int64_t end) {
    int64_t base = 0;
    for (const SequenceSpan& s : batch.sequences) {
      const int64_t count = tiling.row_tiles(s) * per_row_tile;
      const int64_t from = std::max(begin, base) - base, to = std::min(end, base + count) - base;
      base += count;
      for (int64_t i = from; i < to; ++i) {
        const int row = static_cast<int>(tiling.row_tiles(s) - 1 - i / per_row_tile) * tiling.rows;
        const int head = static_cast<int>(i % per_row_tile) / tiling.head_splits;
        const int first = static_cast<int>(i % tiling.head_splits) * tiling.heads;
        fn(s, row, std::min(tiling.rows, s.num_rows - row), head, first,
           std::min(tiling.heads, tiling.group - first));
      }
    }
  });
}

AttentionTile QueryTile(const AttentionArgs& args, int64_t row, int head) {
  const int64_t y_stride = int64_t{args.heads} * args.head_dim;
  AttentionTile tile;
  tile.q = args.q.data + row * args.q.row_stride + int64_t{head} * args.head_dim;
  tile.q_stride = args.q.row_stride;
  tile.y = args.y.as<float>() + row * y_stride + int64_t{head} * args.head_dim;
  tile.y_stride = y_stride;
  tile.head_dim = args.head_dim;
  tile.scale = args.scale;
  return tile;
}

// A key as the pool holds it, [head_dim]: `from`, or what its channels make of it in `smoothed`.
const float* SmoothKey(const KvPool::Layout& layout, int layer, int head, const float* from,
                       float* smoothed) {
  const KvKeys* keys = layout.keys.get();
  if (keys == nullptr) return from;
  const int64_t at = (int64_t{layer} * layout.kv_heads + head) * layout.head_dim;
  for (int64_t i = 0; i < layout.head_dim; ++i)
    smoothed[i] = (from[i] - keys->mean[at + i]) * keys->inverse_scale[at + i];
  return smoothed;
}

// What queries of this sequence may read in 16 bit.
RecentRows Recent(const AttentionArgs& args, const SequenceSpan& s, int layer, int head,
                  const KvPool& kv) {
  const int64_t column = int64_t{head} * args.head_dim;
  RecentRows recent = {.window = kv.layout().window,
                       .sinks = kv.layout().sinks,
                       .first_position = s.start_position,
                       .keys = args.k.data + s.first_row * args.k.row_stride + column,
                       .values = args.v.data + s.first_row * args.v.row_stride + column,
                       .stride = args.k.row_stride,
                       .slot_keys = kv.slot_keys(layer, s.slot, head),
                       .slot_values = kv.slot_values(layer, s.slot, head)};
  if (const KvKeys* keys = kv.layout().keys.get(); keys != nullptr) {
    const int64_t channel = (int64_t{layer} * args.kv_heads + head) * args.head_dim;
    recent.key_mean = keys->mean.data() + channel;
    recent.key_inverse_scale = keys->inverse_scale.data() + channel;
  }
  return recent;
}

}  // namespace

void CpuOps::RmsNorm(TensorView x, TensorView gain, float eps, MutableView y,
                     ComputeContext& c) const {
  const int64_t d = x.shape[1];
  c.pool.ParallelFor(x.shape[0], RowGrain(d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      k_.rms_norm(x.as<float>() + r * d, gain.as<float>(), eps, d, y.as<float>() + r * d);
    }
  });
}

void CpuOps::LayerNorm(TensorView x, TensorView gain, TensorView bias, float eps, MutableView y,
                       ComputeContext& c) const {
  const int64_t d = x.shape[1];
  c.pool.ParallelFor(x.shape[0], RowGrain(d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      k_.layer_norm(x.as<float>() + r * d, gain.as<float>(), bias.as<float>(), eps, d,
                    y.as<float>() + r * d);
    }
  });
}

void CpuOps::HeadRmsNorm(float* x, int64_t row_stride, int64_t rows, int heads, TensorView gain,
                         float eps, ComputeContext& c) const {
  const int64_t d = gain.shape[0];
  c.pool.ParallelFor(rows, RowGrain(heads * d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int h = 0; h < heads; ++h) {
        float* head = x + r * row_stride + h * d;
        k_.rms_norm(head, gain.as<float>(), eps, d, head);
      }
    }
  });
}

void CpuOps::Rope(float* x, int64_t row_stride, int heads, TensorView cos, TensorView sin,
                  ComputeContext& c) const {
  const int64_t rows = cos.shape[0], half = cos.shape[1];
  c.pool.ParallelFor(rows, RowGrain(2 * half * heads), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int h = 0; h < heads; ++h) {
        k_.rope(x + row * row_stride + h * 2 * half, cos.as<float>() + row * half,
                sin.as<float>() + row * half, half);
      }
    }
  });
}

void CpuOps::StoreKv(StridedRows k, StridedRows v, const ForwardBatch& batch, int layer, KvPool& kv,
                     ComputeContext& c) const {
  const KvPool::Layout& layout = kv.layout();
  const int64_t d = layout.head_dim;
  const auto store = [&](const float* from, std::byte* tile, int64_t slot) {
    k_.store_kv(layout.dtype, from, d, tile + slot * layout.row_bytes());
  };
  const auto rows = static_cast<int64_t>(batch.tokens.size());
  c.pool.ParallelFor(rows, RowGrain(2 * d * layout.kv_heads), [&](int64_t begin, int64_t end) {
    ForRows(batch, begin, end, [&](const SequenceSpan& s, int64_t row, int64_t position) {
      const int block = s.blocks[position / KvPool::kBlockTokens];
      const int64_t slot = position % KvPool::kBlockTokens;
      for (int h = 0; h < layout.kv_heads; ++h) {
        float smoothed[kMaxHeadDim];
        const float* key =
            SmoothKey(layout, layer, h, k.data + row * k.row_stride + h * d, smoothed);
        store(key, kv.keys(layer, block, h), slot);
        store(v.data + row * v.row_stride + h * d, kv.values(layer, block, h), slot);
      }
    });
  });
}

void CpuOps::PagedAttention(const AttentionArgs& args, const ForwardBatch& batch, int layer,
                            const KvPool& kv, ComputeContext& c) const {
  const KvKeys* kv_keys = kv.layout().keys.get();
  int64_t keys = 1;  // of the longest sequence: a tile costs about keys x vectors
  for (const SequenceSpan& s : batch.sequences) {
    keys = std::max<int64_t>(keys, s.start_position + s.num_rows);
  }
  const int64_t grain = std::max<int64_t>(1, 256 / keys);
  ForTiles(args, batch, grain, c,
           [&](const SequenceSpan& s, int row, int rows, int head, int first, int heads) {
             const int group = args.heads / args.kv_heads;
             AttentionTile tile = QueryTile(args, s.first_row + row, head * group + first);
             tile.rows = rows;
             tile.heads = heads;
             tile.source = {.keys = kv.keys(layer, 0, head),
                            .values = kv.values(layer, 0, head),
                            .dtype = kv.layout().dtype,
                            .key_stride = kv.layout().row_bytes(),
                            .value_stride = kv.layout().row_bytes(),
                            .blocks = s.blocks.data(),
                            .block_stride = static_cast<int64_t>(kv.layout().block_bytes())};
             const int64_t channel = (int64_t{layer} * args.kv_heads + head) * args.head_dim;
             if (kv_keys != nullptr) {
               tile.source.key_scale = kv_keys->scale.data() + channel;
               tile.source.int8_scores =
                   kv.layout().dtype == DType::kI8 && kv_keys->int8_scores[layer] != 0;
             }
             if (kv.layout().has_slots()) tile.source.recent = Recent(args, s, layer, head, kv);
             tile.first_position = s.start_position + row;
             tile.window = args.sliding_window;
             k_.attention(tile);
           });
}

void CpuOps::StoreRecent(StridedRows k, StridedRows v, const ForwardBatch& batch, int layer,
                         KvPool& kv, ComputeContext& c) const {
  const KvPool::Layout& layout = kv.layout();
  if (!layout.has_slots()) return;
  const int64_t d = layout.head_dim;
  const auto store = [&](const float* from, uint16_t* slot, int64_t row) {
    k_.store_kv(DType::kF16, from, d, reinterpret_cast<std::byte*>(slot + row * d));
  };
  const auto rows = static_cast<int64_t>(batch.tokens.size());
  c.pool.ParallelFor(rows, RowGrain(2 * d * layout.kv_heads), [&](int64_t begin, int64_t end) {
    ForRows(batch, begin, end, [&](const SequenceSpan& s, int64_t row, int64_t position) {
      // Of two rows with one place in the ring only the later is stored: the pool's threads share
      // the rows in no order.
      const bool sink = position < layout.sinks;
      if (!sink && position < int64_t{s.start_position} + s.num_rows - layout.window) return;
      const int64_t place = sink ? position : layout.sinks + position % layout.window;
      for (int h = 0; h < layout.kv_heads; ++h) {
        float smoothed[kMaxHeadDim];
        const float* key =
            SmoothKey(layout, layer, h, k.data + row * k.row_stride + h * d, smoothed);
        store(key, kv.slot_keys(layer, s.slot, h), place);
        store(v.data + row * v.row_stride + h * d, kv.slot_values(layer, s.slot, h), place);
      }
    });
  });
}

void CpuOps::SelfAttention(const AttentionArgs& args, StridedRows k, StridedRows v,
                           const ForwardBatch& batch, ComputeContext& c) const {
  ForTiles(args, batch, 1, c,
           [&](const SequenceSpan& s, int row, int rows, int head, int first, int heads) {
             const int group = args.heads / args.kv_heads;
             const int64_t column = int64_t{head} * args.head_dim;
             AttentionTile tile = QueryTile(args, s.first_row + row, head * group + first);
             tile.rows = rows;
             tile.heads = heads;
             const float* keys = k.data + s.first_row * k.row_stride + column;
             const float* values = v.data + s.first_row * v.row_stride + column;
             tile.source = {.keys = reinterpret_cast<const std::byte*>(keys),
                            .values = reinterpret_cast<const std::byte*>(values),
                            .key_stride = k.row_stride * int64_t{sizeof(float)},
                            .value_stride = v.row_stride * int64_t{sizeof(float)}};
             tile.causal = false;
             tile.num_keys = s.num_rows;
             k_.attention(tile);
           });
}

void CpuOps::GatedActivation(Activation act, TensorView x, MutableView y, ComputeContext& c) const {
  const int64_t f = y.shape[1];
  c.pool.ParallelFor(y.shape[0], RowGrain(4 * f), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      k_.gated_activation(act, x.as<float>() + r * 2 * f, f, y.as<float>() + r * f);
    }
  });
}

void CpuOps::Activate(Activation act, MutableView x, ComputeContext& c) const {
  const int64_t d = x.shape[1];
  c.pool.ParallelFor(x.shape[0], RowGrain(4 * d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) k_.activate(act, x.as<float>() + r * d, d);
  });
}

void CpuOps::Add(TensorView x, MutableView y, ComputeContext& c) const {
  const int64_t d = x.shape[1];
  c.pool.ParallelFor(x.shape[0], RowGrain(d), [&](int64_t begin, int64_t end) {
    k_.add(x.as<float>() + begin * d, (end - begin) * d, y.as<float>() + begin * d);
  });
}

size_t CpuOps::attention_scratch_bytes(int64_t, int64_t, int, int) const { return 0; }

const CpuOps& HostCpuOps() {
  static const CpuOps ops(HostCpu().avx2 && HostCpu().fma && HostCpu().f16c ? kAvx2Kernels
                                                                            : kBaselineKernels);
  return ops;
}

}  // namespace assay
