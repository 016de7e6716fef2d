#include "engine/lifecycle/fallback.h"

#include <algorithm>
#include <cmath>

#include "engine/lifecycle/variants.h"

namespace assay {
namespace {

// Part of the set on which a single layer is measured: enough to rank, cheap enough to repeat for
// every layer.
constexpr Verifier::Extent kExtent = {.documents = 2, .tokens = 64, .decode_path = false};

bool IsLinear(const LinearSlot& slot) { return slot.kind != LinearSlot::Kind::kEmbedding; }

}  // namespace

double LossOf(const VerificationResult& result, ModelTask task) {
  switch (task) {
    case ModelTask::kGenerate:
      return result.mean_kl.mean;
    case ModelTask::kEmbed:
      return 1 - result.cosine.mean;
    case ModelTask::kClassify:
      return 1 - result.label_agreement;
  }
  return 0;
}

Estimate LossEstimate(const VerificationResult& v, ModelTask task) {
  switch (task) {
    case ModelTask::kGenerate:
      return v.mean_kl;
    case ModelTask::kEmbed:
      return {1 - v.cosine.mean, 1 - v.cosine.high, 1 - v.cosine.low};
    case ModelTask::kClassify:
      return {1 - v.label_agreement, 1 - v.label_agreement, 1 - v.label_agreement};
  }
  return {};
}

double LossLimit(const Budget& budget, ModelTask task) {
  switch (task) {
    case ModelTask::kGenerate:
      return budget.max_mean_kl;
    case ModelTask::kEmbed:
      return 1 - budget.min_mean_cosine;
    case ModelTask::kClassify:
      return 1 - budget.min_label_agreement;
  }
  return 0;
}

int MaxFallbackLayers(const std::vector<LinearSlot>& slots, double fraction) {
  const auto linear = std::count_if(slots.begin(), slots.end(), IsLinear);
  // The small addend keeps 0.2 * 120 = 23.999... at 24.
  return static_cast<int>(std::floor(fraction * static_cast<double>(linear) + 1e-9));
}

int LayersToKeep(const std::vector<LayerImpact>& ranking, double loss, double target, int limit) {
  int count = 0;
  for (const LayerImpact& impact : ranking) {
    if (count >= limit || (count > 0 && loss <= target)) break;
    loss -= impact.loss;
    ++count;
  }
  return count;
}

absl::StatusOr<std::vector<LayerImpact>> RankLayers(const RankingInputs& inputs, Verifier& verifier,
                                                    int exact, const Verifier::Progress& progress) {
  std::vector<std::pair<double, std::string>> by_sqnr;
  for (const LinearSlot& slot : inputs.family.slots(inputs.spec)) {
    const QuantizedLinear& linear = *inputs.candidate.find(slot.name)->second;
    const auto sqnr = inputs.output_sqnr.find(slot.name);
    if (!IsLinear(slot) || linear.problem().scheme->is_floating()) continue;
    by_sqnr.emplace_back(sqnr == inputs.output_sqnr.end() ? 0 : sqnr->second, slot.name);
  }
  std::sort(by_sqnr.begin(), by_sqnr.end());
  by_sqnr.resize(std::min(by_sqnr.size(), static_cast<size_t>(std::max(exact, 0))));

  std::vector<Variant> variants;
  for (const auto& [sqnr, name] : by_sqnr) {
    const std::shared_ptr<const QuantizedLinear>& linear = inputs.candidate.find(name)->second;
    variants.push_back({name, [linear] { return linear; }});
  }
  ASSIGN_OR_RETURN(
      const std::vector<VerificationResult> results,
      CompareVariants({inputs.family, inputs.checkpoint, inputs.reference, verifier, kExtent},
                      variants, progress));
  std::vector<LayerImpact> ranking;
  for (size_t i = 0; i < variants.size(); ++i)
    ranking.push_back({variants[i].slot, LossOf(results[i], inputs.spec.task)});
  std::stable_sort(ranking.begin(), ranking.end(),
                   [](const LayerImpact& a, const LayerImpact& b) { return a.loss > b.loss; });
  return ranking;
}

}  // namespace assay
