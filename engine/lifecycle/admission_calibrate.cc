// Quantization with statistics of the layers' inputs: what rounding methods such as GPTQ and static
// activation scales need. One layer's statistics at a time (engine/lifecycle/calibrate.h).
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/lifecycle/calibrate.h"
#include "engine/lifecycle/slot_parts.h"
#include "quant/methods/activation_range.h"
#include "quant/methods/output_error.h"

namespace assay {
namespace {

// Outlier columns (LLM.int8()) are those whose largest input exceeds this many medians, at most
// this part of all: its fixed threshold of 6 would depend on the scale of the layer.
constexpr double kOutlierMedians = 6;
constexpr double kMostOutliers = 0.02;
// Output error of a row of GPTQ's, in nearest rounding's of that row; the worst seen is 0.92 on the
// off-grid twin of SmolLM2 and 1.36 on stories260K. Rows without error count as a hundredth of the
// mean.
constexpr double kMostOfRow = 2, kRowFloor = 0.01;
// Fewer tokens say nothing about ranges: a sentence is no calibration set.
constexpr int64_t kLeastTokens = 1024;

bool IsStatic(ActivationMode mode) { return StaticRangeOf(mode, {}).has_value(); }

bool NeedsParams(ActivationMode mode) {
  return IsStatic(mode) || mode == ActivationMode::kInt8Outlier;
}

bool IsMultiplied(const Admission& a, const LinearSlot& slot) {
  return slot.kind != LinearSlot::Kind::kEmbedding || a.spec.tied_head;
}

bool NeedsInput(const Admission& a, const LinearSlot& slot) {
  const SlotPlan& plan = a.plan.find(slot.name)->second;
  if (IsMultiplied(a, slot) && NeedsParams(plan.activation)) return true;
  return RoundedByMethod(a, slot) && a.rounding->needs() != StatisticsNeed::kNothing;
}

std::vector<int32_t> OutlierColumns(const std::vector<float>& absmax) {
  std::vector<float> sorted = absmax;
  std::sort(sorted.begin(), sorted.end());
  const auto most = static_cast<size_t>(kMostOutliers * static_cast<double>(sorted.size()));
  const float threshold = std::max(static_cast<float>(kOutlierMedians) * sorted[sorted.size() / 2],
                                   sorted[sorted.size() - 1 - most]);
  std::vector<int32_t> columns;
  for (size_t i = 0; i < absmax.size(); ++i) {
    if (absmax[i] > threshold) columns.push_back(static_cast<int32_t>(i));
  }
  return columns;
}

// The parameters of the plan's activation mode; `plan.why` tells them.
absl::StatusOr<ActivationParams> FindParams(const InputStatistics& input, const std::string& method,
                                            SlotPlan& plan) {
  ActivationParams params;
  if (plan.activation == ActivationMode::kInt8Outlier) {
    params.outliers = OutlierColumns(input.absmax());
    absl::StrAppend(&plan.why, "; ", params.outliers.size(), " outlier columns");
    return params;
  }
  ASSIGN_OR_RETURN(const ActivationRange range, FindActivationRange(input, method));
  const double low = std::min(range.min, 0.0), high = std::max(range.max, 0.0);
  const bool fp8 = plan.activation == ActivationMode::kFp8Tensor;
  const double step = fp8 ? std::max(high, -low) / 448 : (high - low) / 255;
  params.scale = static_cast<float>(std::max(step, 1e-12));
  params.zero =
      static_cast<int32_t>(std::clamp(std::nearbyint(-128 - low / params.scale), -128.0, 127.0));
  absl::StrAppendFormat(&plan.why, "; x in [%.4g, %.4g], seen [%.4g, %.4g]", low, high,
                        input.tensor_min(), input.tensor_max());
  return params;
}

absl::StatusOr<Tensor> RotatedRows(const HadamardRotation& rotation, TensorView x) {
  ASSIGN_OR_RETURN(Tensor rotated, Tensor::Create(CpuDevice(), x.shape, DType::kF32));
  const std::span<float> values(rotated.data<float>(), static_cast<size_t>(x.shape.elements()));
  std::copy_n(x.as<float>(), values.size(), values.begin());
  rotation.RotateRows(values);
  return rotated;
}

// Statistics are of what the codes multiply: the input after the rotation that the recipe gives it.
CollectorFactory AsMultiplied(const Recipe& recipe, CollectorFactory collectors) {
  return [&recipe, collectors = std::move(collectors)](
             const LinearSlot& slot) -> absl::StatusOr<InputCollector> {
    ASSIGN_OR_RETURN(InputCollector collector, collectors(slot));
    if (!collector) return collector;
    ASSIGN_OR_RETURN(const std::optional<HadamardRotation> rotation, InputRotation(recipe, slot));
    if (!rotation.has_value()) return collector;
    return InputCollector([collector = std::move(collector), rotation = *rotation](
                              TensorView x, TensorView x_full) -> absl::Status {
      ASSIGN_OR_RETURN(const Tensor rotated, RotatedRows(rotation, x));
      if (x_full.empty()) return collector(rotated.view(), x_full);
      ASSIGN_OR_RETURN(const Tensor full, RotatedRows(rotation, x_full));
      return collector(rotated.view(), full.view());
    });
  };
}

// One walk over the layers, quantizing each as soon as its inputs are known.
class CalibratedQuantization {
 public:
  CalibratedQuantization(Admission& a, const std::function<absl::Status()>& slot_done)
      : a_(a),
        slot_done_(slot_done),
        start_(a.host.clock.Now()),
        seconds_(absl::Seconds(a.recipe().rounding_seconds)) {
    for (const LinearSlot& slot : a.slots) cost_ += Cost(slot);
  }

