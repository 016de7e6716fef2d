// What many models cost that differ from the reference in one linear each: rankings and searches
// quantize layer after layer alone. All of them go up the stack together: a variant is the
// reference below its layer, so it starts there, and every layer of the reference is read once for
// all. The same figures as running each model whole, bit for bit.
//
// Memory: one layer of the reference; 4 bytes x hidden for every measured token and variant, up to
// kMostStreamBytes of it at a time (else the reference is read several times).
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/lifecycle/layer_source.h"
#include "engine/lifecycle/verifier.h"

namespace assay {

struct Variant {
  std::string slot;
  // Called when the walk reaches the slot (for a tied embedding at its head once more).
  std::function<absl::StatusOr<std::shared_ptr<const QuantizedLinear>>()> linear;
};

struct VariantInputs {
  static constexpr size_t kMostStreamBytes = size_t{128} << 20;
  const ModelFamily& family;
  const Checkpoint& checkpoint;  // norms and tables of the models
  const LayerSource& reference;
  Verifier& verifier;
  Verifier::Extent extent;  // without the decode path
  size_t most_stream_bytes = kMostStreamBytes;
};

// By variant. Status codes of the source, of Variant::linear and of Verifier::CompareOutputs;
// NotFound: no such slot; whatever `progress`, which may be empty, returns.
absl::StatusOr<std::vector<VerificationResult>> CompareVariants(
    const VariantInputs& inputs, const std::vector<Variant>& variants,
    const Verifier::Progress& progress);

}  // namespace assay
