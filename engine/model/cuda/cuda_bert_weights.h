// What an encoder on a GPU holds of its checkpoint. Immutable once read.
#pragma once
#include <vector>

#include "engine/model/cuda/cuda_weights.h"

namespace assay {

// Unimplemented: names what of such a model kernels on a GPU do not compute.
absl::Status CudaTakesBert(const ModelSpec& spec);

struct CudaBertWeights {
  struct Norm {
    Buffer gain, bias;  // f32 [hidden]
  };
  struct Layer {
    const CudaLinear *qkv = nullptr, *attention_output = nullptr, *intermediate = nullptr,
                     *output = nullptr;  // of `linears`, as `words`
    Norm attention_norm, output_norm;
  };
  struct Dense {  // of the classification head, in f32 as on the CPU
    Buffer w, bias;
    int n = 0, k = 0;
  };
  const CudaLinear* words = nullptr;
  Buffer positions;  // f32 [position_offset + max_context, hidden]
  Buffer types;      // f32 [type_vocab, hidden], or empty
  Norm embedding_norm;
  std::vector<Layer> layers;
  std::vector<Dense> head;  // {dense, out}, or empty
  size_t other_bytes = 0;   // of all but the linears

  // `linears` outlive it. Unimplemented: what a GPU's kernels do not compute; FailedPrecondition: a
  // linear that is not on a GPU; otherwise as the family's build.
  static absl::StatusOr<CudaBertWeights> Read(CudaDevice& device, const ModelSpec& spec,
                                              const LinearMap& linears,
                                              const Checkpoint& checkpoint);
};

}  // namespace assay
