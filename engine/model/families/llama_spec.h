// Hyperparameters and linear layers of the llama family, apart from the forward pass.
#pragma once
#include <vector>

#include "engine/model/model.h"

namespace assay {

bool IsLlama(const Checkpoint& checkpoint);
// InvalidArgument names the key; Unimplemented: a variant that this family does not compute.
absl::StatusOr<ModelSpec> ParseLlama(const Checkpoint& checkpoint);
// The embedding; per layer qkv_proj, o_proj, gate_up_proj, down_proj; the head unless it is tied.
std::vector<LinearSlot> LlamaSlots(const ModelSpec& spec);
std::vector<FoldGroup> LlamaFolds(const ModelSpec& spec);
// "model.layers.3."
std::string LlamaLayerPrefix(int layer);

}  // namespace assay
