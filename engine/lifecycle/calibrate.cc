#include "engine/lifecycle/calibrate.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr int kChunk = 512;     // rows of one forward pass below the head
constexpr int kHeadChunk = 64;  // with logits, which are as wide as the vocabulary

// The collectors of some slots, and the first thing that went wrong.
class Collectors {
 public:
  // Of the slots among `slots` for which the factory gives one.
  static absl::StatusOr<Collectors> Make(const std::vector<const LinearSlot*>& slots,
                                         const CollectorFactory& factory) {
    Collectors collectors;
    for (const LinearSlot* slot : slots) {
      ASSIGN_OR_RETURN(InputCollector collector, factory(*slot));
      if (!collector) continue;
      collectors.wanted_.push_back(slot);
      collectors.by_name_[slot->name] = std::move(collector);
    }
    return collectors;
  }
  const std::vector<const LinearSlot*>& wanted() const { return wanted_; }
  bool empty() const { return wanted_.empty(); }
  LinearObserver observer() {
    return [this](const LinearSlot& slot, TensorView x, TensorView) {
      const auto found = by_name_.find(slot.name);
      if (found == by_name_.end() || !status_.ok()) return;
      status_ = Annotate(found->second(x, NextExact(slot, x.shape)),
                         absl::StrCat("statistics of ", slot.name));
    };
  }
  // Keeps the inputs of one sample that the unquantized model has; `observer` then hands them on.
  LinearObserver exact_observer() {
    exact_.clear();
    return [this](const LinearSlot& slot, TensorView x, TensorView) {
      if (!by_name_.contains(slot.name)) return;
      std::vector<float>& values = exact_[slot.name].values;
      values.insert(values.end(), x.as<float>(), x.as<float>() + x.shape.elements());
    };
  }
  const absl::Status& status() const { return status_; }

 private:
  struct ExactInput {
    std::vector<float> values;
    size_t used = 0;
  };
  TensorView NextExact(const LinearSlot& slot, const Shape& shape) {
    const auto found = exact_.find(slot.name);
    if (found == exact_.end()) return {};
    const float* rows = found->second.values.data() + found->second.used;
    found->second.used += static_cast<size_t>(shape.elements());
    return {reinterpret_cast<const std::byte*>(rows), shape, DType::kF32, &CpuDevice()};
  }

  std::vector<const LinearSlot*> wanted_;
  std::map<std::string, InputCollector, std::less<>> by_name_;
  std::map<std::string, ExactInput, std::less<>> exact_;
  absl::Status status_;
};

// The slots of one layer; layer = layers: of the head.
std::vector<const LinearSlot*> SlotsOf(const ModelSpec& spec, const std::vector<LinearSlot>& all,
                                       int layer) {
  std::vector<const LinearSlot*> slots;
  for (const LinearSlot& slot : all) {
    const bool here = layer == spec.layers
                          ? IsHead(spec, slot)
                          : slot.kind == LinearSlot::Kind::kLinear && slot.layer == layer;
    if (here) slots.push_back(&slot);
  }
  return slots;
}

size_t Longest(const CalibrationSet& set) {
  size_t longest = 1;
  for (const TokenDocument& sample : set.samples) longest = std::max(longest, sample.size());
  return longest;
}

// Runs samples through a part of one model.
class SampleRunner {
 public:
  // `logits`: the part includes the head, and its inputs are wanted.
  static absl::StatusOr<SampleRunner> Create(const Model& model, const CalibrationRun& run,
                                             const LayerPart& part, bool logits) {
    const auto longest = static_cast<int>(Longest(run.set));
    const bool decoder = model.spec().task == ModelTask::kGenerate;
    const int first = std::min(part.first, model.spec().layers - 1);
    // Encoders see whole sequences.
    const int chunk = decoder ? std::min(logits ? kHeadChunk : kChunk, longest) : longest;
    ASSIGN_OR_RETURN(ModelPass pass, ModelPass::Create(model,
                                                       {.context = longest,
                                                        .rows = chunk,
                                                        .out_rows = logits ? chunk : 1,
                                                        .first_layer = first,
                                                        .layers = std::max(1, part.end - first)},
                                                       run.pool));
    return SampleRunner(model.spec(), std::move(pass), chunk, logits);
  }

