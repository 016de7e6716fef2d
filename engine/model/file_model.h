// The f32 model without its memory: weights stay in the checkpoint's file and are decoded, some
// rows at a time, whenever they are multiplied. Drift detection compares with it beside the model
// that serves. Same numbers, bit for bit, as the model of BuildUniform(checkpoint, "f32").
//
// Memory: norms and position tables; while it multiplies, kSlabBytes of one weight, twice. A pass
// over few rows takes about as long as reading and decoding the file once.
#pragma once
#include "engine/model/model.h"

namespace assay {

// `checkpoint` lives as long as the model. A weight that cannot be read becomes NaN, and so do the
// outputs. Status codes of the family's parse and build.
absl::StatusOr<std::unique_ptr<const Model>> BuildOnFile(
    std::shared_ptr<const Checkpoint> checkpoint);

}  // namespace assay
