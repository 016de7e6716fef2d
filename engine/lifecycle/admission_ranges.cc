// Which layers are hard by the range of their inputs (msModelSlim's range_parm): what a recipe's
// `disable_level` keeps before anything is quantized, and the order of `fallback.by: range`.
#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/lifecycle/calibrate.h"
#include "engine/lifecycle/fallback.h"

namespace assay {
namespace {

constexpr size_t kRangeSamples = 5;  // of the calibration set: what range_parm is defined on

bool CanFallBack(const Admission& a, const LinearSlot& slot) {
  const SlotPlan& plan = a.plan.find(slot.name)->second;
  const absl::StatusOr<const QuantScheme*> scheme = FindScheme(plan.scheme);
  return slot.kind != LinearSlot::Kind::kEmbedding && !plan.kept && !plan.fallback && scheme.ok() &&
         !(*scheme)->is_floating();
}

}  // namespace

absl::StatusOr<std::vector<LayerScore>> RankByRange(Admission& a) {
  RETURN_IF_ERROR(LoadCalibration(a));
  CalibrationSet set{.name = a.calibration.name, .kind = a.calibration.kind};
  const size_t count = std::min(kRangeSamples, a.calibration.samples.size());
  set.samples.assign(a.calibration.samples.begin(),
                     a.calibration.samples.begin() + static_cast<ptrdiff_t>(count));
  StatisticsMap statistics;
  const auto wanted = [&](const LinearSlot& slot) {
    return CanFallBack(a, slot) ? std::optional(InputStatisticsOptions{}) : std::nullopt;
  };
  const CalibrationRun run{set, a.host.pool, [&](double fraction) {
                             a.SamplePeak();
                             return a.progress(fraction, "ranges of inputs");
                           }};
  LayerWalkSteps steps;
  steps.collectors = StatisticsInto(statistics, a.host.pool, wanted);
  steps.finish = [](std::shared_ptr<const Model> model, const std::vector<const LinearSlot*>&)
      -> absl::StatusOr<std::shared_ptr<const Model>> { return model; };
  RETURN_IF_ERROR(RejectDefect(a, WalkLayers(ReferenceLayers(a), run, steps)));
  // Layers that share an input (q, k and v) are one slot, so they go together.
  std::vector<LayerScore> scores;
  for (const LinearSlot& slot : a.slots) {
    const auto input = statistics.find(slot.name);
    if (input != statistics.end())
      scores.push_back({slot.name, slot.name, RangeParm(input->second)});
  }
  std::stable_sort(scores.begin(), scores.end(),
                   [](const LayerScore& x, const LayerScore& y) { return x.score > y.score; });
  return scores;
}

absl::Status DisableLevelStage(Admission& a) {
  ASSIGN_OR_RETURN(const std::vector<LayerScore> scores, RankByRange(a));
  const int most = MaxFallbackLayers(a.slots, a.recipe().max_fallback_fraction);
  const int wanted = std::min(a.recipe().disable_level, static_cast<int>(scores.size()));
  if (wanted > most) {
    return Reject(a, absl::StrFormat("disable_level L%d would keep %d layers in %s, the recipe's "
                                     "fallback allows %d of %d (max_fraction %.4g)",
                                     a.recipe().disable_level, wanted, a.recipe().fallback_scheme,
                                     most, scores.size(), a.recipe().max_fallback_fraction));
  }
  const std::vector<std::string> kept = LayersToKeep(scores, {}, {.wanted = wanted, .most = most});
  for (size_t i = 0; i < kept.size(); ++i) {
    SlotPlan& plan = a.plan.find(kept[i])->second;
    plan.scheme = a.recipe().fallback_scheme;
    plan.activation = a.recipe().fallback_activation;
    plan.fallback = plan.kept = true;
    plan.why = absl::StrFormat("disable_level L%d: range_parm %.1f (place %d of %d)",
                               a.recipe().disable_level, scores[i].score, i + 1, scores.size());
  }
  a.note = absl::StrFormat("%d of %d layers kept in %s, range_parm %.1f and more", kept.size(),
                           scores.size(), a.recipe().fallback_scheme,
                           kept.empty() ? 0 : scores[kept.size() - 1].score);
  return absl::OkStatus();
}

}  // namespace assay