  // Layers [part.first, part.end) on one sample; `stream` [tokens, hidden], or empty.
  absl::Status Run(const TokenDocument& sample, LayerPart part, std::span<float> stream,
                   const LinearObserver* observer) {
    const auto hidden = static_cast<size_t>(spec_.hidden);
    for (size_t start = 0; start < sample.size(); start += static_cast<size_t>(chunk_)) {
      const size_t rows = std::min(static_cast<size_t>(chunk_), sample.size() - start);
      if (!stream.empty()) {
        part.stream = {reinterpret_cast<std::byte*>(stream.data() + start * hidden),
                       Shape{static_cast<int64_t>(rows), spec_.hidden}, DType::kF32, &CpuDevice()};
      }
      const ModelPass::Span span{0, static_cast<int>(start),
                                 std::span(sample).subspan(start, rows)};
      RETURN_IF_ERROR(pass_.Forward(std::span(&span, 1), logits_, observer, &part).status());
    }
    return absl::OkStatus();
  }

 private:
  SampleRunner(const ModelSpec& spec, ModelPass pass, int chunk, bool logits)
      : spec_(spec), pass_(std::move(pass)), chunk_(chunk), logits_(logits) {}
  const ModelSpec& spec_;
  ModelPass pass_;
  const int chunk_;
  const bool logits_;
};

// What flows between two layers, for every sample: [tokens, hidden] each.
using Streams = std::vector<std::vector<float>>;

struct LayerRun {
  LayerPart part;
  bool keep = false;  // the stream that the part computes replaces the one that entered it
  Collectors* collectors = nullptr;
};

// The model as it was given, which goes up beside the one that is quantized (both_inputs).
struct ExactWalk {
  std::shared_ptr<const Model> model;  // null: nobody asked
  Streams streams;
};

absl::Status RunLayer(const Model& model, const CalibrationRun& run, const LayerRun& layer,
                      Streams& streams, ExactWalk* exact = nullptr) {
  const bool head = layer.part.first == model.spec().layers;
  ASSIGN_OR_RETURN(SampleRunner runner, SampleRunner::Create(model, run, layer.part, head));
  const bool both = exact != nullptr && exact->model != nullptr;
  absl::StatusOr<SampleRunner> exact_runner =
      both ? SampleRunner::Create(*exact->model, run, layer.part, head)
           : absl::NotFoundError("one model");
  if (both) RETURN_IF_ERROR(exact_runner.status());
  // Also where nobody looks: a layer that is observed adds its products to the stream in a step of
  // its own, and what flows must not depend on that.
  const LinearObserver observer =
      layer.collectors == nullptr ? LinearObserver([](const LinearSlot&, TensorView, TensorView) {})
                                  : layer.collectors->observer();
  std::vector<float> copy;
  for (size_t i = 0; i < streams.size(); ++i) {
    if (both) {
      const LinearObserver keeper = layer.collectors->exact_observer();
      RETURN_IF_ERROR(
          exact_runner->Run(run.set.samples[i], layer.part, exact->streams[i], &keeper));
    }
    if (!layer.keep) copy = streams[i];
    RETURN_IF_ERROR(
        runner.Run(run.set.samples[i], layer.part, layer.keep ? streams[i] : copy, &observer));
    if (layer.collectors != nullptr) RETURN_IF_ERROR(layer.collectors->status());
  }
  return absl::OkStatus();
}

}  // namespace

