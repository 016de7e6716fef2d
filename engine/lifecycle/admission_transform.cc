// Transforms: scales found on calibration data, folded into the checkpoint on its way to the
// quantizer, and proven to leave the f32 function alone.
#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/lifecycle/calibrate.h"
#include "engine/lifecycle/reference_outputs.h"
#include "engine/model/rotation.h"
#include "quant/methods/hadamard.h"
#include "quant/methods/transforms.h"

namespace assay {
namespace {

constexpr char kStreamSigns[] = "stream_signs";  // s8 [hidden], of the embedding
constexpr int64_t kSampleRows = 256;             // of a layer's input, for searches
constexpr size_t kMeanSamples = 16;  // of the set, for transforms that ask for means alone
// Scales further apart than this leave f32's comfort, and say that a channel is dead.
constexpr float kMostScale = 1e4f;
constexpr size_t kProofDocuments = 2, kProofTokens = 64;

// Folding rounds a weight's element once, its producer's twice (1 / s, and the product), so a
// product of both carries at most three units of 2^-24 and its sum no more relative to the sum of
// magnitudes. Four times that for cancellation, added up over all linears in a row:
// A rotation rounds sums of m + log2(n / m) terms instead (12 of 4096 channels, 40 of 576); their
// errors are independent, so a weight carries the square root of that, no more than the above
// (2.6e-5 was measured where 8.7e-5 is allowed: 576 channels, 30 layers).
double FoldTolerance(const Admission& a) {
  return std::ldexp(12.0, -24) * static_cast<double>(a.slots.size());
}

// Whether this transform may rescale this group.
bool Wants(const Admission& a, const TransformSpec& spec, const FoldGroup& group) {
  if (group.kind == FoldGroup::Kind::kKeyQuery) return false;  // of the KV cache, not of a linear
  if (spec.norms_only && group.kind != FoldGroup::Kind::kNormLinear) return false;
  const auto plan = a.plan.find(group.slot);
  if (plan == a.plan.end()) return false;
  const absl::StatusOr<const QuantScheme*> scheme = FindScheme(plan->second.scheme);
  return scheme.ok() && !(*scheme)->is_floating();  // what is kept gains nothing
}

// At most `count` samples, spread over the set.
CalibrationSet Thinned(const CalibrationSet& all, size_t count) {
  CalibrationSet set{.name = all.name, .kind = all.kind, .hash = all.hash};
  count = std::min(count, all.samples.size());
  for (size_t i = 0; i < count; ++i)
    set.samples.push_back(all.samples[i * all.samples.size() / count]);
  return set;
}

// The scales of one group, per column of its consumers' input.
absl::StatusOr<ScaleChoice> FindScales(Admission& a, const TransformSpec& spec,
                                       const SharedInput& shared, const SlotPlan& plan) {
  if (spec.kind == TransformKind::kAwq) {
    ASSIGN_OR_RETURN(const QuantScheme* scheme, FindScheme(plan.scheme));
    return AwqScales(shared, {scheme, spec.grid, spec.duo, &a.host.pool});
  }
  const bool is_static = plan.activation == ActivationMode::kA8Tensor;
  const SmoothSearch search{.scope = is_static ? ActivationScope::kTensor : ActivationScope::kToken,
                            .pool = &a.host.pool};
  if (spec.kind == TransformKind::kFlexSmooth) return FlexSmooth(shared, search);
  if (spec.search) return SearchSmoothQuant(shared, search);
  ScaleChoice choice{.alpha = spec.alpha, .beta = 1 - spec.alpha};
  ASSIGN_OR_RETURN(choice.scales, SmoothQuantScales(shared, spec.alpha));
  return choice;
}

// Finds the folds of one transform, layer by layer.
class FoldSearch {
 public:
  FoldSearch(Admission& a, const TransformSpec& spec) : a_(a), spec_(spec) {}