  absl::Status Run() {
    const StatisticsNeed need = a_.rounding->needs();
    LayerWalkSteps steps;
    const auto wanted = [&](const LinearSlot& slot) -> std::optional<InputStatisticsOptions> {
      if (!NeedsInput(a_, slot)) return std::nullopt;
      const bool rounded = RoundedByMethod(a_, slot);
      return InputStatisticsOptions{
          .hessian = rounded && need == StatisticsNeed::kHessian,
          .cross = rounded && need == StatisticsNeed::kCross,
          .histogram = IsStatic(a_.plan.find(slot.name)->second.activation)};
    };
    steps.collectors = AsMultiplied(a_.recipe(), StatisticsInto(statistics_, a_.host.pool, wanted));
    steps.finish = [&](std::shared_ptr<const Model> model,
                       const std::vector<const LinearSlot*>& slots) {
      return Finish(std::move(model), slots);
    };
    // GPTQ makes up for what the layers below lost (the order of its reference code).
    steps.feed_quantized = FeedsErrorsBack(a_);
    steps.both_inputs = need == StatisticsNeed::kCross;
    const CalibrationRun run{a_.calibration, a_.host.pool, nullptr};
    RETURN_IF_ERROR(WalkLayers(ReferenceLayers(a_), run, steps));
    for (const LinearSlot& slot : a_.slots) {
      if (done_.contains(slot.name)) continue;
      RETURN_IF_ERROR(QuantizeSlot(a_, slot, {}));
      RETURN_IF_ERROR(slot_done_());
    }
    return absl::OkStatus();
  }

 private:
  static double Cost(const LinearSlot& slot) {
    return static_cast<double>(slot.shape[0]) * static_cast<double>(slot.shape[1]) *
           static_cast<double>(slot.shape[1]);
  }

  // When this slot's share of the time is over.
  absl::Time Deadline(const LinearSlot& slot) {
    spent_ += Cost(slot);
    if (seconds_ == absl::ZeroDuration()) return absl::InfiniteFuture();
    return start_ + seconds_ * (spent_ / cost_);
  }

  absl::StatusOr<std::shared_ptr<const Model>> Finish(std::shared_ptr<const Model> model,
                                                      const std::vector<const LinearSlot*>& slots) {
    LinearMap linears = model->linears();
    model.reset();
    for (const LinearSlot* slot : slots) {
      linears[slot->name].reset();  // in f32: its quantized one takes its place
      const auto input = statistics_.find(slot->name);
      const absl::Status status = QuantizeSlot(a_, *slot, {&input->second, Deadline(*slot)});
      if (!status.ok()) return a_.report.verdict.empty() ? Annotate(status, slot->name) : status;
      statistics_.erase(input);
      done_.insert(slot->name);
      linears[slot->name] = a_.linears[slot->name];
      RETURN_IF_ERROR(slot_done_());
    }
    ASSIGN_OR_RETURN(std::unique_ptr<const Model> next,
                     a_.family->build(a_.spec, a_.weights(), std::move(linears)));
    return std::shared_ptr<const Model>(std::move(next));
  }

