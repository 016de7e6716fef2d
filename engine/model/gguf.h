// A GGUF file as a checkpoint: canonical names, row-major shapes, Hugging Face's hyperparameters.
//
// Thread rule: pure function.
#pragma once
#include <span>

#include "base/status.h"
#include "engine/model/checkpoint_layout.h"

namespace assay {

// Codes as OpenCheckpoint's; messages name the tensor or key, not the file.
absl::StatusOr<CheckpointContents> ParseGguf(std::span<const std::byte> file);

}  // namespace assay
