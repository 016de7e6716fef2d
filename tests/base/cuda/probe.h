// Kernels that show what the language of kernels (base/cuda/simt.h) does; in both namespaces.
#pragma once
#include <cstdint>

#include "base/cuda/simt.h"

namespace assay::ASSAY_SIMT {

// c[16, 8] = a[16, 16] b[8, 16]^T, f16 row-major, through fragments gathered by hand.
int ProbeMmaF16(const uint16_t* a, const uint16_t* b, float* c, const LaunchContext& context);
// The same through LoadMatrix4; b is [16, 8] and comes in transposed.
int ProbeLoadMatrix(const uint16_t* a, const uint16_t* b, float* c, const LaunchContext& context);
// c[16, 8] = a[16, 32] b[8, 32]^T.
int ProbeMmaS8(const int8_t* a, const int8_t* b, int* c, const LaunchContext& context);
// Each of `rows` rows [count] reversed through shared memory, with or without the barrier that this
// needs.
int ProbeReverse(const float* x, float* y, int rows, int count, bool barrier,
                 const LaunchContext& context);
// y[i] = x[i] through asynchronous copies (count: a multiple of 4, at most 512), with or without
// waiting for them.
int ProbeCopy(const float* x, float* y, int count, bool wait, const LaunchContext& context);
// sums[row] and most[row] of x [rows, count].
int ProbeReduce(const float* x, float* sums, float* most, int rows, int count,
                const LaunchContext& context);
// Mistakes that the emulator ends the process for.
enum class Mistake { kBarrierInOneBranch, kWarpOperationInOneBranch, kUnaligned, kBeyondTheEnd };
int ProbeMistake(Mistake mistake, float* x, const LaunchContext& context);

}  // namespace assay::ASSAY_SIMT