  Admission& a_;
  const std::function<absl::Status()>& slot_done_;
  const absl::Time start_;
  const absl::Duration seconds_;
  double cost_ = 0, spent_ = 0;
  StatisticsMap statistics_;
  std::set<std::string, std::less<>> done_;
};

}  // namespace

bool RoundedByMethod(const Admission& a, const LinearSlot& slot) {
  const absl::StatusOr<const QuantScheme*> scheme =
      FindScheme(a.plan.find(slot.name)->second.scheme);
  // Tables are looked up row by row: their products, if any, do not decide how they are rounded.
  return scheme.ok() && !(*scheme)->is_floating() && slot.kind != LinearSlot::Kind::kEmbedding &&
         a.rounding->name() != "nearest";
}

bool FeedsErrorsBack(const Admission& a) {
  return absl::StartsWith(std::string(a.rounding->name()), "gptq");
}

bool NeedsCalibration(const Admission& a) {
  return std::any_of(a.slots.begin(), a.slots.end(),
                     [&](const LinearSlot& slot) { return NeedsInput(a, slot); });
}

StreamedLayers ReferenceLayers(const Admission& a) {
  return StreamedLayers(*a.family, a.spec, a.weights(), a.host.pool);
}

absl::Status RejectDefect(Admission& a, absl::Status status) {
  if (!absl::IsInvalidArgument(status)) return status;
  return Reject(a, absl::StrCat("defect in ", status.message()));
}

absl::Status MakeReference(Admission& a) {
  if (a.reference != nullptr) return absl::OkStatus();
  const LinearOptions exact;  // f32, weight-only: the checkpoint as this engine computes it
  absl::StatusOr<std::unique_ptr<const Model>> reference = BuildUniform(a.weights(), "f32", exact);
  RETURN_IF_ERROR(RejectDefect(a, reference.status()));
  a.reference = *std::move(reference);
  a.SamplePeak();
  return absl::OkStatus();
}

absl::StatusOr<CalibrationSet> ReadCalibration(const Admission& a, const CalibrationSize& size) {
  if (a.request.traffic.empty())
    return LoadCalibrationSet(a.recipe().calibration.path, a.tokenizer.get(), a.spec, size);
  // Prompts are shorter than windows of a text: all of them.
  const auto prompts = std::count(a.request.traffic.begin(), a.request.traffic.end(), '\n');
  return MakeCalibrationSet(a.request.traffic, "live requests", a.tokenizer.get(), a.spec,
                            {std::max(size.samples, static_cast<int>(prompts)), size.window});
}

absl::Status LoadCalibration(Admission& a) {
  if (!a.calibration.samples.empty()) return absl::OkStatus();
  const CalibrationRecipe& recipe = a.recipe().calibration;
  ASSIGN_OR_RETURN(a.calibration, ReadCalibration(a, {recipe.samples, recipe.window}));
  const CalibrationCoverage& coverage = a.calibration.coverage;
  a.report.calibration = {.set = a.calibration.name,
                          .hash = a.calibration.hash,
                          .samples = coverage.samples,
                          .tokens = coverage.sample_tokens,
                          .documents = coverage.documents,
                          .chat_share = coverage.chat_share(),
                          .scripts = coverage.scripts,
                          .coverage = ToText(coverage)};
  if (coverage.sample_tokens < kLeastTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the calibration set is too small: tokens=", coverage.sample_tokens,
                     " expected at least ", kLeastTokens, " (", a.calibration.name, ")"));
  }
  // Random ids stand in for both sets when there is no tokenizer.
  if (a.calibration.kind == CalibrationKind::kRandom) return absl::OkStatus();
  return CheckDisjoint(a.calibration, a.evaluation, Quoting(a));
}

