// The kernel of decode attention and its instances: included by one file per T.
#pragma once
#include "engine/ops/cuda/decode_warp.h"

namespace assay::ASSAY_SIMT {

// Which positions split `split` of a row at `position` takes, and how many splits have any.
ASSAY_DEVICE DecodeRange RangeOf(const DecodeAttentionArgs& args, int position, int split,
                                 int& active) {
  constexpr int kChunk = 64, kPages = kChunk / kKvBlockTokens;
  DecodeRange range;
  range.last = position + 1;
  range.first = args.sliding_window > 0 ? range.last - args.sliding_window : 0;
  if (range.first < 0) range.first = 0;
  const int first = range.first / kChunk, chunks = (range.last + kChunk - 1) / kChunk - first;
  const int each = (chunks + args.splits - 1) / args.splits;
  active = (chunks + each - 1) / each;
  const int pages = (range.last + kKvBlockTokens - 1) / kKvBlockTokens;
  range.first_page = (first + split * each) * kPages;
  range.last_page = range.first_page + each * kPages;
  if (range.last_page > pages) range.last_page = pages;
  // A page before the window may have no block any more.
  if (range.first_page < range.first / kKvBlockTokens)
    range.first_page = range.first / kKvBlockTokens;
  return range;
}

// What follows the pages in shared memory: the results of a block, sums [16][kWidth] that are not
// divided yet, max and sum [16]; then states of warps [kWarps][16][2], weights of splits
// [16][kMaxDecodeSplits].
struct DecodePart {
  float *out, *max, *sum, *states, *weights;
  int* arrivals;
};
template <typename Shape, int kWidth>
ASSAY_DEVICE DecodePart PartIn(unsigned char* memory) {
  constexpr int kStates = Shape::kWarps * 32, kWeights = 16 * kMaxDecodeSplits;
  static_assert(4 * (16 * kWidth + 32 + kStates + kWeights + 1) <= Shape::kSharedBytes);
  auto* const out = reinterpret_cast<float*>(memory);
  float* const max = out + 16 * kWidth;
  float* const weights = max + 32 + kStates;
  return {out, max, max + 16, max + 32, weights, reinterpret_cast<int*>(weights + kWeights)};
}

// Of the warps of a block, in their order.
template <typename Warp>
ASSAY_DEVICE void MergeWarps(const Warp& warp, int group, int width, const DecodePart& to) {
  constexpr int kWarps = Warp::Shape::kWarps;
  float* const states = to.states;
  const int me = ThreadIndex() / kWarp, g = ThreadIndex() % kWarp / 4, t = ThreadIndex() % 4;
  const float sums[2] = {warp.sum(0), warp.sum(1)};
  SyncThreads();  // nobody reads pages any more
  if (t == 0) {
    for (int half = 0; half < 2; ++half) {
      states[(me * 16 + g + 8 * half) * 2] = warp.max(half);
      states[(me * 16 + g + 8 * half) * 2 + 1] = sums[half];
    }
  }
  SyncThreads();
  float factor[2];
  ASSAY_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = g + 8 * half;
    float most = states[row * 2], sum = 0;
    for (int w = 1; w < kWarps; ++w) most = fmaxf(most, states[(w * 16 + row) * 2]);
    for (int w = 0; w < kWarps; ++w)
      sum += states[(w * 16 + row) * 2 + 1] * Exp2(states[(w * 16 + row) * 2] - most);
    factor[half] = Exp2(warp.max(half) - most);
    if (me == 0 && t == 0) {
      to.max[row] = most;
      to.sum[row] = sum;
    }
  }
  ASSAY_UNROLL_BY(1)
  for (int w = 0; w < kWarps; ++w) {
    if (w == me) {
      warp.ForOutputs(factor, [&](int half, int column, float v) {
        const int row = g + 8 * half;
        if (row >= group) return;
        float& sum = to.out[row * width + column];
        sum = w == 0 ? v : sum + v;
      });
    }
    SyncThreads();
  }
}