  absl::Status Run() {
    for (const FoldGroup& group : a_.family->folds(a_.spec)) {
      if (Wants(a_, spec_, group)) groups_[group.slot].push_back(group);
    }
    if (groups_.empty()) {  // a plan of the search may have left nothing to gain
      return a_.search.has_value() ? absl::OkStatus() : NothingToFold();
    }
    LayerWalkSteps steps;
    steps.collectors =
        StatisticsInto(statistics_, a_.host.pool,
                       [&](const LinearSlot& slot) -> std::optional<InputStatisticsOptions> {
                         if (!groups_.contains(slot.name)) return std::nullopt;
                         return InputStatisticsOptions{.sample_rows = kSampleRows};
                       });
    steps.finish = [&](std::shared_ptr<const Model> model,
                       const std::vector<const LinearSlot*>& slots)
        -> absl::StatusOr<std::shared_ptr<const Model>> {
      for (const FoldGroup* group : InOrder(slots))
        RETURN_IF_ERROR(Annotate(Fit(*group), group->slot));
      for (const LinearSlot* slot : slots) statistics_.erase(slot->name);
      return model;  // the function is the same
    };
    // A channel's mean settles long before its largest value does.
    const bool means = spec_.kind == TransformKind::kAwq;
    const CalibrationSet set =
        Thinned(a_.calibration, means ? kMeanSamples : a_.calibration.samples.size());
    const CalibrationRun run{set, a_.host.pool, [&](double fraction) {
                               a_.SamplePeak();
                               return a_.progress(fraction, "fitting " + spec_.name);
                             }};
    return WalkLayers(ReferenceLayers(a_), run, steps);
  }

  // Of this transform alone.
  std::vector<Fold> TakeFolds() { return std::move(folds_); }

 private:
  // The groups of one layer, in the order in which they are fitted.
  std::vector<const FoldGroup*> InOrder(const std::vector<const LinearSlot*>& slots) const {
    std::vector<const FoldGroup*> order;
    for (const LinearSlot* slot : slots) {
      for (const FoldGroup& group : groups_.find(slot->name)->second) order.push_back(&group);
    }
    const auto rank = [](const FoldGroup* group) {
      return group->kind == FoldGroup::Kind::kUpDown        ? 0
             : group->kind == FoldGroup::Kind::kValueOutput ? 1
                                                            : 2;
    };
    if (spec_.from_output) {
      std::stable_sort(order.begin(), order.end(),
                       [&](const FoldGroup* x, const FoldGroup* y) { return rank(x) < rank(y); });
    }
    return order;
  }

  absl::Status NothingToFold() const {
    std::vector<std::string> kinds;
    for (const FoldGroup& group : a_.family->folds(a_.spec)) {
      const std::string kind(Name(group.kind));
      if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "nothing of this model can be rescaled by ", spec_.name, ": architecture=",
        a_.spec.architecture, " foldable=", kinds.empty() ? "none" : absl::StrJoin(kinds, ",")));
  }

  absl::Status Fit(const FoldGroup& group) {
    // What this transform has folded so far in the layer counts: v_proj and up_proj are consumers
    // of one group and producers of the next.
    ASSIGN_OR_RETURN(const std::unique_ptr<const Checkpoint> folded,
                     ApplyFolds(a_.weights(), folds_));
    std::vector<Tensor> weights;
    SharedInput shared{.input = &statistics_.find(group.slot)->second};
    for (const std::string& name : group.consumers) {
      ASSIGN_OR_RETURN(weights.emplace_back(), folded->ReadAll(name));
      folded->DropResident(name);
    }
    for (const Tensor& weight : weights) shared.weights.push_back(weight.view());
    std::vector<int32_t> producer_channel;
    for (int64_t j = 0; group.head_dim > 0 && j < group.columns(); ++j) {
      producer_channel.push_back(static_cast<int32_t>(group.ChannelOf(j)));
    }
    shared.producer_channel = producer_channel;
    ASSIGN_OR_RETURN(const ScaleChoice choice,
                     FindScales(a_, spec_, shared, a_.plan.find(group.slot)->second));
    Fold fold{.group = group,
              .scales = std::vector<float>(static_cast<size_t>(group.channels), 1.0f)};
    for (int64_t j = 0; j < group.columns(); ++j) {
      fold.scales[static_cast<size_t>(group.ChannelOf(j))] =
          std::clamp(choice.scales[static_cast<size_t>(j)], 1 / kMostScale, kMostScale);
    }
    const auto [least, most] = std::minmax_element(fold.scales.begin(), fold.scales.end());
    a_.report.folds.push_back({.transform = spec_.name,
                               .kind = std::string(Name(group.kind)),
                               .slot = group.slot,
                               .alpha = choice.alpha,
                               .beta = choice.beta,
                               .error = choice.error,
                               .plain_error = choice.plain_error,
                               .least_scale = *least,
                               .most_scale = *most});
    folds_.push_back(std::move(fold));
    return absl::OkStatus();
  }

