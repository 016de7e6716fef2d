// The bert family on a GPU: what engine/model/families/bert.cc computes, with the residual stream
// in f32, operands of products and of attention in 16 bit (or 8), pooling and heads in f32.
//
// Results: a sequence's depends on itself, and on which kernel the step's rows select (up to 64 of
// all sequences together, or a bucket of cuBLASLt's: lt_products.h); within those, bit for bit.
// Observers and parts of the stack are the CPU's: Unimplemented here.
#pragma once
#include <memory>

#include "engine/model/model.h"
#include "engine/ops/cuda/kernel_table.h"
#include "quant/kernels/cuda/cuda_linear.h"

namespace assay {

// `linears` names every slot, each made by MakeCudaQuantizedLinear (cuda_kernel.h) for `backend`.
// Status codes of the family's build; Unimplemented: what the device's kernels refuse.
absl::StatusOr<std::unique_ptr<const Model>> BuildCudaBert(const CudaBackend& backend,
                                                           const CudaOpsKernels& ops,
                                                           const ModelSpec& spec,
                                                           const Checkpoint& checkpoint,
                                                           LinearMap linears);

}  // namespace assay
