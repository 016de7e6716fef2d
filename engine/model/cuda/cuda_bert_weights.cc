#include "engine/model/cuda/cuda_bert_weights.h"

#include "absl/strings/str_cat.h"
#include "engine/model/families/bert_spec.h"
#include "engine/model/families/bert_tables.h"

namespace assay {
namespace {

constexpr int kWidestHead = 256;  // of encoder_attention.h

absl::Status BindLinears(const ModelSpec& spec, const LinearMap& linears, CudaBertWeights& to) {
  const std::vector<LinearSlot> slots = BertSlots(spec);
  ASSIGN_OR_RETURN(to.words, LinearOnGpu(slots.front(), linears));
  to.layers.resize(static_cast<size_t>(spec.layers));
  const LinearSlot* slot = &slots[1];
  for (CudaBertWeights::Layer& layer : to.layers) {
    for (const CudaLinear** linear :
         {&layer.qkv, &layer.attention_output, &layer.intermediate, &layer.output}) {
      ASSIGN_OR_RETURN(*linear, LinearOnGpu(*slot++, linears));
    }
  }
  return absl::OkStatus();
}

absl::Status UploadTables(const BertTables& tables, WeightUploads& uploads, CudaBertWeights& to) {
  const auto norm = [&](const BertTables::Norm& from, CudaBertWeights::Norm& norm) -> absl::Status {
    RETURN_IF_ERROR(uploads.Copy(from.gain, norm.gain));
    return uploads.Copy(from.bias, norm.bias);
  };
  RETURN_IF_ERROR(uploads.Copy(tables.positions, to.positions));
  RETURN_IF_ERROR(uploads.Copy(tables.types, to.types));
  RETURN_IF_ERROR(norm(tables.embedding_norm, to.embedding_norm));
  for (size_t i = 0; i < to.layers.size(); ++i) {
    RETURN_IF_ERROR(norm(tables.layers[i].attention_norm, to.layers[i].attention_norm));
    RETURN_IF_ERROR(norm(tables.layers[i].output_norm, to.layers[i].output_norm));
  }
  return absl::OkStatus();
}

absl::Status UploadHead(const ModelSpec& spec, const Checkpoint& checkpoint, WeightUploads& uploads,
                        CudaBertWeights& to) {
  for (const LinearSlot& slot : BertHeadSlots(spec)) {
    ASSIGN_OR_RETURN(const Tensor weight, ReadSlotWeight(checkpoint, slot));
    ASSIGN_OR_RETURN(const Tensor bias, ReadSlotBias(checkpoint, slot));
    CudaBertWeights::Dense& dense = to.head.emplace_back();
    dense.n = static_cast<int>(slot.shape[0]);
    dense.k = static_cast<int>(slot.shape[1]);
    RETURN_IF_ERROR(uploads.Copy(weight, dense.w));
    RETURN_IF_ERROR(uploads.Copy(bias, dense.bias));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CudaTakesBert(const ModelSpec& spec) {
  if (spec.hidden % 4 != 0 || spec.ffn % 4 != 0)
    return absl::UnimplementedError(
        absl::StrCat("on a GPU hidden and intermediate size of an encoder are multiples of 4: "
                     "hidden_size=",
                     spec.hidden, " intermediate_size=", spec.ffn));
  if (spec.head_dim % 2 != 0 || spec.head_dim > kWidestHead)
    return absl::UnimplementedError(
        absl::StrCat("on a GPU heads of an encoder are of even size, at most ", kWidestHead,
                     ": hidden_size=", spec.hidden, " heads=", spec.heads));
  return absl::OkStatus();
}

absl::StatusOr<CudaBertWeights> CudaBertWeights::Read(CudaDevice& device, const ModelSpec& spec,
                                                      const LinearMap& linears,
                                                      const Checkpoint& checkpoint) {
  CudaBertWeights weights;
  RETURN_IF_ERROR(CudaTakesBert(spec));
  RETURN_IF_ERROR(BindLinears(spec, linears, weights));
  WeightUploads uploads(device);
  ASSIGN_OR_RETURN(const BertTables tables, BertTables::Read(spec, checkpoint));
  RETURN_IF_ERROR(UploadTables(tables, uploads, weights));
  RETURN_IF_ERROR(UploadHead(spec, checkpoint, uploads, weights));
  weights.other_bytes = uploads.bytes();
  return weights;
}

}  // namespace assay