  Admission& a_;
  const TransformSpec& spec_;
  std::map<std::string, std::vector<FoldGroup>, std::less<>> groups_;  // by slot
  StatisticsMap statistics_;
  std::vector<Fold> folds_;
};

bool SameGroup(const FoldGroup& a, const FoldGroup& b) {
  return a.kind == b.kind && a.slot == b.slot;
}

// What is quantized from now on: the checkpoint, rotated, then folded.
absl::Status UseRotation(Admission& a, std::vector<int8_t> signs) {
  ASSIGN_OR_RETURN(a.rotated, RotateStream(*a.checkpoint, *a.family, a.spec, signs));
  a.stream_signs = std::move(signs);
  return absl::OkStatus();
}

absl::Status UseFolds(Admission& a, const std::vector<Fold>& more) {
  for (const Fold& fold : more) {
    const auto same = std::find_if(a.folds.begin(), a.folds.end(), [&](const Fold& known) {
      return SameGroup(known.group, fold.group);
    });
    if (same == a.folds.end()) {
      a.folds.push_back(fold);
      continue;
    }
    for (size_t i = 0; i < fold.scales.size(); ++i) same->scales[i] *= fold.scales[i];
  }
  ASSIGN_OR_RETURN(a.folded,
                   ApplyFolds(a.rotated != nullptr ? *a.rotated : *a.checkpoint, a.folds));
  if (a.host.hooks.folded) a.folded = a.host.hooks.folded(std::move(a.folded));
  return absl::OkStatus();
}

// Outputs [rows, columns] of the model for the beginning of the evaluation set.
absl::StatusOr<std::vector<std::vector<float>>> ProofOutputs(Admission& a,
                                                             const Checkpoint& weights) {
  const bool decoder = a.spec.task == ModelTask::kGenerate;
  EvaluationSet set;
  for (size_t d = 0; d < std::min(kProofDocuments, a.evaluation.documents.size()); ++d) {
    std::vector<int32_t> tokens = a.evaluation.documents[d];
    if (decoder) tokens.resize(std::min(tokens.size(), kProofTokens));
    set.documents.push_back(std::move(tokens));
  }
  ASSIGN_OR_RETURN(ReferenceOutputs outputs,
                   ReferenceOutputs::Record(StreamedLayers(*a.family, a.spec, weights, a.host.pool),
                                            set, a.host.pool, [&a](double) {
                                              a.SamplePeak();
                                              return absl::OkStatus();
                                            }));
  std::vector<std::vector<float>> rows;
  for (size_t d = 0; d < set.documents.size(); ++d) {
    const size_t count = decoder ? set.documents[d].size() : 1;
    const std::span<const float> out =
        decoder ? outputs.Logits(d, 0, static_cast<int>(count)) : outputs.Output(d);
    const size_t columns = out.size() / count;
    for (size_t row = 0; row < count; ++row) {
      const std::span<const float> values = out.subspan(row * columns, columns);
      rows.emplace_back(values.begin(), values.end());
    }
  }
  return rows;
}

// Distance of two rows, relative to the spread of the first about its mean: logits mean the same
// when a constant is added.
double RelativeDistance(std::span<const float> a, std::span<const float> b) {
  double mean = 0, spread = 0, distance = 0;
  for (const float value : a) mean += value / static_cast<double>(a.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = static_cast<double>(a[i]) - b[i];
    spread += (a[i] - mean) * (a[i] - mean);
    distance += difference * difference;
  }
  return spread > 0 ? std::sqrt(distance / spread) : std::sqrt(distance);
}

absl::Status RememberOriginal(Admission& a) {
  if (!a.proof.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(a.proof, ProofOutputs(a, *a.checkpoint));
  return absl::OkStatus();
}

absl::Status Rotate(Admission& a, const TransformSpec& spec) {
  ASSIGN_OR_RETURN(const HadamardRotation rotation,
                   HadamardRotation::Create(a.spec.hidden, spec.seed));
  RETURN_IF_ERROR(
      UseRotation(a, std::vector<int8_t>(rotation.signs().begin(), rotation.signs().end())));
  a.report.folds.push_back(
      {.transform = spec.name, .kind = "residual_stream", .slot = a.slots.front().name});
  return UseFolds(a, {});
}

}  // namespace

bool FitsTransforms(const Admission& a) {
  return std::any_of(a.transforms.begin(), a.transforms.end(), [](const TransformSpec& spec) {
    return spec.kind != TransformKind::kHadamard;
  });
}

absl::Status ProveFolds(Admission& a) {
  RETURN_IF_ERROR(RememberOriginal(a));
  ASSIGN_OR_RETURN(const auto folded, ProofOutputs(a, a.weights()));
  double worst = 0;
  for (size_t row = 0; row < folded.size(); ++row) {
    const double distance = RelativeDistance(a.proof[row], folded[row]);
    if (!(distance <= worst)) worst = distance;  // NaN sticks
  }
  a.report.fold_difference = worst;
  a.report.fold_tolerance = FoldTolerance(a);
  if (worst <= a.report.fold_tolerance) return absl::OkStatus();
  return Reject(a, absl::StrFormat(
                       "defect: the transforms changed the f32 model: relative difference of its "
                       "outputs %.3g expected at most %.3g (%s)",
                       worst, a.report.fold_tolerance, absl::StrJoin(a.recipe().transforms, ", ")));
}

absl::Status TransformStage(Admission& a) {
  RETURN_IF_ERROR(ScanCheckpoint(a));
  if (FitsTransforms(a)) RETURN_IF_ERROR(LoadCalibration(a));
  RETURN_IF_ERROR(RememberOriginal(a));
  for (const TransformSpec& spec : a.transforms) {
    if (spec.kind == TransformKind::kHadamard) {
      RETURN_IF_ERROR(Rotate(a, spec));
      continue;
    }
    FoldSearch search(a, spec);
    RETURN_IF_ERROR(search.Run());
    RETURN_IF_ERROR(UseFolds(a, search.TakeFolds()));
  }
  RETURN_IF_ERROR(ProveFolds(a));
  std::string rotated;
  if (a.rotated != nullptr) {
    rotated = a.spec.tied_head ? "stream rotated (at both ends while serving: the head is tied), "
                               : "stream rotated, ";
  }
  a.note = absl::StrFormat("%s%d groups folded, f32 outputs differ by %.2g (at most %.2g)", rotated,
                           a.folds.size(), a.report.fold_difference, a.report.fold_tolerance);
  return absl::OkStatus();
}

absl::Status WriteFolds(const Admission& a, const LinearSlot& slot, QuantizedTensor& tensor) {
  if (slot.kind == LinearSlot::Kind::kEmbedding && !a.stream_signs.empty()) {
    const auto channels = static_cast<int64_t>(a.stream_signs.size());
    ASSIGN_OR_RETURN(Tensor signs, Tensor::Create(CpuDevice(), Shape{channels}, DType::kI8));
    std::copy(a.stream_signs.begin(), a.stream_signs.end(), signs.data<int8_t>());
    tensor.extra[kStreamSigns] = std::move(signs);
  }
  for (const Fold& fold : a.folds) {
    if (fold.group.slot != slot.name) continue;
    const auto channels = static_cast<int64_t>(fold.scales.size());
    ASSIGN_OR_RETURN(Tensor scales, Tensor::Create(CpuDevice(), Shape{channels}, DType::kF32));
    std::copy(fold.scales.begin(), fold.scales.end(), scales.data<float>());
    tensor.extra[kFoldPrefix + std::string(Name(fold.group.kind))] = std::move(scales);
  }
  return absl::OkStatus();
}

absl::Status ReadFolds(Admission& a) {
  a.folds.clear();
  a.folded.reset();
  a.rotated.reset();
  if (a.transforms.empty()) return absl::OkStatus();
  if (a.transforms.front().kind == TransformKind::kHadamard) {
    ASSIGN_OR_RETURN(const Tensor signs, a.stored->ReadExtra(a.slots.front().name, kStreamSigns));
    if (signs.dtype() != DType::kI8) {
      return absl::DataLossError("the signs of the rotation are not s8");
    }
    const auto* values = signs.data<int8_t>();
    const absl::Status used =
        UseRotation(a, std::vector<int8_t>(values, values + signs.shape().elements()));
    if (!used.ok()) return absl::DataLossError(used.message());
  }
  std::vector<Fold> folds;
  for (const FoldGroup& group : a.family->folds(a.spec)) {
    const absl::StatusOr<Tensor> scales =
        a.stored->ReadExtra(group.slot, kFoldPrefix + std::string(Name(group.kind)));
    if (absl::IsNotFound(scales.status())) continue;  // the recipe left it alone
    RETURN_IF_ERROR(scales.status());
    if (scales->dtype() != DType::kF32) {
      return absl::DataLossError(absl::StrCat("scales of a fold are not f32: slot=", group.slot));
    }
    const auto* values = scales->data<float>();
    folds.push_back({group, std::vector<float>(values, values + scales->shape().elements())});
  }
  const absl::Status used = UseFolds(a, folds);
  return used.ok() ? used : absl::DataLossError(used.message());
}

}  // namespace assay
