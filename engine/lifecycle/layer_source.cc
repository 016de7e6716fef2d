#include "engine/lifecycle/layer_source.h"

namespace assay {

absl::StatusOr<std::shared_ptr<const Model>> StreamedLayers::Layer(int layer) const {
  LinearMap linears;
  std::vector<LinearSlot> missing;
  for (const LinearSlot& slot : slots_) {
    std::shared_ptr<const QuantizedLinear>& linear = linears[slot.name];  // null: not there
    const bool table = slot.kind == LinearSlot::Kind::kEmbedding;
    const bool wanted = layer == spec_.layers
                            ? IsHead(spec_, slot)
                            : (slot.kind == LinearSlot::Kind::kLinear && slot.layer == layer) ||
                                  (table && layer == 0);
    if (wanted && table) linear = table_.lock();
    if (wanted && linear == nullptr) missing.push_back(slot);
  }
  ASSIGN_OR_RETURN(const LinearMap decoded, EncodeInF32(from_, missing, pool_));
  for (const auto& [name, linear] : decoded) linears[name] = linear;
  for (const LinearSlot& slot : slots_) {
    if (slot.kind == LinearSlot::Kind::kEmbedding && linears[slot.name] != nullptr)
      table_ = linears[slot.name];
  }
  ASSIGN_OR_RETURN(std::shared_ptr<const Model> model,
                   family_.build(spec_, from_, std::move(linears)));
  return model;
}

}  // namespace assay
