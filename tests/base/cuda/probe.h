// Kernels that show what the language of kernels (base/cuda/simt.h) does; in both namespaces.
#pragma once
#include <cstdint>

#include "base/cuda/simt.h"

namespace assay {

// c[16, 8] = a[16, 16] b[8, 16]^T, f16 row-major, through fragments gathered by hand.
ASSAY_LAUNCHER(int ProbeMmaF16(const uint16_t* a, const uint16_t* b, float* c,
                               const LaunchContext& context))
// The same through LoadMatrix4; b is [16, 8] and comes in transposed.
ASSAY_LAUNCHER(int ProbeLoadMatrix(const uint16_t* a, const uint16_t* b, float* c,
                                   const LaunchContext& context))
// c[16, 8] = a[16, 32] b[8, 32]^T.
ASSAY_LAUNCHER(int ProbeMmaS8(const int8_t* a, const int8_t* b, int* c,
                              const LaunchContext& context))
// Each of `rows` rows [count] reversed through shared memory, with or without the barrier that this
// needs.
ASSAY_LAUNCHER(int ProbeReverse(const float* x, float* y, int rows, int count, bool barrier,
                                const LaunchContext& context))
// y[i] = x[i] through asynchronous copies (count: a multiple of 4, at most 512), with or without
// waiting for them.
ASSAY_LAUNCHER(int ProbeCopy(const float* x, float* y, int count, bool wait,
                             const LaunchContext& context))
// sums[row] and most[row] of x [rows, count].
ASSAY_LAUNCHER(int ProbeReduce(const float* x, float* sums, float* most, int rows, int count,
                               const LaunchContext& context))
// sine and cosine of each angle.
ASSAY_LAUNCHER(int ProbeSinCos(const float* angles, float* sines, float* cosines, int count,
                               const LaunchContext& context))
// Mistakes that the emulator ends the process for.
enum class Mistake { kBarrierInOneBranch, kWarpOperationInOneBranch, kUnaligned, kBeyondTheEnd };
ASSAY_LAUNCHER(int ProbeMistake(Mistake mistake, float* x, const LaunchContext& context))

}  // namespace assay
