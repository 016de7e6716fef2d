// Where a model runs: the CPU, or one GPU. What admission asks of a device when it packs weights,
// builds the candidate and checks what a recipe wants; the rest of the engine goes by
// Model::device().
#pragma once
#include <memory>

#include "engine/model/model.h"

namespace assay {

// Const methods are thread-safe. Outlives what it makes.
class ModelBackend {
 public:
  virtual ~ModelBackend() = default;
  virtual Device& device() const = 0;
  // Unimplemented, with the reason: this kind of model, or of KV cache, cannot run here.
  virtual absl::Status Takes(const ModelSpec& spec) const = 0;
  virtual absl::Status TakesKv(const KvFormat& format) const = 0;
  // Unimplemented: there is no product for it. What only the weight shows MakeLinear says.
  virtual absl::Status Supports(const QuantScheme& scheme, const Shape& shape,
                                ActivationMode activation) const = 0;
  // QuantScheme::Encode of a weight [n, k] f32 in host memory: the same bytes there, the same
  // errors, wherever it is computed. Internal: an error of the device's.
  virtual absl::StatusOr<QuantizedTensor> Encode(const QuantScheme& scheme,
                                                 TensorView weight) const = 0;
  // `bias` [n] f32 or empty. Status codes of QuantizedLinear::Create; Unimplemented names what the
  // device has no product for.
  virtual absl::StatusOr<QuantizedLinear> MakeLinear(const QuantizedTensor& w, Tensor bias,
                                                     ActivationMode activation) const = 0;
  // `linears` names every slot, each made here. Status codes of ModelFamily::build.
  virtual absl::StatusOr<std::unique_ptr<const Model>> Build(const ModelFamily& family,
                                                             const ModelSpec& spec,
                                                             const Checkpoint& checkpoint,
                                                             LinearMap linears) const = 0;
  // What figures that were measured here hold for: instruction sets, or a GPU with its driver.
  virtual std::string fingerprint() const = 0;
  // OK, or the error that ended the use of the device.
  virtual absl::Status health() const = 0;
};

const ModelBackend& CpuBackend();

}  // namespace assay