absl::StatusOr<QuantizedTensor> QuantizeWeight(Admission& a, const LinearSlot& slot,
                                               const Tensor& weight, const SlotInput& input) {
  SlotPlan& plan = a.plan.find(slot.name)->second;
  ASSIGN_OR_RETURN(const QuantScheme* scheme, FindScheme(plan.scheme));
  const bool known = input.statistics != nullptr || a.rounding->needs() == StatisticsNeed::kNothing;
  const bool by_method = RoundedByMethod(a, slot) && known;
  const RoundingContext context = {&a.host.pool, &a.host.clock, input.deadline};
  absl::StatusOr<QuantizedTensor> encoded =
      by_method ? a.rounding->Quantize(weight.view(), *scheme, input.statistics, context)
                : a.backend->Encode(*scheme, weight.view());
  if (absl::IsFailedPrecondition(encoded.status())) {  // the data, not the model, is at fault
    return absl::FailedPreconditionError(
        absl::StrCat("calibration: ", encoded.status().message(), " (", a.calibration.name, ")"));
  }
  // The method is for the recipe's scheme; what fell back may have one that it cannot round.
  if (by_method && absl::IsInvalidArgument(encoded.status()) && plan.scheme != a.recipe().scheme)
    encoded = a.backend->Encode(*scheme, weight.view());
  RETURN_IF_ERROR(encoded.status());
  if (!NeedsParams(plan.activation) || !IsMultiplied(a, slot)) return encoded;
  if (input.statistics != nullptr) {
    ASSIGN_OR_RETURN(a.activation_params[slot.name],
                     FindParams(*input.statistics, a.recipe().activation_range, plan));
  }
  const auto params = a.activation_params.find(slot.name);
  if (params == a.activation_params.end()) {
    return absl::InternalError(absl::StrCat("no calibrated activation for ", slot.name));
  }
  RETURN_IF_ERROR(WriteActivationParams(params->second, plan.activation, *encoded));
  return encoded;
}

absl::StatusOr<std::string> FeedbackDefect(Admission& a, const LinearSlot& slot, TensorView weight,
                                           const QuantizedTensor& q, const InputStatistics& input) {
  ASSIGN_OR_RETURN(const OutputError error, OutputError::Create(input));
  const std::span<const float> exact(weight.as<float>(),
                                     static_cast<size_t>(weight.shape.elements()));
  std::vector<float> difference(exact.size());
  const auto errors_of = [&](const QuantizedTensor& codes) -> absl::StatusOr<std::vector<double>> {
    RETURN_IF_ERROR(
        codes.scheme->DecodeRows(codes, 0, weight.shape[0], std::span<float>(difference)));
    for (size_t i = 0; i < exact.size(); ++i) difference[i] = exact[i] - difference[i];
    return error.Rows(difference, &a.host.pool);
  };
  ASSIGN_OR_RETURN(const std::vector<double> stored, errors_of(q));
  ASSIGN_OR_RETURN(const QuantizedTensor fresh, a.backend->Encode(*q.scheme, weight));
  ASSIGN_OR_RETURN(const std::vector<double> nearest, errors_of(fresh));
  const double total = std::accumulate(stored.begin(), stored.end(), 0.0);
  const double limit = std::accumulate(nearest.begin(), nearest.end(), 0.0);
  double worst = 0;
  size_t at = 0;
  for (size_t row = 0; row < stored.size(); ++row) {
    const double floor = kRowFloor * limit / static_cast<double>(stored.size());
    const double ratio = stored[row] / std::max(nearest[row], floor);
    if (ratio > worst || std::isnan(ratio)) worst = ratio, at = row;
  }
  absl::StrAppendFormat(&a.plan.find(slot.name)->second.why,
                        "; output error %.3f of nearest rounding's, worst row %.2f",
                        total / std::max(limit, 1e-300), worst);
  if (!(total <= limit) || !(worst <= kMostOfRow)) {
    return absl::StrFormat(
        "output error on the calibration inputs is %.3g of nearest rounding's, in row %d %.3g: "
        "expected at most 1 and %.3g",
        total / limit, at, worst, kMostOfRow);
  }
  return std::string();
}

absl::Status QuantizeWithCalibration(Admission& a, const std::function<absl::Status()>& slot_done) {
  RETURN_IF_ERROR(LoadCalibration(a));
  return CalibratedQuantization(a, slot_done).Run();
}

}  // namespace assay
