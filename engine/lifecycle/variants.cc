#include "engine/lifecycle/variants.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

// Some variants, from the first layer to the figures.
class VariantWalk {
 public:
  VariantWalk(const VariantInputs& inputs, ThreadPool& pool, std::vector<const Variant*> variants)
      : inputs_(inputs),
        pool_(pool),
        spec_(inputs.reference.spec()),
        exact_(spec_, inputs.verifier.set(), ExtentOf(inputs)),
        variants_(std::move(variants)),
        streams_(variants_.size()) {}

  static DocumentStreams::Extent ExtentOf(const VariantInputs& inputs) {
    return {static_cast<size_t>(inputs.extent.documents),
            static_cast<size_t>(inputs.extent.tokens)};
  }

  absl::Status Run(const Verifier::Progress& progress) {
    for (int layer = 0; layer < spec_.layers; ++layer) {
      RETURN_IF_ERROR(PassLayer(layer));
      if (progress) RETURN_IF_ERROR(progress(static_cast<double>(layer + 1) / (spec_.layers + 1)));
    }
    return absl::OkStatus();
  }

  // After Run.
  absl::StatusOr<VerificationResult> Figures(size_t variant) {
    // The head as it is has no part in a variant below it.
    std::optional<DocumentStreams>& own = streams_[variant];
    DocumentStreams& streams = own.has_value() ? *own : exact_;
    if (spec_.task != ModelTask::kGenerate) return EncoderFigures(streams);
    const std::string& head = inputs_.verifier.reference().head_slot();
    std::shared_ptr<const QuantizedLinear> linear = inputs_.verifier.reference().head();
    if (variants_[variant]->slot == head) {
      ASSIGN_OR_RETURN(linear, variants_[variant]->linear());
    }
    ASSIGN_OR_RETURN(const std::unique_ptr<const Model> model, Only(head, std::move(linear)));
    ASSIGN_OR_RETURN(ModelPass pass,
                     ModelPass::Create(*model, streams.pass_size(spec_.layers), pool_));
    return inputs_.verifier.CompareOutputs(
        [&](size_t document, int start, int rows) {
          return streams.Logits(pass, document, start, rows);
        },
        inputs_.extent, nullptr);
  }

 private:
  absl::StatusOr<VerificationResult> EncoderFigures(DocumentStreams& streams) {
    std::vector<float> rows;
    return inputs_.verifier.CompareOutputs(
        [&](size_t first, int, int count) -> absl::StatusOr<std::span<const float>> {
          rows.clear();
          for (size_t d = first; d < first + static_cast<size_t>(count); ++d)
            rows.insert(rows.end(), streams.values(d).begin(), streams.values(d).end());
          return rows;
        },
        inputs_.extent, nullptr);
  }

  // The layer at which a slot's output first counts.
  bool StartsAt(const LinearSlot& slot, int layer) const {
    return slot.kind == LinearSlot::Kind::kLinear
               ? slot.layer == layer
               : slot.kind == LinearSlot::Kind::kEmbedding && layer == 0;
  }

  absl::Status PassLayer(int layer) {
    ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model, inputs_.reference.Layer(layer));
    ASSIGN_OR_RETURN(ModelPass pass, ModelPass::Create(*model, exact_.pass_size(layer), pool_));
    for (size_t v = 0; v < variants_.size(); ++v) {
      if (streams_[v].has_value()) {
        RETURN_IF_ERROR(streams_[v]->Pass(pass, layer, nullptr));
        continue;
      }
      for (const LinearSlot& slot : inputs_.reference.slots()) {
        if (slot.name == variants_[v]->slot && StartsAt(slot, layer))
          RETURN_IF_ERROR(Start(v, *model, layer));
      }
    }
    return exact_.Pass(pass, layer, nullptr);
  }

  absl::Status Start(size_t variant, const Model& exact, int layer) {
    LinearMap linears = exact.linears();
    ASSIGN_OR_RETURN(linears[variants_[variant]->slot], variants_[variant]->linear());
    ASSIGN_OR_RETURN(const std::unique_ptr<const Model> model,
                     inputs_.family.build(spec_, inputs_.checkpoint, std::move(linears)));
    streams_[variant] = exact_;
    ASSIGN_OR_RETURN(ModelPass pass, ModelPass::Create(*model, exact_.pass_size(layer), pool_));
    return streams_[variant]->Pass(pass, layer, nullptr);
  }

  absl::StatusOr<std::unique_ptr<const Model>> Only(const std::string& slot,
                                                    std::shared_ptr<const QuantizedLinear> linear) {
    LinearMap linears;
    for (const LinearSlot& one : inputs_.reference.slots()) linears[one.name] = nullptr;
    linears[slot] = std::move(linear);
    return inputs_.family.build(spec_, inputs_.checkpoint, std::move(linears));
  }

  const VariantInputs& inputs_;
  ThreadPool& pool_;
  const ModelSpec& spec_;
  DocumentStreams exact_;  // of the reference
  const std::vector<const Variant*> variants_;
  std::vector<std::optional<DocumentStreams>> streams_;  // by variant, once it differs
};

// How many variants go up together.
size_t GroupSize(const VariantInputs& inputs) {
  const EvaluationSet& set = inputs.verifier.set();
  const DocumentStreams::Extent extent = VariantWalk::ExtentOf(inputs);
  size_t tokens = 0;
  for (size_t d = 0; d < std::min(extent.documents, set.documents.size()); ++d)
    tokens += std::min(extent.tokens, set.documents[d].size());
  const size_t one = tokens * static_cast<size_t>(inputs.reference.spec().hidden) * sizeof(float);
  return std::max<size_t>(1, inputs.most_stream_bytes / std::max<size_t>(1, one));
}

}  // namespace

absl::StatusOr<std::vector<VerificationResult>> CompareVariants(
    const VariantInputs& inputs, const std::vector<Variant>& variants,
    const Verifier::Progress& progress) {
  const std::vector<LinearSlot>& slots = inputs.reference.slots();
  for (const Variant& variant : variants) {
    const bool known = std::any_of(slots.begin(), slots.end(), [&](const LinearSlot& slot) {
      return slot.name == variant.slot;
    });
    if (!known) return absl::NotFoundError("no such slot: slot=" + variant.slot);
  }
  std::vector<VerificationResult> results;
  const size_t group = GroupSize(inputs);
  const auto all = static_cast<double>(std::max<size_t>(1, variants.size()));
  for (size_t begin = 0; begin < variants.size(); begin += group) {
    const size_t end = std::min(variants.size(), begin + group);
    std::vector<const Variant*> some;
    for (size_t v = begin; v < end; ++v) some.push_back(&variants[v]);
    const double share = static_cast<double>(end - begin) / all;
    const double before = static_cast<double>(begin) / all;
    // The way up takes most of the time, the figures the rest.
    constexpr double kWay = 0.7;
    VariantWalk walk(inputs, inputs.verifier.pool(), some);
    RETURN_IF_ERROR(walk.Run([&](double fraction) {
      return progress ? progress(before + share * kWay * fraction) : absl::OkStatus();
    }));
    for (size_t v = 0; v < some.size(); ++v) {
      ASSIGN_OR_RETURN(results.emplace_back(), walk.Figures(v));
      const double done = kWay + (1 - kWay) * static_cast<double>(v + 1) / some.size();
      if (progress) RETURN_IF_ERROR(progress(before + share * done));
    }
  }
  return results;
}

}  // namespace assay