// Writes the block's results to the workspace and, if it is the last to arrive, those of all splits
// to y [group][head_dim].
template <typename T>
ASSAY_DEVICE void CombineSplits(const DecodeAttentionArgs& args, const DecodePart& part, int width,
                                int active, T* y) {
  const int group = args.heads / args.kv.kv_heads, head_dim = args.kv.head_dim;
  const int count = group * head_dim, me = ThreadIndex();
  const int64_t place = static_cast<int64_t>(BlockZ()) * args.kv.kv_heads + BlockY();
  float* const all = args.workspace + place * args.splits * group * (head_dim + 2);
  float* const mine = all + static_cast<int64_t>(BlockX()) * group * (head_dim + 2);
  for (int i = me; i < count; i += ThreadsOfBlock())
    mine[i] = part.out[i / head_dim * width + i % head_dim];
  if (me < group) {
    mine[count + 2 * me] = part.max[me];
    mine[count + 2 * me + 1] = part.sum[me];
  }
  FenceDevice();
  SyncThreads();
  if (me == 0) *part.arrivals = AtomicAdd(args.arrived + place, 1);
  SyncThreads();
  if (*part.arrivals != active - 1) return;
  FenceDevice();
  const int stride = group * (head_dim + 2);
  if (me < group) {
    const float* const states = all + count + 2 * me;
    float most = states[0], sum = 0;
    for (int s = 1; s < active; ++s) most = fmaxf(most, states[s * stride]);
    for (int s = 0; s < active; ++s) {
      const float weight = Exp2(states[s * stride] - most);
      part.weights[me * kMaxDecodeSplits + s] = weight;
      sum += weight * states[s * stride + 1];
    }
    for (int s = 0; s < active; ++s) part.weights[me * kMaxDecodeSplits + s] /= sum;
  }
  SyncThreads();
  for (int i = me; i < count; i += ThreadsOfBlock()) {
    const float* const weight = part.weights + i / head_dim * kMaxDecodeSplits;
    float sum = 0;
    for (int s = 0; s < active; ++s) sum += weight[s] * all[s * stride + i];
    y[i] = FromFloat<T>(sum);
  }
  if (me == 0) args.arrived[place] = 0;
}

// Streams the warp's pages of a split through its stages [kStages][kPageUnits].
template <typename Warp, typename Query>
ASSAY_DEVICE void RunPages(const DecodeAttentionArgs& args, const DecodeRange& range, Quad* stages,
                           const Query& query, Warp& warp) {
  using Shape = typename Warp::Shape;
  const int32_t* const table =
      args.batch.block_tables +
      static_cast<int64_t>(args.batch.sequence_of_row[BlockZ()]) * args.batch.max_blocks;
  const int first = range.first_page + ThreadIndex() / kWarp;
  const auto load = [&](int step) {
    const int page = first + step * Shape::kWarps;
    if (page < range.last_page) {
      Warp::Load(args.kv, BlockY(), table[page], page, range,
                 stages + step % Shape::kStages * Shape::kPageUnits);
    }
    CopyAsyncCommit();
  };
  for (int step = 0; step < Shape::kStages - 1; ++step) load(step);
  for (int step = 0; first + step * Shape::kWarps < range.last_page; ++step) {
    CopyAsyncWait<Shape::kStages - 2>();
    SyncWarp();  // the page is there for all lanes, and all are done with the one before
    load(step + Shape::kStages - 1);
    warp.Step(stages + step % Shape::kStages * Shape::kPageUnits, first + step * Shape::kWarps,
              query);
  }
  CopyAsyncWait<0>();
}

