#include "engine/ops/cuda/encoder.h"
#include "engine/ops/cuda/gate.h"
#include "engine/ops/cuda/row_writer.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

ASSAY_DEVICE void AddFour(const float* from, float (&v)[4]) {
  float w[4];
  LoadFour(from, w);
  for (int i = 0; i < 4; ++i) v[i] += w[i];
}

ASSAY_KERNEL(kThreads) EmbedKernel(EmbedArgs a) {
  const auto row = static_cast<size_t>(BlockX()), width = static_cast<size_t>(a.width);
  PdlWait();
  const int position = a.positions[row];
  for (int at = 4 * ThreadIndex(); at < a.width; at += 4 * kThreads) {
    float v[4] = {0, 0, 0, 0};
    if (position >= 0) {
      LoadFour(a.words + row * a.words_stride + at, v);
      if (a.type_table != nullptr) AddFour(a.type_table + a.types[row] * width + at, v);
      AddFour(a.position_table + position * width + at, v);
    }
    Store16(a.stream + row * width + at, {BitsOf(v[0]), BitsOf(v[1]), BitsOf(v[2]), BitsOf(v[3])});
  }
  PdlTrigger();
}

// A block per sequence, a thread per column.
ASSAY_KERNEL(kThreads) PoolKernel(PoolArgs a) {
  ASSAY_SHARED(float, partial, kWarp);
  const int sequence = BlockX();
  PdlWait();
  const int length = a.first ? 1 : a.lengths[sequence];
  const float* const rows = a.stream + static_cast<size_t>(a.first_rows[sequence]) * a.width;
  float* const out = a.out + static_cast<size_t>(sequence) * a.width;
  const float scale = 1.0f / static_cast<float>(length);
  float squares = 0;
  for (int at = ThreadIndex(); at < a.width; at += kThreads) {
    float sum = rows[at];
    ASSAY_UNROLL_BY(8)
    for (int row = 1; row < length; ++row) sum += rows[static_cast<size_t>(row) * a.width + at];
    sum *= scale;
    squares = Fma(sum, sum, squares);
    out[at] = sum;
  }
  PdlTrigger();
  if (!a.normalize) return;
  const float inverse = 1.0f / fmaxf(sqrtf(BlockSum(squares, partial)), 1e-12f);
  for (int at = ThreadIndex(); at < a.width; at += kThreads) out[at] *= inverse;  // its own
}

// A warp per number.
ASSAY_KERNEL(kThreads) DenseKernel(DenseArgs a) {
  const int row = BlockX(), n = BlockY() * kWarps + ThreadIndex() / kWarp;
  const int lane = ThreadIndex() % kWarp;
  if (n >= a.n) return;
  PdlWait();
  const auto from = static_cast<size_t>(a.pick == nullptr ? row : a.pick[row]);
  const float* const x = a.x + from * a.k;
  const float* const w = a.w + static_cast<size_t>(n) * a.k;
  float sum = 0;
  for (int k = lane; k < a.k; k += kWarp) sum = Fma(x[k], w[k], sum);
  sum = WarpSum(sum);
  if (lane == 0) a.y[static_cast<size_t>(row) * a.n + n] = Through(a.gate, sum + a.bias[n]);
  PdlTrigger();
}

}  // namespace

int Embed(const EmbedArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return 0;
  return Launch({.x = args.rows, .threads = kThreads}, context, EmbedKernel, args);
}

int Pool(const PoolArgs& args, const LaunchContext& context) {
  if (args.sequences == 0) return 0;
  return Launch({.x = args.sequences, .threads = kThreads}, context, PoolKernel, args);
}

int Dense(const DenseArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return 0;
  return Launch({.x = args.rows, .y = (args.n + kWarps - 1) / kWarps, .threads = kThreads}, context,
                DenseKernel, args);
}

}  // namespace assay::ASSAY_SIMT
