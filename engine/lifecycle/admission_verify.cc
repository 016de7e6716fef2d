// Proof: the reference, the comparison, and the one way out when the comparison fails.
#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/mapped_file.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/lifecycle/calibrate_keys.h"
#include "engine/lifecycle/fallback.h"
#include "engine/lifecycle/labelled.h"
#include "engine/lifecycle/ladder.h"
#include "engine/lifecycle/layer_check.h"

namespace assay {
namespace {

// Before a fallback layers are measured one at a time: all of them, because a layer's output error
// says little about what it costs (on the off-grid twin of SmolLM2 the one that costs a third of
// the loss has the 39th lowest SQNR of 120). Of models above this size only the least accurate.
constexpr uint64_t kMeasureAllBytes = uint64_t{4} << 30;  // at f32
constexpr int kExactLayers = 12;
// Budgets that the lower bound must exceed to end a comparison early where a better recipe waits:
// no fallback would mend this one.
constexpr double kHopelessOnLadder = 2;
constexpr int kFirstByRange = 2;      // layers kept at first, then twice as many each time
constexpr double kFallbackAim = 0.7;  // of the budget: a plan that barely passes is not one

std::string Figures(const VerificationResult& v, ModelTask task) {
  switch (task) {
    case ModelTask::kGenerate:
      return absl::StrFormat("mean KL %.5f nats, top-1 %.2f %%, perplexity ratio %.5f",
                             v.mean_kl.mean, 100 * v.top1_agreement.mean, v.perplexity_ratio);
    case ModelTask::kEmbed:
      return absl::StrFormat("mean cosine %.6f", v.cosine.mean);
    case ModelTask::kClassify:
      return absl::StrFormat("label agreement %.2f %%", 100 * v.label_agreement);
  }
  return "";
}

// The reference's own keys on the evaluation text, in windows as long as those that the stored
// channels were calibrated on.
absl::Status MeasureReferenceKeys(Admission& a) {
  if (!a.recipe().kv_key_channels || a.spec.task != ModelTask::kGenerate) return absl::OkStatus();
  constexpr size_t kDocuments = 4;
  const auto length = static_cast<size_t>(std::min(kKeyCalibration.window, a.spec.max_context));
  CalibrationSet set;
  for (const EvaluationSet* from : {&a.long_context, &a.evaluation}) {
    for (const std::vector<int32_t>& document : from->documents) {
      if (document.size() < length || set.samples.size() == kDocuments) continue;
      set.samples.emplace_back(document.begin(), document.begin() + static_cast<ptrdiff_t>(length));
    }
  }
  if (set.samples.empty()) return absl::OkStatus();  // the text is too short to tell
  ASSIGN_OR_RETURN(a.reference_keys, MeasureKeys(ReferenceLayers(a), {set, a.host.pool, nullptr}));
  return absl::OkStatus();
}

// The next slots that are checked together, from `first` on: those of a layer.
std::span<const LinearSlot> SlotsOfALayer(const Admission& a, size_t first) {
  size_t end = first + 1;
  while (end < a.slots.size() && a.slots[end].kind == LinearSlot::Kind::kLinear &&
         a.slots[first].kind == a.slots[end].kind && a.slots[first].layer == a.slots[end].layer) {
    ++end;
  }
  return std::span(a.slots).subspan(first, end - first);
}

// Slots as the checkpoint has them, in f32. Read again, unless the verifier keeps them: the whole
// reference need not be resident for one layer at a time.
absl::StatusOr<LinearMap> OriginalsOf(Admission& a, std::span<const LinearSlot> slots) {
  const std::string& head = a.verifier->reference().head_slot();
  if (slots.size() == 1 && slots[0].name == head)
    return LinearMap{{head, a.verifier->reference().head()}};
  ASSIGN_OR_RETURN(LinearMap linears, EncodeInF32(a.weights(), slots, a.host.pool));
  for (const LinearSlot& slot : slots) {
    for (const std::string& name : slot.weights) a.checkpoint->DropResident(name);
  }
  a.SamplePeak();
  return linears;
}

// The stored weight against the checkpoint's, as it will be multiplied, and the outputs of both.
// What is wrong, or nothing.
absl::StatusOr<std::string> CheckWeight(Admission& a, const LinearSlot& slot,
                                        const QuantizedLinear& original) {
  const std::string& name = slot.name;
  const std::shared_ptr<const QuantizedLinear>& linear = a.linears.find(name)->second;
  const CodesBy codes = !RoundedByMethod(a, slot) ? CodesBy::kNearest
                        : FeedsErrorsBack(a)      ? CodesBy::kFeedback
                                                  : CodesBy::kMethod;
  ASSIGN_OR_RETURN(const WeightCheck check,
                   CheckServedWeight(original, *linear, codes, a.host.pool));
  ASSIGN_OR_RETURN(const std::optional<double> sqnr,
                   a.verifier->reference().OutputSqnr(name, original, *linear));
  if (sqnr.has_value()) a.output_sqnr[name] = *sqnr;
  a.weight_sqnr[name] = check.sqnr_db;
  const auto integrity = a.integrity.find(name);
  if (!check.defect.empty())
    return absl::StrFormat("%s: %s (weight SQNR %.1f dB)", name, check.defect, check.sqnr_db);
  return integrity == a.integrity.end() ? "" : absl::StrCat(name, ": ", integrity->second);
}

absl::Status CheckWeights(Admission& a) {
  std::vector<std::string> defects;
  a.output_sqnr.clear();
  for (size_t first = 0; first < a.slots.size();) {
    const std::span<const LinearSlot> slots = SlotsOfALayer(a, first);
    first += slots.size();
    ASSIGN_OR_RETURN(const LinearMap originals, OriginalsOf(a, slots));
    for (const LinearSlot& slot : slots) {
      ASSIGN_OR_RETURN(std::string defect,
                       CheckWeight(a, slot, *originals.find(slot.name)->second));
      if (!defect.empty()) defects.push_back(std::move(defect));
    }
  }
  for (const auto& [slot, defect] : FindForeignKeys(a.reference_keys, a.linears))
    defects.push_back(absl::StrCat(slot, ": ", defect));
  if (defects.empty()) return absl::OkStatus();
  a.report.verification.defects = defects;
  DescribeLayers(a);
  return Reject(a, "defect in " + defects.front());
}

absl::Status MeasureSlice(Admission& a, Verifier& verifier, const std::string& name,
                          const Verifier::Extent& extent) {
  VerificationResult& whole = a.report.verification;
  if (!whole.failures.empty() || !whole.defects.empty()) return absl::OkStatus();
  const auto progress = [&](double fraction) {
    a.SamplePeak();
    return a.progress(fraction, "comparing: " + name);
  };
  SliceReport slice{.name = name};
  ASSIGN_OR_RETURN(slice.result,
                   verifier.Compare(*a.candidate, KvFormatOf(a.recipe()), extent, progress));
  whole.defects = slice.result.defects;
  whole.failures = CheckSlice(slice, a.report.decision.budget);
  a.report.slices.push_back(std::move(slice));
  return absl::OkStatus();
}

// Where the rest passed: decode steps that compute otherwise than prefill does, and what a
// quantized KV cache does far back.
absl::Status MeasureSlices(Admission& a) {
  a.report.slices.clear();
  const bool phases = std::any_of(a.plan.begin(), a.plan.end(), [](const auto& slot) {
    return slot.second.activation == ActivationMode::kA8Mix;
  });
  // A GPU has other kernels for decode steps, and multiplies few rows otherwise than many.
  if ((phases || OnGpu(a)) && a.spec.task == ModelTask::kGenerate) {
    constexpr int kRowsOfAStep = 64;
    RETURN_IF_ERROR(MeasureSlice(a, *a.verifier, a.evaluation.name + ", every row a decode step",
                                 {.decode_path = false,
                                  .decode_phase = true,
                                  .chunk_rows = OnGpu(a) ? kRowsOfAStep : kChunkRows}));
  }
  if (a.long_context.documents.empty()) return absl::OkStatus();
  return MeasureSlice(a, *a.long_verifier, a.long_context.name, {.decode_path = false});
}

absl::Status Measure(Admission& a) {
  const auto progress = [&](double fraction) {
    a.SamplePeak();
    return a.progress(fraction, "comparing with the reference");
  };
  InputProfile inputs(*a.candidate);
  const LinearObserver observer = inputs.observer();
  const Verifier::Extent extent{
      .observer = OnGpu(a) ? nullptr : &observer,  // a GPU shows no operands
      .early = Verifier::EarlyStop{
          .max_mean_kl = a.report.decision.budget.max_mean_kl,
          .hopeless = HasNextRung(a) ? kHopelessOnLadder : Verifier::kHopeless}};
  ASSIGN_OR_RETURN(a.report.verification,
                   a.verifier->Compare(*a.candidate, KvFormatOf(a.recipe()), extent, progress));
  a.inputs.clear();
  for (const auto& [name, slot] : inputs.slots()) a.inputs[name] = Summarize(slot);
  VerificationResult& v = a.report.verification;
  if (v.defects.empty()) {
    v.failures = CheckBudget(v, a.report.decision.budget, a.spec.task);
    RETURN_IF_ERROR(MeasureSlices(a));
  }
  if (v.defects.empty()) {
    NoteMeasuredPlan(a);
    return absl::OkStatus();
  }
  std::string where;  // layers on a GPU cannot be looked at one by one
  if (!OnGpu(a)) {
    ASSIGN_OR_RETURN(where, a.verifier->FindNotFinite(*a.candidate));
  }
  if (!where.empty()) v.defects.push_back("first value that is not finite: " + where);
  DescribeLayers(a);
  return Reject(a, "defect: " + absl::StrJoin(v.defects, "; "));
}

// Worst layers by measured output error, for the reason of a rejection.
std::string LeastAccurate(const Admission& a) {
  std::string worst;
  double lowest = std::numeric_limits<double>::infinity();
  for (const auto& [name, sqnr] : a.output_sqnr) {
    if (sqnr < lowest) {
      lowest = sqnr;
      worst = name;
    }
  }
  if (worst.empty()) return "";
  return absl::StrFormat("; least accurate layer %s (output SQNR %.1f dB)", worst, lowest);
}

// The figure that the ranking explains, and where it should be.
std::pair<double, double> LossAndTarget(const VerificationResult& v, const Budget& budget,
                                        ModelTask task) {
  switch (task) {
    case ModelTask::kGenerate:
      // Agreement and perplexity follow KL, but not by a formula: when they alone fail, halve it.
      return {v.mean_kl.high, std::min(kFallbackAim * budget.max_mean_kl, v.mean_kl.high / 2)};
    case ModelTask::kEmbed:
      return {1 - v.cosine.low, kFallbackAim * (1 - budget.min_mean_cosine)};
    case ModelTask::kClassify:
      return {1 - v.label_agreement, kFallbackAim * (1 - budget.min_label_agreement)};
  }
  return {0, 0};
}

// The first `count` of the ranking.
absl::Status KeepInHigherPrecision(Admission& a, const std::vector<LayerImpact>& ranking,
                                   int count) {
  const bool by_range = a.recipe().fallback_by_range;
  for (const LinearSlot& slot : a.slots) {
    const auto impact =
        std::find_if(ranking.begin(), ranking.begin() + count,
                     [&](const LayerImpact& layer) { return layer.slot == slot.name; });
    SlotPlan& plan = a.plan.find(slot.name)->second;
    if (impact == ranking.begin() + count || plan.fallback) continue;
    plan.scheme = a.recipe().fallback_scheme;
    plan.activation = a.recipe().fallback_activation;
    plan.fallback = true;
    plan.why = absl::StrFormat(
        "%s %s (place %d of %d)", by_range ? "range_parm" : "quantized alone it costs",
        by_range ? absl::StrFormat("%.1f", impact->loss) : absl::StrFormat("%.5f", impact->loss),
        impact - ranking.begin() + 1, ranking.size());
    RETURN_IF_ERROR(QuantizeSlot(a, slot, {}));
  }
  return BuildCandidate(a);
}

// The first rung: the same codes, activations as the recipe's fallback has them. No weight
// leaves its scheme; rounding activations to 8 bit is most of the error of W8A8.
// False when the recipe has no such rung.
absl::StatusOr<bool> WidenActivations(Admission& a) {
  const ActivationMode wide = a.recipe().fallback_activation;
  bool any = false;
  for (const LinearSlot& slot : a.slots) {
    SlotPlan& plan = a.plan.find(slot.name)->second;
    ASSIGN_OR_RETURN(const QuantScheme* scheme, FindScheme(plan.scheme));
    if (scheme->is_floating() || plan.activation == wide) continue;
    plan.why = absl::StrCat(std::string(Name(plan.activation)), " did not keep to the budget");
    plan.activation = wide;
    any = true;
  }
  if (any) {
    RETURN_IF_ERROR(QuantizeSlots(a));  // methods are deterministic: the same codes
    RETURN_IF_ERROR(BuildCandidate(a));
  }
  return any;
}

// An artifact that came from the cache is rewritten whole once its plan changes.
absl::Status StartNewArtifact(Admission& a) {
  if (a.stored == nullptr || a.writer != nullptr) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<ArtifactWriter>> writer = a.host.cache.NewArtifact(a.artifact_key);
  if (!writer.ok()) return absl::OkStatus();  // reported when it is stored
  a.writer = *std::move(writer);
  for (const LinearSlot& slot : a.slots) {
    ASSIGN_OR_RETURN(const QuantizedTensor tensor, a.stored->Read(slot.name));
    RETURN_IF_ERROR(a.writer->Add(slot.name, tensor, a.plan.find(slot.name)->second));
  }
  return absl::OkStatus();
}

// Each layer's loss when it alone is quantized, the worst first.
absl::StatusOr<std::vector<LayerImpact>> LossesOfLayers(Admission& a, int limit) {
  const int exact = a.report.bytes_f32 <= kMeasureAllBytes ? static_cast<int>(a.slots.size())
                                                           : std::max(kExactLayers, limit);
  ASSIGN_OR_RETURN(
      std::vector<LayerImpact> ranking,
      RankLayers({*a.family, a.spec, a.weights(), ReferenceLayers(a), a.linears, a.output_sqnr},
                 *a.verifier, exact, [&](double fraction) {
                   a.SamplePeak();
                   return a.progress(fraction, "measuring layers one at a time");
                 }));
  for (const LayerImpact& impact : ranking) a.plan[impact.slot].kl_contribution = impact.loss;
  return ranking;
}

// The same by the ranges of their inputs, as `loss`.
absl::StatusOr<std::vector<LayerImpact>> RangesOfLayers(Admission& a) {
  ASSIGN_OR_RETURN(const std::vector<LayerScore> scores, RankByRange(a));
  std::vector<LayerImpact> ranking;
  ranking.reserve(scores.size());
  for (const LayerScore& score : scores) ranking.push_back({score.layer, score.score});
  return ranking;
}

// The second rung: the layers that hurt most, in the recipe's fallback scheme, as many as it
// allows.
absl::Status KeepLayers(Admission& a) {
  const auto disabled = std::count_if(a.plan.begin(), a.plan.end(),
                                      [](const auto& slot) { return slot.second.fallback; });
  const int limit =
      MaxFallbackLayers(a.slots, a.recipe().max_fallback_fraction) - static_cast<int>(disabled);
  if (limit <= 0) {
    a.note = "the recipe allows no fallback";
    return absl::OkStatus();
  }
  const bool by_range = a.recipe().fallback_by_range;
  ASSIGN_OR_RETURN(const std::vector<LayerImpact> ranking,
                   by_range ? RangesOfLayers(a) : LossesOfLayers(a, limit));
  const auto [loss, target] =
      LossAndTarget(a.report.verification, a.report.decision.budget, a.spec.task);
  const int most = std::min(limit, static_cast<int>(ranking.size()));
  int kept = by_range ? std::min(kFirstByRange, most) : LayersToKeep(ranking, loss, target, most);
  while (kept > 0 && !a.report.verification.failures.empty()) {
    a.report.attempts.push_back(a.report.verification);
    RETURN_IF_ERROR(KeepInHigherPrecision(a, ranking, kept));
    RETURN_IF_ERROR(Measure(a));
    a.note =
        absl::StrFormat("%d of at most %d layers kept in %s: %s", kept, limit,
                        a.recipe().fallback_scheme, Figures(a.report.verification, a.spec.task));
    // The first choice, then all that is allowed; a range says nothing of how many will do.
    kept = kept == most ? 0 : by_range ? std::min(2 * kept, most) : most;
  }
  if (ranking.empty()) a.note = "no layer is left to keep in higher precision";
  return absl::OkStatus();
}

// A plan that was searched is searched again, with what its measurement taught.
absl::Status SearchFurther(Admission& a) {
  while (!a.report.verification.failures.empty()) {
    const VerificationResult before = a.report.verification;
    ASSIGN_OR_RETURN(const bool chosen, ChooseAgain(a));
    if (!chosen) return absl::OkStatus();
    a.report.attempts.push_back(before);
    RETURN_IF_ERROR(Measure(a));
    a.note = absl::StrCat("searched again: ", Figures(a.report.verification, a.spec.task));
  }
  return absl::OkStatus();
}

absl::Status FallBackByLayers(Admission& a) {
  const VerificationResult first = a.report.verification;
  ASSIGN_OR_RETURN(const bool widened, WidenActivations(a));
  if (widened) {
    a.report.attempts.push_back(first);
    RETURN_IF_ERROR(Measure(a));
    a.note = absl::StrCat("activations in ", std::string(Name(a.recipe().fallback_activation)),
                          ": ", Figures(a.report.verification, a.spec.task));
  }
  return a.report.verification.failures.empty() ? absl::OkStatus() : KeepLayers(a);
}

}  // namespace

absl::Status ReferenceStage(Admission& a) {
  if (NeedsWeights(a)) RETURN_IF_ERROR(ScanCheckpoint(a));
  // Proven where they were made; of an artifact, on this machine.
  if (a.folded != nullptr && a.proof.empty()) RETURN_IF_ERROR(ProveFolds(a));
  const auto progress = [&](double fraction) {
    a.SamplePeak();
    return a.progress(fraction, "running the reference");
  };
  const StreamedLayers layers = ReferenceLayers(a);
  absl::StatusOr<std::unique_ptr<Verifier>> verifier =
      Verifier::Create(layers, a.evaluation, a.host.pool, progress);
  RETURN_IF_ERROR(RejectDefect(a, verifier.status()));
  a.verifier = *std::move(verifier);
  if (!a.long_context.documents.empty()) {
    ASSIGN_OR_RETURN(a.long_verifier,
                     Verifier::Create(layers, a.long_context, a.host.pool, progress));
  }
  RETURN_IF_ERROR(MeasureReferenceKeys(a));
  a.note = absl::StrFormat("%.1f MB in f32", a.report.bytes_f32 / 1e6);
  return absl::OkStatus();
}

absl::Status VerifyStage(Admission& a) {
  RETURN_IF_ERROR(CheckWeights(a));
  RETURN_IF_ERROR(Measure(a));
  DescribeLayers(a);
  const VerificationResult& v = a.report.verification;
  a.note = absl::StrCat(v.tokens, " tokens: ", Figures(v, a.spec.task));
  return absl::OkStatus();
}

absl::Status FallBackStage(Admission& a) {
  UseBudgetKey(a);  // what happens from here on depends on what is allowed
  RETURN_IF_ERROR(StartNewArtifact(a));
  RETURN_IF_ERROR(SearchFurther(a));
  // Wider layers would break a limit of bytes; a better recipe comes before them.
  const bool bound = (a.search.has_value() && a.recipe().search.max_bytes > 0) || HasNextRung(a);
  if (!a.report.verification.failures.empty() && !bound) RETURN_IF_ERROR(FallBackByLayers(a));
  RETURN_IF_ERROR(CheckWeights(a));
  DescribeLayers(a);
  if (a.report.verification.failures.empty()) return absl::OkStatus();
  return Reject(a, absl::StrCat(absl::StrJoin(a.report.verification.failures, "; "),
                                LeastAccurate(a), a.note.empty() ? "" : " (" + a.note + ")"));
}

// What the user's own labelled data says, of the reference and of what will serve.
absl::Status TasksStage(Admission& a) {
  if (a.tokenizer == nullptr) {
    return absl::FailedPreconditionError("labelled data needs a tokenizer: labelled=" +
                                         a.request.labelled);
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(a.request.labelled));
  ASSIGN_OR_RETURN(const LabelledSet set, ReadLabelledSet(text, a.request.labelled, a.spec));
  RETURN_IF_ERROR(MakeReference(a));
  double done = 0;
  const auto progress = [&](double fraction) {
    return a.progress(done + fraction / 2, "labelled items");
  };
  ASSIGN_OR_RETURN(
      const std::vector<TaskFigure> exact,
      MeasureTask(*a.reference, set, {*a.tokenizer, a.host.pool, DType::kF32, progress}));
  a.reference.reset();
  done = 0.5;
  ASSIGN_OR_RETURN(const std::vector<TaskFigure> served,
                   MeasureTask(*a.candidate, set,
                               {*a.tokenizer, a.host.pool, KvFormatOf(a.recipe()), progress}));
  a.report.labelled_set = set.name;
  a.report.labelled_hash = set.hash;
  a.report.tasks.clear();
  std::vector<std::string> failures;
  for (size_t i = 0; i < exact.size(); ++i) {
    const TaskReport& task =
        a.report.tasks.emplace_back(TaskReport{exact[i].metric, exact[i].value, served[i].value});
    absl::StrAppendFormat(&a.note, "%s%s %.4g (reference %.4g)", i == 0 ? "" : ", ", task.metric,
                          task.candidate, task.reference);
    if (Recovers(task, a.report.decision.budget)) continue;
    failures.push_back(
        absl::StrFormat("%s %.4g < %.4g %% of the reference's %.4g", task.metric, task.candidate,
                        100 * a.report.decision.budget.min_task_recovery, task.reference));
  }
  if (failures.empty()) return absl::OkStatus();
  a.report.verification.failures.insert(a.report.verification.failures.end(), failures.begin(),
                                        failures.end());
  return Reject(a, absl::StrJoin(failures, "; "));
}

}  // namespace assay
