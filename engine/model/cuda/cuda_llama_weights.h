// What a llama on a GPU holds of its checkpoint. Immutable once read.
#pragma once
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "quant/kernels/cuda/cuda_linear.h"

namespace assay {

// Unimplemented: names what of such a model kernels on a GPU do not compute.
absl::Status CudaTakesLlama(const ModelSpec& spec);

struct CudaLlamaWeights {
  struct Layer {
    Buffer input_norm, post_attention_norm;  // f32 [hidden]
    Buffer q_norm, k_norm;                   // f32 [head_dim], qwen3
    const CudaLinear *qkv = nullptr, *o = nullptr, *gate_up = nullptr, *down = nullptr;
  };
  const CudaLinear *embedding = nullptr, *head = nullptr;  // of `linears`, as those of layers
  std::vector<Layer> layers;
  Buffer final_norm;       // f32 [hidden]
  Buffer inv_freq;         // f32 [head_dim / 2]
  size_t other_bytes = 0;  // of all but the linears

  // `linears` outlive it. Unimplemented: what a GPU's kernels do not compute; FailedPrecondition: a
  // linear that is not on a GPU; otherwise as the family's build.
  static absl::StatusOr<CudaLlamaWeights> Read(CudaDevice& device, const ModelSpec& spec,
                                               const LinearMap& linears,
                                               const Checkpoint& checkpoint);
};

}  // namespace assay
