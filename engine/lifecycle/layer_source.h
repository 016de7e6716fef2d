// The f32 reference, one layer at a time: what walks up the stack (calibration, the reference's
// outputs, layers quantized one by one) needs no more of it resident.
//
// One thread uses a source; what it gives may be used from another.
#pragma once
#include <memory>
#include <vector>

#include "engine/model/model.h"

namespace assay {

class LayerSource {
 public:
  virtual ~LayerSource() = default;
  virtual const ModelSpec& spec() const = 0;
  virtual const std::vector<LinearSlot>& slots() const = 0;
  // A model with at least the slots of `layer`, with layer 0 the embedding; layer = spec().layers:
  // with the output head of a decoder. ResourceExhausted; InvalidArgument: NaN or infinity in a
  // weight (names the slot); whatever the checkpoint returns.
  virtual absl::StatusOr<std::shared_ptr<const Model>> Layer(int layer) const = 0;
};

// Decodes a layer each time it is asked, and lets go of the pages of the file that it came from. A
// table that is the head too is decoded once while somebody holds layer 0.
class StreamedLayers final : public LayerSource {
 public:
  // All but the spec outlive the source. Not to be asked from within the pool.
  StreamedLayers(const ModelFamily& family, ModelSpec spec, const Checkpoint& checkpoint,
                 ThreadPool& pool)
      : family_(family),
        spec_(std::move(spec)),
        slots_(family.slots(spec_)),
        from_(checkpoint),
        pool_(pool) {}
  const ModelSpec& spec() const override { return spec_; }
  const std::vector<LinearSlot>& slots() const override { return slots_; }
  absl::StatusOr<std::shared_ptr<const Model>> Layer(int layer) const override;

 private:
  const ModelFamily& family_;
  const ModelSpec spec_;
  const std::vector<LinearSlot> slots_;
  const Checkpoint& from_;
  ThreadPool& pool_;
  mutable std::weak_ptr<const QuantizedLinear> table_;  // of the last layer 0
};

// A model that is resident anyway.
class ResidentLayers final : public LayerSource {
 public:
  explicit ResidentLayers(std::shared_ptr<const Model> model) : model_(std::move(model)) {}
  const ModelSpec& spec() const override { return model_->spec(); }
  const std::vector<LinearSlot>& slots() const override { return model_->slots(); }
  absl::StatusOr<std::shared_ptr<const Model>> Layer(int) const override { return model_; }

 private:
  const std::shared_ptr<const Model> model_;
};

}  // namespace assay
