// Which layers hurt: measured, not guessed (design.md section 5, "Fall back").
#pragma once
#include <string>
#include <vector>

#include "engine/lifecycle/artifact.h"
#include "engine/lifecycle/layer_source.h"
#include "engine/lifecycle/verifier.h"

namespace assay {

// What a task's gate is about, 0 for a perfect candidate: mean KL, 1 - mean cosine, 1 - label
// agreement.
double LossOf(const VerificationResult& result, ModelTask task);

// The same with its interval (of label agreement none is known).
Estimate LossEstimate(const VerificationResult& result, ModelTask task);

// The most of it that the budget allows.
double LossLimit(const Budget& budget, ModelTask task);

struct LayerImpact {
  std::string slot;
  double loss = 0;  // LossOf when only this layer is quantized and all others are f32
};

struct RankingInputs {
  const ModelFamily& family;
  const ModelSpec& spec;
  const Checkpoint& checkpoint;
  const LayerSource& reference;
  const LinearMap& candidate;
  const std::map<std::string, double>& output_sqnr;  // dB, by slot
};
// The linear layers of the candidate that are quantized, worst first. The `exact` layers of lowest
// output SQNR are measured one at a time on a part of the evaluation set; the rest are left out.
absl::StatusOr<std::vector<LayerImpact>> RankLayers(const RankingInputs& inputs, Verifier& verifier,
                                                    int exact, const Verifier::Progress& progress);

// How many layers of the plan's model may fall back: floor(fraction * number of linear layers).
int MaxFallbackLayers(const std::vector<LinearSlot>& slots, double fraction);

// The fewest of the worst layers that bring `loss` down to `target` if losses add up (they do for
// small errors), at least one, at most `limit`.
int LayersToKeep(const std::vector<LayerImpact>& ranking, double loss, double target, int limit);

}  // namespace assay
