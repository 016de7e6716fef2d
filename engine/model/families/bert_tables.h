// What of a bert checkpoint is neither a slot nor the head, in f32 in host memory: position and
// type tables, norms. Models keep it, or a copy where they run.
#pragma once
#include <vector>

#include "engine/model/model.h"

namespace assay {

struct BertTables {
  struct Norm {
    Tensor gain, bias;  // [hidden]
    size_t bytes() const { return gain.bytes() + bias.bytes(); }
  };
  struct Layer {
    Norm attention_norm, output_norm;
  };
  Tensor positions;  // [position_offset + max_context, hidden]
  Tensor types;      // [type_vocab, hidden], or empty
  Norm embedding_norm;
  std::vector<Layer> layers;

  // NotFound; InvalidArgument: a tensor of another shape.
  static absl::StatusOr<BertTables> Read(const ModelSpec& spec, const Checkpoint& checkpoint);
  size_t bytes() const;
};

}  // namespace assay
