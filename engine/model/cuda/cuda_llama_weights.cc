#include "engine/model/cuda/cuda_llama_weights.h"

#include "absl/strings/str_cat.h"
#include "engine/model/cuda/cuda_weights.h"
#include "engine/model/families/forward_parts.h"
#include "engine/model/families/llama_spec.h"
#include "engine/model/rotation.h"

namespace assay {
namespace {

constexpr int kMostHeadsOfAKey = 16;  // of decode attention: the rows of its products

absl::Status BindLinears(const ModelSpec& spec, const LinearMap& linears, CudaLlamaWeights& to) {
  const std::vector<LinearSlot> slots = LlamaSlots(spec);
  ASSIGN_OR_RETURN(to.embedding, LinearOnGpu(slots.front(), linears));
  to.head = to.embedding;
  if (!spec.tied_head) {
    ASSIGN_OR_RETURN(to.head, LinearOnGpu(slots.back(), linears));
  }
  to.layers.resize(static_cast<size_t>(spec.layers));
  const LinearSlot* slot = &slots[1];
  for (CudaLlamaWeights::Layer& layer : to.layers) {
    for (const CudaLinear** linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      ASSIGN_OR_RETURN(*linear, LinearOnGpu(*slot++, linears));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CudaTakesLlama(const ModelSpec& spec) {
  if (spec.heads > kMostHeadsOfAKey * spec.kv_heads)
    return absl::UnimplementedError(absl::StrCat("on a GPU at most ", kMostHeadsOfAKey,
                                                 " query heads share a KV head: ", spec.heads,
                                                 " of ", spec.kv_heads));
  if (spec.hidden % 32 != 0 || spec.ffn % 4 != 0)
    return absl::UnimplementedError(absl::StrCat(
        "on a GPU hidden_size is a multiple of 32 and intermediate_size of 4: hidden_size=",
        spec.hidden, " intermediate_size=", spec.ffn));
  return absl::OkStatus();
}

absl::StatusOr<CudaLlamaWeights> CudaLlamaWeights::Read(CudaDevice& device, const ModelSpec& spec,
                                                        const LinearMap& linears,
                                                        const Checkpoint& checkpoint) {
  CudaLlamaWeights weights;
  RETURN_IF_ERROR(CudaTakesLlama(spec));
  if (checkpoint.Find(kStreamRotation).ok())
    return absl::UnimplementedError("a rotated residual stream is not served on a GPU");
  RETURN_IF_ERROR(BindLinears(spec, linears, weights));
  WeightUploads uploads(device);
  const auto read = [&](const std::string& name, int64_t width, Buffer& to) -> absl::Status {
    ASSIGN_OR_RETURN(const Tensor vector, ReadTensor(checkpoint, name, Shape{width}));
    return uploads.Copy(vector, to);
  };
  RETURN_IF_ERROR(read("model.norm.weight", spec.hidden, weights.final_norm));
  for (int i = 0; i < spec.layers; ++i) {
    const std::string prefix = LlamaLayerPrefix(i);
    Layer& layer = weights.layers[static_cast<size_t>(i)];
    RETURN_IF_ERROR(read(prefix + "input_layernorm.weight", spec.hidden, layer.input_norm));
    RETURN_IF_ERROR(
        read(prefix + "post_attention_layernorm.weight", spec.hidden, layer.post_attention_norm));
    if (!spec.qk_norm) continue;
    RETURN_IF_ERROR(read(prefix + "self_attn.q_norm.weight", spec.head_dim, layer.q_norm));
    RETURN_IF_ERROR(read(prefix + "self_attn.k_norm.weight", spec.head_dim, layer.k_norm));
  }
  RETURN_IF_ERROR(uploads.Copy(std::as_bytes(std::span(spec.rope_inv_freq)), weights.inv_freq));
  weights.other_bytes = uploads.bytes();
  return weights;
}

}  // namespace assay
