// The llama family on a GPU: what engine/model/families/llama.cc computes, with the residual stream
// in f32, operands of products and keys and values in 16 bit (or 8), and a step of decode rows as
// one CUDA graph. Built of linears whose weights lie on the device (quant/kernels/cuda/).
//
// Results: a row depends on its own sequence, and on which kernel its step's size selects (up to 64
// rows, or a bucket of cuBLASLt's: lt_products.h): greedy tokens are the same within a bucket, not
// across, where two tokens are as good as equal. Observers and parts of the stack are the CPU's:
// Unimplemented here.
#pragma once
#include <memory>

#include "engine/model/cuda/step_memory.h"
#include "engine/model/model.h"
#include "engine/ops/cuda/kernel_table.h"
#include "quant/kernels/cuda/cuda_linear.h"

namespace assay {

struct CudaModelOptions {
  int max_graph_rows = 256;  // steps of up to so many decode rows are captured; 0: none
  int decode_splits = 8;     // blocks that share a row's positions in attention
  bool pdl = false;          // kernels begin before the one in front of them ends (simt.h)
};

inline StepWidths LlamaWidths(const ModelSpec& spec, const CudaModelOptions& options) {
  return {.hidden = spec.hidden,
          .q = spec.heads * spec.head_dim,
          .kv = spec.kv_heads * spec.head_dim,
          .ffn = spec.ffn,
          .vocab = spec.vocab,
          .heads = spec.heads,
          .kv_heads = spec.kv_heads,
          .splits = options.decode_splits};
}

// Unimplemented: names what the KV cache cannot be there.
absl::Status CudaTakesKv(const KvFormat& format);

// `linears` names every slot, each made by MakeCudaQuantizedLinear (cuda_kernel.h) for `backend`.
// Status codes of the family's build; Unimplemented: what the device's kernels refuse.
absl::StatusOr<std::unique_ptr<const Model>> BuildCudaLlama(
    const CudaBackend& backend, const CudaOpsKernels& ops, const ModelSpec& spec,
    const Checkpoint& checkpoint, LinearMap linears, const CudaModelOptions& options);

}  // namespace assay
