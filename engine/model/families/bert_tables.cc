#include "engine/model/families/bert_tables.h"

#include "absl/strings/str_cat.h"
#include "engine/model/families/bert_spec.h"
#include "engine/model/families/forward_parts.h"

namespace assay {
namespace {

// Checkpoints converted from TensorFlow call gain and bias gamma and beta.
absl::StatusOr<BertTables::Norm> ReadNorm(const Checkpoint& checkpoint, const std::string& name,
                                          int64_t hidden) {
  const bool old = checkpoint.Find(name + ".gamma").ok();
  BertTables::Norm norm;
  ASSIGN_OR_RETURN(norm.gain,
                   ReadTensor(checkpoint, name + (old ? ".gamma" : ".weight"), {hidden}));
  ASSIGN_OR_RETURN(norm.bias, ReadTensor(checkpoint, name + (old ? ".beta" : ".bias"), {hidden}));
  return norm;
}

// Only the positions that requests can have: sentence-transformers may use fewer than there are.
absl::StatusOr<Tensor> ReadPositions(const ModelSpec& spec, const Checkpoint& checkpoint,
                                     const std::string& name) {
  const int64_t used = int64_t{spec.position_offset} + spec.max_context;
  ASSIGN_OR_RETURN(const CheckpointTensor* table, checkpoint.Find(name));
  if (table->shape.rank != 2 || table->shape[0] < used || table->shape[1] != spec.hidden) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", name, " has another shape: shape=", ToString(table->shape),
                     " expected=at least ", ToString(Shape{used, spec.hidden})));
  }
  ASSIGN_OR_RETURN(Tensor positions, Tensor::Create(CpuDevice(), {used, spec.hidden}, DType::kF32));
  RETURN_IF_ERROR(checkpoint.ReadRows(
      name, 0, used, {positions.data<float>(), static_cast<size_t>(used * spec.hidden)}));
  return positions;
}

}  // namespace

absl::StatusOr<BertTables> BertTables::Read(const ModelSpec& spec, const Checkpoint& checkpoint) {
  BertTables tables;
  const std::string embeddings = spec.tensor_prefix + "embeddings.";
  ASSIGN_OR_RETURN(tables.positions,
                   ReadPositions(spec, checkpoint, embeddings + "position_embeddings.weight"));
  if (spec.type_vocab > 0) {
    ASSIGN_OR_RETURN(tables.types,
                     ReadTensor(checkpoint, embeddings + "token_type_embeddings.weight",
                                {spec.type_vocab, spec.hidden}));
  }
  ASSIGN_OR_RETURN(tables.embedding_norm,
                   ReadNorm(checkpoint, embeddings + "LayerNorm", spec.hidden));
  const EncoderNames& names = NamesOf(spec);
  tables.layers.resize(static_cast<size_t>(spec.layers));
  for (int i = 0; i < spec.layers; ++i) {
    const std::string prefix = EncoderLayerPrefix(spec, i);
    const auto read = [&](std::string_view norm) {
      return ReadNorm(checkpoint, prefix + std::string(norm), spec.hidden);
    };
    Layer& layer = tables.layers[static_cast<size_t>(i)];
    ASSIGN_OR_RETURN(layer.attention_norm, read(names.attention_norm));
    ASSIGN_OR_RETURN(layer.output_norm, read(names.output_norm));
  }
  return tables;
}

size_t BertTables::bytes() const {
  size_t total = positions.bytes() + types.bytes() + embedding_norm.bytes();
  for (const Layer& layer : layers)
    total += layer.attention_norm.bytes() + layer.output_norm.bytes();
  return total;
}

}  // namespace assay
