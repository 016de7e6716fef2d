#include "engine/model/cuda/cuda_llama_weights.h"

#include "absl/strings/str_cat.h"
#include "engine/model/families/forward_parts.h"
#include "engine/model/families/llama_spec.h"
#include "engine/model/rotation.h"

namespace assay {
namespace {

constexpr int kMostHeadsOfAKey = 16;  // of decode attention: the rows of its products

absl::StatusOr<const CudaLinear*> Bound(const LinearSlot& slot, const LinearMap& linears) {
  ASSIGN_OR_RETURN(const BoundLinear bound, Bind(slot, linears));
  if (bound.linear == nullptr || bound.linear->problem().device != DeviceKind::kCuda)
    return absl::FailedPreconditionError(absl::StrCat("the layer is not on a GPU: ", slot.name));
  return static_cast<const CudaLinear*>(&bound.linear->weight());
}

absl::Status BindLinears(const ModelSpec& spec, const LinearMap& linears, CudaLlamaWeights& to) {
  const std::vector<LinearSlot> slots = LlamaSlots(spec);
  ASSIGN_OR_RETURN(to.embedding, Bound(slots.front(), linears));
  to.head = to.embedding;
  if (!spec.tied_head) {
    ASSIGN_OR_RETURN(to.head, Bound(slots.back(), linears));
  }
  to.layers.resize(static_cast<size_t>(spec.layers));
  const LinearSlot* slot = &slots[1];
  for (CudaLlamaWeights::Layer& layer : to.layers) {
    for (const CudaLinear** linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      ASSIGN_OR_RETURN(*linear, Bound(*slot++, linears));
    }
  }
  return absl::OkStatus();
}

// Vectors of a checkpoint to a device.
class Reader {
 public:
  Reader(CudaDevice& device, const Checkpoint& checkpoint, size_t& bytes)
      : device_(device), checkpoint_(checkpoint), bytes_(bytes) {}
  absl::Status Copy(std::span<const std::byte> from, Buffer& to) {
    ASSIGN_OR_RETURN(to, device_.Allocate(from.size()));
    bytes_ += from.size();
    return device_.Upload(from, to);
  }
  absl::Status Read(const std::string& name, int64_t width, Buffer& to) {
    ASSIGN_OR_RETURN(const Tensor read, ReadTensor(checkpoint_, name, Shape{width}));
    return Copy({read.data<std::byte>(), read.bytes()}, to);
  }

 private:
  CudaDevice& device_;
  const Checkpoint& checkpoint_;
  size_t& bytes_;
};

}  // namespace

absl::Status CudaTakes(const ModelSpec& spec) {
  if (spec.family != "llama")
    return absl::UnimplementedError(
        absl::StrCat("on a GPU models of the llama family are served: family=", spec.family));
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
  RETURN_IF_ERROR(CudaTakes(spec));
  if (checkpoint.Find(kStreamRotation).ok())
    return absl::UnimplementedError("a rotated residual stream is not served on a GPU");
  RETURN_IF_ERROR(BindLinears(spec, linears, weights));
  Reader reader(device, checkpoint, weights.other_bytes);
  RETURN_IF_ERROR(reader.Read("model.norm.weight", spec.hidden, weights.final_norm));
  for (int i = 0; i < spec.layers; ++i) {
    const std::string prefix = LlamaLayerPrefix(i);
    Layer& layer = weights.layers[static_cast<size_t>(i)];
    RETURN_IF_ERROR(reader.Read(prefix + "input_layernorm.weight", spec.hidden, layer.input_norm));
    RETURN_IF_ERROR(reader.Read(prefix + "post_attention_layernorm.weight", spec.hidden,
                                layer.post_attention_norm));
    if (!spec.qk_norm) continue;
    RETURN_IF_ERROR(reader.Read(prefix + "self_attn.q_norm.weight", spec.head_dim, layer.q_norm));
    RETURN_IF_ERROR(reader.Read(prefix + "self_attn.k_norm.weight", spec.head_dim, layer.k_norm));
  }
  RETURN_IF_ERROR(reader.Copy(std::as_bytes(std::span(spec.rope_inv_freq)), weights.inv_freq));
  return weights;
}

}  // namespace assay
