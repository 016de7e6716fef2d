// The automatic plan: measure what every layer would cost in every candidate, choose, and, when the
// whole disagrees with the sum of its parts, choose again.
#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/lifecycle/fallback.h"

namespace assay {
namespace {

// Of the calibration set, what the search measures on.
constexpr size_t kSearchSamples = 2, kSearchTokens = 128;
constexpr double kAim = 0.7;         // of the budget: a plan that barely passes is not one
constexpr int kMostPlans = 4;        // measured as a whole
constexpr size_t kShownPoints = 16;  // of the predicted frontier, in the report

CalibrationSet SearchSet(const CalibrationSet& all) {
  CalibrationSet set{.name = all.name, .kind = all.kind, .hash = all.hash};
  const size_t count = std::min(kSearchSamples, all.samples.size());
  for (size_t i = 0; i < count; ++i) {  // spread over the set
    TokenDocument sample = all.samples[i * all.samples.size() / count];
    sample.resize(std::min(sample.size(), kSearchTokens));
    set.samples.push_back(std::move(sample));
  }
  return set;
}

PlanLimits Limits(const Admission& a, double max_error) {
  const SearchRecipe& search = a.recipe().search;
  PlanLimits limits{.max_error = max_error,
                    .max_fallback = MaxFallbackLayers(a.slots, a.recipe().max_fallback_fraction)};
  if (search.max_bytes == 0) return limits;
  uint64_t folds = 0;  // scales of transforms lie beside the codes
  for (const FoldGroup& group : a.family->folds(a.spec)) {
    if (!a.transforms.empty()) folds += static_cast<uint64_t>(group.channels) * sizeof(float);
  }
  limits.max_bytes = search.max_bytes - std::min(search.max_bytes, folds);
  return limits;
}

// What the plan may lose.
double MaxLoss(const Admission& a) {
  const double gate = LossLimit(a.report.decision.budget, a.spec.task);
  const double wanted = a.recipe().search.max_loss;
  return wanted > 0 ? std::min(wanted, gate) : gate;
}

// What the first choice aims at. Infinite where only bytes are limited: the least loss inside them.
double AimedLoss(const Admission& a) {
  const SearchRecipe& search = a.recipe().search;
  if (search.max_bytes > 0 && search.max_loss == 0) return std::numeric_limits<double>::infinity();
  return kAim * MaxLoss(a);
}

void Apply(Admission& a, PlanPoint point) {
  const SearchTable& table = *a.search;
  for (size_t i = 0; i < table.slots.size(); ++i) {
    const auto c = static_cast<size_t>(point.choice[i]);
    SlotPlan& plan = a.plan.find(table.slots[i].name)->second;
    plan.scheme = table.candidates[i][c].scheme;
    plan.activation = table.candidates[i][c].activation;
    plan.fallback = table.problem[i][c].fallback;
    plan.kl_contribution = table.problem[i][c].error;
    plan.why = absl::StrFormat("chosen of %d: alone it costs about %.6f",
                               table.candidates[i].size(), table.problem[i][c].error);
  }
  a.chosen = std::move(point);
}

absl::Status DescribeFrontier(Admission& a) {
  ASSIGN_OR_RETURN(const std::vector<PlanPoint> frontier,
                   PlanFrontier(a.search->problem, Limits(a, 0).max_fallback));
  const size_t shown = std::min(kShownPoints, frontier.size());
  for (size_t i = 0; i < shown; ++i) {
    const PlanPoint& point = frontier[shown == 1 ? 0 : i * (frontier.size() - 1) / (shown - 1)];
    a.report.candidates.push_back({.name = "predicted",
                                   .bytes = point.bytes,
                                   .loss = {point.error, point.error, point.error},
                                   .seconds = point.seconds,
                                   .predicted = true});
  }
  return absl::OkStatus();
}

int MeasuredPlans(const Admission& a) {
  return static_cast<int>(std::count_if(a.report.candidates.begin(), a.report.candidates.end(),
                                        [](const CandidateReport& c) { return !c.predicted; }));
}

}  // namespace

bool HasChoice(const Admission& a, const LinearSlot& slot) {
  const bool multiplied = slot.kind != LinearSlot::Kind::kEmbedding ||
                          (a.spec.tied_head && a.spec.task == ModelTask::kGenerate);
  return multiplied && !a.plan.find(slot.name)->second.kept;
}

absl::Status SearchStage(Admission& a) {
  RETURN_IF_ERROR(ScanCheckpoint(a));
  RETURN_IF_ERROR(LoadCalibration(a));
  std::vector<PlanCandidate> candidates;
  for (const std::string& spelling : a.recipe().search.candidates) {
    ASSIGN_OR_RETURN(candidates.emplace_back(),
                     ParsePlanCandidate(spelling, a.recipe().activation));
  }
  const CalibrationSet set = SearchSet(a.calibration);
  const StreamedLayers layers = ReferenceLayers(a);
  const SearchInputs inputs{*a.family,
                            a.weights(),
                            layers,
                            set,
                            a.host.pool,
                            [&](const LinearSlot& slot) { return HasChoice(a, slot); },
                            [&](double fraction) {
                              a.SamplePeak();
                              return a.progress(fraction, "every layer in every candidate");
                            },
                            a.backend};
  ASSIGN_OR_RETURN(a.search, MeasureCandidates(inputs, candidates));
  RETURN_IF_ERROR(DescribeFrontier(a));
  absl::StatusOr<PlanPoint> point = SolvePlan(a.search->problem, Limits(a, AimedLoss(a)));
  if (absl::IsNotFound(point.status())) {
    const uint64_t limit = a.recipe().search.max_bytes;  // with the scales of transforms
    return Reject(a, absl::StrCat("the search found no plan",
                                  limit == 0 ? "" : absl::StrCat(" in max_bytes=", limit), ": ",
                                  point.status().message()));
  }
  RETURN_IF_ERROR(point.status());
  Apply(a, *std::move(point));
  a.note =
      absl::StrFormat("%d layers x %d candidates: %.1f MB, loss about %.5f", a.search->slots.size(),
                      candidates.size(), a.chosen.bytes / 1e6, a.chosen.error);
  return absl::OkStatus();
}

void NoteMeasuredPlan(Admission& a) {
  if (!a.search.has_value()) return;
  const VerificationResult& v = a.report.verification;
  for (CandidateReport& earlier : a.report.candidates) earlier.chosen = false;
  a.report.candidates.push_back({.name = absl::StrCat("plan ", MeasuredPlans(a) + 1),
                                 .bytes = a.chosen.bytes,
                                 .loss = LossEstimate(v, a.spec.task),
                                 .seconds = a.chosen.seconds,
                                 .chosen = true,
                                 .why = v.failures.empty() ? "" : v.failures.front()});
}

absl::StatusOr<bool> ChooseAgain(Admission& a) {
  if (!a.search.has_value() || MeasuredPlans(a) >= kMostPlans) return false;
  // Predictions were off by this factor; figures other than the loss may have failed alone.
  const double measured = LossEstimate(a.report.verification, a.spec.task).high;
  const double off = std::max(measured / std::max(a.chosen.error, 1e-12), 1.0);
  const double aim = std::min(kAim * MaxLoss(a) / off, a.chosen.error / 2);
  absl::StatusOr<PlanPoint> point = SolvePlan(a.search->problem, Limits(a, aim));
  if (absl::IsNotFound(point.status())) return false;
  RETURN_IF_ERROR(point.status());
  if (point->choice == a.chosen.choice) return false;
  Apply(a, *std::move(point));
  RETURN_IF_ERROR(QuantizeSlots(a));
  RETURN_IF_ERROR(BuildCandidate(a));
  return true;
}

}  // namespace assay
