#include "engine/lifecycle/plan_search.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/lifecycle/calibrate.h"
#include "engine/lifecycle/fallback.h"
#include "engine/lifecycle/variants.h"

namespace assay {
namespace {

constexpr int64_t kRows = 64;       // of a sample, on which outputs are compared
constexpr int kTimedCalls = 5;      // the fastest counts
constexpr double kWalkShare = 0.2;  // of the search's time, about

// One layer in every candidate that accepts it, while the walk is at it.
struct SlotTrial {
  std::vector<PlanCandidate> candidates;
  std::vector<QuantizedLinear> linears;
  std::vector<SignalNoise> noise;
  std::vector<PlanOption> options;  // error: not yet
  size_t scratch = 0;               // of the candidates
  Arena arena;
  std::vector<float> expected, actual;
};

absl::StatusOr<QuantizedLinear> Encode(const SearchInputs& inputs, const LinearSlot& slot,
                                       const PlanCandidate& candidate, TensorView weight,
                                       uint64_t* bytes) {
  ASSIGN_OR_RETURN(const QuantScheme* scheme, FindScheme(candidate.scheme));
  ASSIGN_OR_RETURN(const QuantizedTensor codes, inputs.backend->Encode(*scheme, weight));
  if (bytes != nullptr) *bytes = codes.bytes();
  ASSIGN_OR_RETURN(Tensor bias, ReadSlotBias(inputs.checkpoint, slot));
  return inputs.backend->MakeLinear(codes, std::move(bias), candidate.activation);
}

absl::StatusOr<std::shared_ptr<SlotTrial>> MakeTrial(const SearchInputs& inputs,
                                                     const LinearSlot& slot,
                                                     const std::vector<PlanCandidate>& candidates) {
  ASSIGN_OR_RETURN(const Tensor weight, ReadSlotWeight(inputs.checkpoint, slot));
  for (const std::string& name : slot.weights) inputs.checkpoint.DropResident(name);
  auto trial = std::make_shared<SlotTrial>();
  std::vector<std::string> refusals;
  size_t scratch = 0;
  for (const PlanCandidate& candidate : candidates) {
    ASSIGN_OR_RETURN(const QuantScheme* scheme, FindScheme(candidate.scheme));
    if (const absl::Status accepted = scheme->Accepts(slot.shape); !accepted.ok()) {
      refusals.emplace_back(absl::StrCat(candidate.scheme, ": ", accepted.message()));
      continue;
    }
    PlanOption option{.fallback = scheme->is_floating()};
    absl::StatusOr<QuantizedLinear> linear =
        Encode(inputs, slot, candidate, weight.view(), &option.bytes);
    if (absl::IsUnimplemented(linear.status())) {  // by the device
      refusals.emplace_back(absl::StrCat(candidate.scheme, ": ", linear.status().message()));
      continue;
    }
    RETURN_IF_ERROR(linear.status());
    scratch = std::max(scratch, linear->scratch_bytes(kRows));
    trial->candidates.push_back(candidate);
    trial->linears.push_back(*std::move(linear));
    trial->options.push_back(option);
  }
  if (trial->linears.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("no candidate of the search takes ", slot.name,
                                                   ": ", absl::StrJoin(refusals, "; ")));
  }
  trial->scratch = scratch;
  trial->noise.resize(trial->linears.size());
  return trial;
}

absl::Status GiveScratch(const QuantizedLinear& exact, SlotTrial& trial) {
  const size_t most = std::max(trial.scratch, exact.scratch_bytes(kRows));
  ASSIGN_OR_RETURN(trial.arena, Arena::Create(CpuDevice(), most + 4096));
  return absl::OkStatus();
}

// y [rows, n] of a linear, in `out`.
void Multiply(const QuantizedLinear& linear, TensorView x, const SearchInputs& inputs,
              SlotTrial& trial, std::vector<float>& out) {
  const Shape shape{x.shape[0], linear.problem().shape[0]};
  out.resize(static_cast<size_t>(shape.elements()));
  const Arena::Scope scope(trial.arena);
  ComputeContext context{inputs.pool, trial.arena};
  linear.Forward(x, {reinterpret_cast<std::byte*>(out.data()), shape, DType::kF32, &CpuDevice()},
                 context);
}

void Time(const SearchInputs& inputs, TensorView x, SlotTrial& trial) {
  x.shape.dim[0] = 1;
  for (size_t i = 0; i < trial.linears.size(); ++i) {
    double best = std::numeric_limits<double>::infinity();
    for (int call = 0; call < kTimedCalls; ++call) {
      const auto begin = std::chrono::steady_clock::now();
      Multiply(trial.linears[i], x, inputs, trial, trial.actual);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      best = std::min(best, taken.count());
    }
    trial.options[i].seconds = best;
  }
}

// The layer that a walk is at, for collectors that multiply by it themselves.
class CurrentLayer final : public LayerSource {
 public:
  explicit CurrentLayer(const LayerSource& source) : source_(source) {}
  const ModelSpec& spec() const override { return source_.spec(); }
  const std::vector<LinearSlot>& slots() const override { return source_.slots(); }
  absl::StatusOr<std::shared_ptr<const Model>> Layer(int layer) const override {
    ASSIGN_OR_RETURN(std::shared_ptr<const Model> model, source_.Layer(layer));
    current_ = model;
    return model;
  }
  const QuantizedLinear& Linear(const std::string& slot) const {
    return *current_.lock()->linears().find(slot)->second;
  }

