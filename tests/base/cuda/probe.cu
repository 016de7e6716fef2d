#include "base/cuda/simt_math.h"
#include "tests/base/cuda/probe.h"

namespace assay::ASSAY_SIMT {
namespace {

ASSAY_DEVICE uint32_t TwoOf(const uint16_t* p) {
  return static_cast<uint32_t>(p[0]) | (static_cast<uint32_t>(p[1]) << 16);
}

ASSAY_DEVICE void StoreTile(float* c, const float (&d)[4]) {
  const int g = ThreadIndex() / 4, t = ThreadIndex() % 4;
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

ASSAY_KERNEL(32) MmaF16Kernel(const uint16_t* a, const uint16_t* b, float* c) {
  const int g = ThreadIndex() / 4, t = ThreadIndex() % 4;
  float d[4] = {0, 0, 0, 0};
  const uint32_t x[4] = {TwoOf(a + g * 16 + 2 * t), TwoOf(a + (g + 8) * 16 + 2 * t),
                         TwoOf(a + g * 16 + 2 * t + 8), TwoOf(a + (g + 8) * 16 + 2 * t + 8)};
  const uint32_t y[2] = {TwoOf(b + g * 16 + 2 * t), TwoOf(b + g * 16 + 2 * t + 8)};
  Mma<F16>(d, x, y);
  StoreTile(c, d);
}

ASSAY_KERNEL(32) LoadMatrixKernel(const uint16_t* a, const uint16_t* b, float* c) {
  ASSAY_SHARED(Quad, tiles, 48);  // a [16, 16], b [16, 8], 16-bit
  auto* const shared = reinterpret_cast<uint16_t*>(tiles);
  for (int i = ThreadIndex(); i < 256; i += kWarp) shared[i] = a[i];
  for (int i = ThreadIndex(); i < 128; i += kWarp) shared[256 + i] = b[i];
  SyncThreads();
  const int lane = ThreadIndex(), row = lane % 8, matrix = lane / 8;
  uint32_t x[4], both[4];
  // Top left, bottom left, top right, bottom right: the order of A's registers.
  LoadMatrix4(x, shared + (matrix % 2 * 8 + row) * 16 + matrix / 2 * 8);
  LoadMatrix4Transposed(both, shared + 256 + (matrix % 2 * 8 + row) * 8);
  const uint32_t y[2] = {both[0], both[1]};
  float d[4] = {0, 0, 0, 0};
  Mma<F16>(d, x, y);
  StoreTile(c, d);
}

ASSAY_DEVICE uint32_t FourOf(const int8_t* p) {
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= (static_cast<uint32_t>(p[i]) & 0xffu) << (8 * i);
  return out;
}

ASSAY_KERNEL(32) MmaS8Kernel(const int8_t* a, const int8_t* b, int* c) {
  const int g = ThreadIndex() / 4, t = ThreadIndex() % 4;
  int d[4] = {0, 0, 0, 0};
  const uint32_t x[4] = {FourOf(a + g * 32 + 4 * t), FourOf(a + (g + 8) * 32 + 4 * t),
                         FourOf(a + g * 32 + 4 * t + 16), FourOf(a + (g + 8) * 32 + 4 * t + 16)};
  const uint32_t y[2] = {FourOf(b + g * 32 + 4 * t), FourOf(b + g * 32 + 4 * t + 16)};
  MmaS8(d, x, y);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

ASSAY_KERNEL(128) ReverseKernel(const float* x, float* y, int count, bool barrier) {
  ASSAY_DYNAMIC_SHARED(memory);
  auto* const row = reinterpret_cast<float*>(memory);
  const size_t base = static_cast<size_t>(BlockX()) * count;
  for (int i = ThreadIndex(); i < count; i += ThreadsOfBlock()) row[i] = x[base + i];
  if (barrier) SyncThreads();
  for (int i = ThreadIndex(); i < count; i += ThreadsOfBlock()) y[base + i] = row[count - 1 - i];
}

ASSAY_KERNEL(128) CopyKernel(const float* x, float* y, int count, bool wait) {
  ASSAY_SHARED(Quad, row, 128);
  const int i = ThreadIndex();
  CopyAsync16(row + i, x + 4 * i, 4 * i < count);
  CopyAsyncCommit();
  if (wait) CopyAsyncWait<0>();
  SyncThreads();
  if (4 * i < count) Store16(y + 4 * i, row[i]);
  CopyAsyncWait<0>();
}

ASSAY_KERNEL(96) ReduceKernel(const float* x, float* sums, float* most, int count) {
  ASSAY_SHARED(float, partial, 32);
  float sum = 0, largest = -1e30f;
  for (int i = ThreadIndex(); i < count; i += ThreadsOfBlock()) {
    const float v = x[static_cast<size_t>(BlockX()) * count + i];
    sum += v;
    largest = fmaxf(largest, v);
  }
  sum = BlockSum(sum, partial);
  largest = BlockMax(largest, partial);
  if (ThreadIndex() == 0) {
    sums[BlockX()] = sum;
    most[BlockX()] = largest;
  }
}

ASSAY_KERNEL(128) SinCosKernel(const float* angles, float* sines, float* cosines, int count) {
  for (int i = BlockX() * ThreadsOfBlock() + ThreadIndex(); i < count;
       i += GridX() * ThreadsOfBlock()) {
    const Two turn = SinCos(angles[i]);
    sines[i] = turn.low;
    cosines[i] = turn.high;
  }
}

ASSAY_KERNEL(64) MistakeKernel(Mistake mistake, float* x) {
  switch (mistake) {
    case Mistake::kBarrierInOneBranch:
      if (ThreadIndex() < 40) SyncThreads();
      break;
    case Mistake::kWarpOperationInOneBranch:
      if (ThreadIndex() % 2 == 0) x[0] = ShuffleXor(1.0f, 2);
      break;
    case Mistake::kUnaligned:
      x[0] = FloatOf(Load16(x + 1).x);
      break;
    case Mistake::kBeyondTheEnd:
      x[ThreadIndex()] = 1;
      break;
  }
}

}  // namespace

int ProbeMmaF16(const uint16_t* a, const uint16_t* b, float* c, const LaunchContext& context) {
  return Launch({.threads = 32}, context, MmaF16Kernel, a, b, c);
}
int ProbeLoadMatrix(const uint16_t* a, const uint16_t* b, float* c, const LaunchContext& context) {
  return Launch({.threads = 32}, context, LoadMatrixKernel, a, b, c);
}
int ProbeMmaS8(const int8_t* a, const int8_t* b, int* c, const LaunchContext& context) {
  return Launch({.threads = 32}, context, MmaS8Kernel, a, b, c);
}
int ProbeReverse(const float* x, float* y, int rows, int count, bool barrier,
                 const LaunchContext& context) {
  return Launch({.x = rows, .threads = 128, .shared_bytes = sizeof(float) * count}, context,
                ReverseKernel, x, y, count, barrier);
}
int ProbeCopy(const float* x, float* y, int count, bool wait, const LaunchContext& context) {
  return Launch({.threads = 128}, context, CopyKernel, x, y, count, wait);
}
int ProbeReduce(const float* x, float* sums, float* most, int rows, int count,
                const LaunchContext& context) {
  return Launch({.x = rows, .threads = 96}, context, ReduceKernel, x, sums, most, count);
}
int ProbeSinCos(const float* angles, float* sines, float* cosines, int count,
                const LaunchContext& context) {
  return Launch({.x = (count + 127) / 128, .threads = 128}, context, SinCosKernel, angles, sines,
                cosines, count);
}
int ProbeMistake(Mistake mistake, float* x, const LaunchContext& context) {
  return Launch({.threads = 64}, context, MistakeKernel, mistake, x);
}

}  // namespace assay::ASSAY_SIMT
