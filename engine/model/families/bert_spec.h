// Hyperparameters, tensor names and linear layers of the bert family, apart from the forward pass.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/model.h"

namespace assay {

// What the tensors are called, without the checkpoint's prefix ("bert.") and ".weight".
struct EncoderNames {
  std::string_view layer;  // followed by the number and "."
  std::string_view query, key, value, qkv, attention_output, attention_norm;
  std::string_view intermediate, output, output_norm;
  // Classifier: logits = out(activation(dense(first row))). `dense` may carry the prefix.
  std::string_view head_dense, head_out;
  bool head_dense_has_prefix = false;
  std::string_view head_activation;
};
const EncoderNames& NamesOf(const ModelSpec& spec);
std::string EncoderLayerPrefix(const ModelSpec& spec, int layer);  // "bert.encoder.layer.3."

bool IsBert(const Checkpoint& checkpoint);
// InvalidArgument names the key; NotFound the tensor; Unimplemented: a task, pooling or variant
// that this family does not compute.
absl::StatusOr<ModelSpec> ParseBert(const Checkpoint& checkpoint);
// The word embeddings; per layer qkv, attention output, intermediate, output. The dense layers of a
// classification head are not slots: they see one row per request, so that quantizing them saves no
// time and next to no memory, and puts its error right before the answer.
std::vector<LinearSlot> BertSlots(const ModelSpec& spec);
std::vector<FoldGroup> BertFolds(const ModelSpec& spec);
// The classification head as slots of its own, [dense, out]: {} for other tasks.
std::vector<LinearSlot> BertHeadSlots(const ModelSpec& spec);

}  // namespace assay