CollectorFactory StatisticsInto(
    StatisticsMap& statistics, ThreadPool& pool,
    std::function<std::optional<InputStatisticsOptions>(const LinearSlot& slot)> options) {
  return [&statistics, &pool,
          options = std::move(options)](const LinearSlot& slot) -> absl::StatusOr<InputCollector> {
    const std::optional<InputStatisticsOptions> wanted = options(slot);
    if (!wanted.has_value()) return InputCollector();
    ASSIGN_OR_RETURN(InputStatistics fresh, InputStatistics::Create(slot.shape[1], *wanted));
    InputStatistics* const place =
        &statistics.insert_or_assign(slot.name, std::move(fresh)).first->second;
    return InputCollector([place, &pool](TensorView x, TensorView x_full) {
      return place->Update(x, place->options().cross ? x_full : TensorView(), &pool);
    });
  };
}

absl::Status CollectInputs(const Model& model, const CalibrationRun& run,
                           const CollectorFactory& factory) {
  std::vector<const LinearSlot*> slots;
  for (int layer = 0; layer <= model.spec().layers; ++layer) {
    const std::vector<const LinearSlot*> here = SlotsOf(model.spec(), model.slots(), layer);
    slots.insert(slots.end(), here.begin(), here.end());
  }
  ASSIGN_OR_RETURN(Collectors collectors, Collectors::Make(slots, factory));
  if (collectors.empty()) return absl::OkStatus();
  LayerPart part;
  bool head = false;
  for (const LinearSlot* slot : collectors.wanted()) {
    head = head || IsHead(model.spec(), *slot);
    part.end = head ? model.spec().layers : std::max(part.end, slot->layer + 1);
  }
  ASSIGN_OR_RETURN(SampleRunner runner, SampleRunner::Create(model, run, part, head));
  const LinearObserver observer = collectors.observer();
  for (size_t i = 0; i < run.set.samples.size(); ++i) {
    RETURN_IF_ERROR(runner.Run(run.set.samples[i], part, {}, &observer));
    RETURN_IF_ERROR(collectors.status());
    if (run.progress) {
      RETURN_IF_ERROR(
          run.progress(static_cast<double>(i + 1) / static_cast<double>(run.set.samples.size())));
    }
  }
  return absl::OkStatus();
}

absl::Status WalkLayers(const LayerSource& source, const CalibrationRun& run,
                        const LayerWalkSteps& steps) {
  const ModelSpec& spec = source.spec();
  const int layers = spec.layers;
  ExactWalk exact;
  Streams streams;
  for (const TokenDocument& sample : run.set.samples) {
    streams.emplace_back(sample.size() * static_cast<size_t>(spec.hidden));
  }
  if (steps.both_inputs) exact.streams = streams;
  for (int layer = 0; layer <= layers; ++layer) {
    ASSIGN_OR_RETURN(Collectors collectors,
                     Collectors::Make(SlotsOf(spec, source.slots(), layer), steps.collectors));
    const bool head = layer == layers;
    if (head && collectors.empty()) break;
    ASSIGN_OR_RETURN(std::shared_ptr<const Model> model, source.Layer(layer));
    if (steps.both_inputs) exact.model = model;
    const LayerPart part{.first = layer, .end = std::min(layer + 1, layers)};
    // The exact model goes up whether or not somebody looks at this layer.
    const bool seen = !collectors.empty() || steps.both_inputs;
    if (seen) {
      RETURN_IF_ERROR(RunLayer(*model, run,
                               {part, /*keep=*/!steps.feed_quantized && !head, &collectors},
                               streams, &exact));
    }
    if (!collectors.empty()) {
      exact.model.reset();
      ASSIGN_OR_RETURN(model, steps.finish(std::move(model), collectors.wanted()));
    }
    if (!head && (!seen || steps.feed_quantized)) {
      RETURN_IF_ERROR(RunLayer(*model, run, {part, /*keep=*/true, nullptr}, streams));
    }
    if (run.progress) {
      RETURN_IF_ERROR(run.progress(static_cast<double>(layer + 1) / (layers + 1)));
    }
  }
  return absl::OkStatus();
}

}  // namespace assay
