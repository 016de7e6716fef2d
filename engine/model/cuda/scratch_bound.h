// Memory of a GPU that a model will use besides its weights, before any of it is there: what
// placement goes by. Upper bounds, whatever the schemes of the linears.
#pragma once
#include <cstdint>
#include <vector>

#include "engine/model/model.h"

namespace assay {

// As Model::scratch_bytes has it, and no less than that will say.
struct ScratchRows {
  int64_t rows = 0;            // of the largest step
  int64_t out_rows = 0;        // of logits, or sequences of an encoder
  int64_t context_tokens = 0;  // of the longest sequence
};
uint64_t ScratchBound(const ModelSpec& spec, const std::vector<LinearSlot>& slots,
                      const ScratchRows& size);

// What LtProducts::Tune multiplies while it times the algorithms of the largest linear.
uint64_t TuningBound(const std::vector<LinearSlot>& slots);

}  // namespace assay
