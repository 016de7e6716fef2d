// A block per row. The row is read again for the second and third pass: it is in the block's L1 by
// then.
#include "engine/ops/cuda/gate.h"
#include "engine/ops/cuda/norm.h"
#include "engine/ops/cuda/row_writer.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 256;

// What the norm makes of four elements.
struct Normed {
  float mean, factor;
  const float *gain, *bias;
  ASSAY_DEVICE void Apply(int at, float (&v)[4]) const {
    float g[4];
    LoadFour(gain + at, g);
    for (int i = 0; i < 4; ++i) v[i] = (v[i] - mean) * factor * g[i];
    if (bias == nullptr) return;
    LoadFour(bias + at, g);
    for (int i = 0; i < 4; ++i) v[i] += g[i];
  }
};

// Mean (LayerNorm's alone) and 1 / sqrt(mean of squares + eps) of the row.
ASSAY_DEVICE Normed Measure(const NormArgs& a, const float* row, float* partial) {
  const auto width = static_cast<float>(a.width);
  float mean = 0, v[4];
  if (a.bias != nullptr) {
    for (int at = 4 * ThreadIndex(); at < a.width; at += 4 * kThreads) {
      LoadFour(row + at, v);
      mean += (v[0] + v[1]) + (v[2] + v[3]);
    }
    mean = BlockSum(mean, partial) / width;
  }
  float sum = 0;
  for (int at = 4 * ThreadIndex(); at < a.width; at += 4 * kThreads) {
    LoadFour(row + at, v);
    for (int i = 0; i < 4; ++i) sum = Fma(v[i] - mean, v[i] - mean, sum);
  }
  return {mean, 1.0f / sqrtf(BlockSum(sum, partial) / width + a.eps), a.gain, a.bias};
}

ASSAY_KERNEL(kThreads) NormKernel(NormArgs a) {
  ASSAY_SHARED(float, partial, kWarp);
  const int out_row = BlockX();
  PdlWait();
  const size_t row =
      a.pick == nullptr ? static_cast<size_t>(out_row) : static_cast<size_t>(a.pick[out_row]);
  float* const stream = a.stream + row * a.width;
  float v[4], w[4];
  if (a.add != nullptr) {  // each thread comes back to the elements that it has written
    for (int at = 4 * ThreadIndex(); at < a.width; at += 4 * kThreads) {
      LoadFour(stream + at, v);
      LoadFour(a.add + row * a.width + at, w);
      for (int i = 0; i < 4; ++i) v[i] += w[i];
      Store16(stream + at, {BitsOf(v[0]), BitsOf(v[1]), BitsOf(v[2]), BitsOf(v[3])});
    }
  }
  const Normed norm = Measure(a, stream, partial);
  const RowTarget to = {a.form, a.half, a.out, a.scales, a.width};
  uint32_t largest = 0;
  for (int at = 4 * ThreadIndex(); WantsScale(a.form) && at < a.width; at += 4 * kThreads) {
    LoadFour(stream + at, v);
    norm.Apply(at, v);
    for (int i = 0; i < 4; ++i) {
      const uint32_t bits = MagnitudeBits(v[i]);
      largest = bits > largest ? bits : largest;
    }
  }
  const RowScale scale = FindScale(to, out_row, largest, reinterpret_cast<uint32_t*>(&partial[0]));
  for (int at = 4 * ThreadIndex(); at < a.width; at += 4 * kThreads) {
    LoadFour(stream + at, v);
    norm.Apply(at, v);
    WriteFour(to, out_row, at, v, scale);
    if (a.bias != nullptr && a.pick == nullptr)
      Store16(stream + at, {BitsOf(v[0]), BitsOf(v[1]), BitsOf(v[2]), BitsOf(v[3])});
  }
  PdlTrigger();
}

ASSAY_DEVICE void Gated(const GateArgs& a, const float* x, int at, float (&v)[4]) {
  LoadFour(x + at, v);
  for (int i = 0; i < 4; ++i) v[i] = Through(a.gate, v[i]);
  if (!a.gated) return;
  float up[4];
  LoadFour(x + a.width + at, up);
  for (int i = 0; i < 4; ++i) v[i] *= up[i];
}

ASSAY_KERNEL(kThreads) GateKernel(GateArgs a) {
  ASSAY_SHARED(uint32_t, partial, kWarp);
  const int row = BlockX();
  const RowTarget to = {a.form, a.half, a.out, a.scales, a.width};
  PdlWait();
  const float* const x = a.x + static_cast<size_t>(row) * a.width * (a.gated ? 2 : 1);
  float v[4];
  uint32_t largest = 0;
  for (int at = 4 * ThreadIndex(); WantsScale(a.form) && at < a.width; at += 4 * kThreads) {
    Gated(a, x, at, v);
    for (int i = 0; i < 4; ++i) {
      const uint32_t bits = MagnitudeBits(v[i]);
      largest = bits > largest ? bits : largest;
    }
  }
  const RowScale scale = FindScale(to, row, largest, &partial[0]);
  for (int at = 4 * ThreadIndex(); at < a.width; at += 4 * kThreads) {
    Gated(a, x, at, v);
    WriteFour(to, row, at, v, scale);
  }
  PdlTrigger();
}

}  // namespace

int Norm(const NormArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return 0;
  return Launch({.x = args.rows, .threads = kThreads}, context, NormKernel, args);
}

int Activate(const GateArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return 0;
  return Launch({.x = args.rows, .threads = kThreads}, context, GateKernel, args);
}

}  // namespace assay::ASSAY_SIMT
