// What a text engine works out of its options and its model before anything runs.
#pragma once
#include "engine/runtime/engine.h"

namespace assay {

struct GenerateSizes {
  int max_sequences = 0;  // running at once = rows of logits
  int max_step_tokens = 0;
  int max_context = 0;
  int num_blocks = 0;
  int num_slots = 0;  // of the KV pool
};

// InvalidArgument for options that cannot work (named).
absl::StatusOr<GenerateSizes> WorkOutSizes(const Model& model, const EngineOptions& options);

}  // namespace assay
