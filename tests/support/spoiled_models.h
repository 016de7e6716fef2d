// Models whose memory went bad, for tests of whoever must notice. Header only: what it needs lies
// above this library.
#pragma once
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/lifecycle/slot_parts.h"
#include "engine/model/model.h"

namespace assay {

// Every other channel of the keys of two layers has a thousandth of its scale: what the cache
// stores of them is a thousand times larger, and takes the codes of the channels beside it. Null
// where keys have no scales.
inline std::shared_ptr<const Model> WithSpoiledKeys(const Checkpoint& checkpoint,
                                                    const Model& proven) {
  const ModelFamily* family = FamilyOf(checkpoint).value();
  LinearMap linears = proven.linears();
  bool any = false;
  for (const LinearSlot& slot : proven.slots()) {
    const auto& linear = linears.at(slot.name);
    const KeyParts* keys = linear == nullptr ? nullptr : linear->keys();
    if (keys == nullptr || slot.layer > 1) continue;
    KeyParts spoiled = *keys;
    for (size_t c = 0; c < spoiled.scale.size(); c += 2) spoiled.scale[c] *= 1e-3f;
    const Tensor weight = ReadSlotWeight(checkpoint, slot).value();
    QuantizedTensor codes = linear->problem().scheme->Encode(weight.view()).value();
    WriteKeyParts(spoiled, codes).IgnoreError();
    linears[slot.name] = std::make_shared<const QuantizedLinear>(
        QuantizedLinear::Create(codes, ReadSlotBias(checkpoint, slot).value(),
                                {.activation = linear->problem().activation})
            .value());
    any = true;
  }
  if (!any) return nullptr;
  return family->build(proven.spec(), checkpoint, std::move(linears)).value();
}

// The weight of the last down_proj in place of the one before.
inline std::shared_ptr<const Model> WithSpoiledWeight(const Checkpoint& checkpoint,
                                                      const Model& proven) {
  LinearMap linears = proven.linears();
  const auto down = [&](int from_last) {
    return absl::StrCat("model.layers.", proven.spec().layers - from_last, ".mlp.down_proj");
  };
  linears.find(down(2))->second = linears.find(down(1))->second;
  return FamilyOf(checkpoint).value()->build(proven.spec(), checkpoint, std::move(linears)).value();
}

}  // namespace assay