template <typename T, KvCodes kFormat, int kWidth>
ASSAY_KERNEL_FOR_BLOCKS((DecodeShape<T, kFormat, kWidth>::kWarps * kWarp), 1)
DecodeKernel(DecodeAttentionArgs args) {
  using Shape = DecodeShape<T, kFormat, kWidth>;
  using Warp = DecodeWarp<T, kFormat, kWidth>;
  ASSAY_DYNAMIC_SHARED(memory);
  PdlWait();
  const int row = BlockZ(), position = args.batch.positions[row];
  if (position < 0) return;
  int active = 0;
  const DecodeRange range = RangeOf(args, position, BlockX(), active);
  if (BlockX() >= active) return;

  const int group = args.heads / args.kv.kv_heads, head_dim = args.kv.head_dim;
  const int64_t first = (static_cast<int64_t>(row) * args.heads + BlockY() * group) * head_dim;
  const uint16_t* const q = static_cast<const uint16_t*>(args.q) + first;
  auto* const units = reinterpret_cast<Quad*>(memory);
  Quad* const stages = units + ThreadIndex() / kWarp * Shape::kStages * Shape::kPageUnits;
  Warp warp(args, range);
  if constexpr (Shape::kQueriesInRegisters) {
    Quad fragments[Shape::kSteps];
    ASSAY_UNROLL
    for (int s = 0; s < Shape::kSteps; ++s) fragments[s] = Warp::QueryFragment(args, q, s);
    RunPages(
        args, range, stages, [&](int step) { return fragments[step]; }, warp);
  } else {
    Quad* const fragments = units + Shape::kWarps * Shape::kStages * Shape::kPageUnits;
    for (int s = ThreadIndex() / kWarp; s < Shape::kSteps; s += Shape::kWarps)
      fragments[s * kWarp + ThreadIndex() % kWarp] = Warp::QueryFragment(args, q, s);
    SyncThreads();
    const Quad* const mine = fragments + ThreadIndex() % kWarp;
    RunPages(
        args, range, stages, [&](int step) { return mine[step * kWarp]; }, warp);
  }
  PdlTrigger();

  const DecodePart part = PartIn<Shape, kWidth>(memory);
  MergeWarps(warp, group, kWidth, part);
  T* const y = static_cast<T*>(args.y) + first;
  if (active > 1) return CombineSplits(args, part, kWidth, active, y);
  for (int i = ThreadIndex(); i < group * head_dim; i += ThreadsOfBlock()) {
    const int head = i / head_dim;
    y[i] = FromFloat<T>(part.out[head * kWidth + i % head_dim] / part.sum[head]);
  }
}

template <typename T, KvCodes kFormat, int kWidth>
int LaunchDecodeOf(const DecodeAttentionArgs& args, const LaunchContext& context) {
  using Shape = DecodeShape<T, kFormat, kWidth>;
  return Launch({.x = args.splits,
                 .y = args.kv.kv_heads,
                 .z = args.batch.rows,
                 .threads = Shape::kWarps * kWarp,
                 .shared_bytes = Shape::kSharedBytes},
                context, DecodeKernel<T, kFormat, kWidth>, args);
}

template <typename T, KvCodes kFormat>
int LaunchDecodeWidth(const DecodeAttentionArgs& args, const LaunchContext& context) {
  const int width = KvWidth(args.kv.head_dim);
  if (width == 16) return LaunchDecodeOf<T, kFormat, 16>(args, context);
  if (width <= 64) return LaunchDecodeOf<T, kFormat, 64>(args, context);
  if (width <= 96) return LaunchDecodeOf<T, kFormat, 96>(args, context);
  if (width <= 128) return LaunchDecodeOf<T, kFormat, 128>(args, context);
  return LaunchDecodeOf<T, kFormat, 256>(args, context);
}

template <typename T>
int LaunchDecode(const DecodeAttentionArgs& args, const LaunchContext& context) {
  switch (args.kv.format) {
    case KvCodes::kHalf:
      return LaunchDecodeWidth<T, KvCodes::kHalf>(args, context);
    case KvCodes::kS8:
      return LaunchDecodeWidth<T, KvCodes::kS8>(args, context);
    case KvCodes::kE4m3:
      return LaunchDecodeWidth<T, KvCodes::kE4m3>(args, context);
  }
  return 0;
}

}  // namespace assay::ASSAY_SIMT