 private:
  const LayerSource& source_;
  mutable std::weak_ptr<const Model> current_;
};

// The observer of one slot.
InputCollector CompareWithExact(const SearchInputs& inputs, const CurrentLayer& reference,
                                const LinearSlot& slot, std::shared_ptr<SlotTrial> trial) {
  return [&inputs, &reference, name = slot.name, trial = std::move(trial), timed = false](
             TensorView x, TensorView) mutable {
    x.shape.dim[0] = std::min(x.shape[0], kRows);
    const QuantizedLinear& exact = reference.Linear(name);
    if (!std::exchange(timed, true)) {
      RETURN_IF_ERROR(GiveScratch(exact, *trial));
      Time(inputs, x, *trial);
    }
    Multiply(exact, x, inputs, *trial, trial->expected);
    for (size_t i = 0; i < trial->linears.size(); ++i) {
      Multiply(trial->linears[i], x, inputs, *trial, trial->actual);
      trial->noise[i].Add(trial->expected, trial->actual);
    }
    return absl::OkStatus();
  };
}

double RelativeNoise(const SignalNoise& n) { return n.signal > 0 ? n.noise / n.signal : 0; }

// The walk: everything but the errors of the options.
absl::StatusOr<SearchTable> MeasureNoise(const SearchInputs& inputs,
                                         const std::vector<PlanCandidate>& candidates) {
  std::map<std::string, std::shared_ptr<SlotTrial>> trials;  // of the layer that is walked
  const CurrentLayer reference(inputs.reference);
  SearchTable table;
  LayerWalkSteps steps;
  steps.collectors = [&](const LinearSlot& slot) -> absl::StatusOr<InputCollector> {
    if (!inputs.wanted(slot)) return InputCollector();
    ASSIGN_OR_RETURN(std::shared_ptr<SlotTrial> trial, MakeTrial(inputs, slot, candidates));
    trials[slot.name] = trial;
    return CompareWithExact(inputs, reference, slot, std::move(trial));
  };
  steps.finish = [&](std::shared_ptr<const Model> model,
                     const std::vector<const LinearSlot*>& slots)
      -> absl::StatusOr<std::shared_ptr<const Model>> {
    for (const LinearSlot* slot : slots) {
      SlotTrial& trial = *trials.find(slot->name)->second;
      std::vector<double>& noise = table.noise.emplace_back();
      for (const SignalNoise& of : trial.noise) noise.push_back(RelativeNoise(of));
      table.slots.push_back(*slot);
      table.candidates.push_back(std::move(trial.candidates));
      table.problem.push_back(std::move(trial.options));
    }
    trials.clear();
    return model;
  };
  const CalibrationRun run{inputs.set, inputs.pool, [&](double fraction) {
                             return inputs.progress ? inputs.progress(kWalkShare * fraction)
                                                    : absl::OkStatus();
                           }};
  RETURN_IF_ERROR(WalkLayers(reference, run, steps));
  return table;
}

// Turns relative noise into loss: every slot alone in its noisiest candidate.
absl::Status MeasureLoss(const SearchInputs& inputs, Verifier& verifier, SearchTable& table) {
  std::vector<Variant> variants;
  std::vector<size_t> of;  // by variant: its slot
  for (size_t i = 0; i < table.slots.size(); ++i) {
    const std::vector<double>& noise = table.noise[i];
    const auto noisiest =
        static_cast<size_t>(std::max_element(noise.begin(), noise.end()) - noise.begin());
    if (!(noise[noisiest] > 0)) continue;
    of.push_back(i);
    variants.push_back(
        {table.slots[i].name,
         [&inputs, &slot = table.slots[i], &candidate = table.candidates[i][noisiest]]()
             -> absl::StatusOr<std::shared_ptr<const QuantizedLinear>> {
           ASSIGN_OR_RETURN(const Tensor weight, ReadSlotWeight(inputs.checkpoint, slot));
           for (const std::string& name : slot.weights) inputs.checkpoint.DropResident(name);
           ASSIGN_OR_RETURN(QuantizedLinear linear,
                            Encode(inputs, slot, candidate, weight.view(), nullptr));
           return std::make_shared<const QuantizedLinear>(std::move(linear));
         }});
  }
  ASSIGN_OR_RETURN(
      const std::vector<VerificationResult> results,
      CompareVariants(
          {inputs.family, inputs.checkpoint, inputs.reference, verifier, {.decode_path = false}},
          variants, [&](double fraction) {
            return inputs.progress ? inputs.progress(kWalkShare + (1 - kWalkShare) * fraction)
                                   : absl::OkStatus();
          }));
  for (size_t v = 0; v < variants.size(); ++v) {
    const std::vector<double>& noise = table.noise[of[v]];
    const double most = *std::max_element(noise.begin(), noise.end());
    const double loss = std::max(0.0, LossOf(results[v], inputs.reference.spec().task));
    for (size_t c = 0; c < noise.size(); ++c)
      table.problem[of[v]][c].error = loss * noise[c] / most;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SearchTable> MeasureCandidates(const SearchInputs& inputs,
                                              const std::vector<PlanCandidate>& candidates) {
  ASSIGN_OR_RETURN(SearchTable table, MeasureNoise(inputs, candidates));
  const EvaluationSet set{
      .name = inputs.set.name, .hash = inputs.set.hash, .documents = inputs.set.samples};
  ASSIGN_OR_RETURN(const std::unique_ptr<Verifier> verifier,
                   Verifier::Create(inputs.reference, set, inputs.pool));
  RETURN_IF_ERROR(MeasureLoss(inputs, *verifier, table));
  return table;
}

}  // namespace assay
