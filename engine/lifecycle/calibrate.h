// Shows the inputs of linear layers to whoever collects statistics of them, in bounded memory.
//
// Two ways. CollectInputs runs the model once over the calibration set: for statistics that are
// small enough to be kept for all wanted slots (ranges, per-channel maxima). WalkLayers goes up the
// stack layer by layer and keeps what flows between layers for every sample, so that the
// statistics of one layer are enough (Hessians), the whole walk costs one pass, and a layer may
// see what the quantized layers below it compute (GPTQ's true sequential order) at the cost of two,
// and what the model as it was given computes there as well (GPTAQ) at the cost of three.
//
// One thread calls; collectors run on it. Everything that is passed outlives the call.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/lifecycle/calibration_set.h"
#include "engine/lifecycle/layer_source.h"
#include "engine/lifecycle/model_pass.h"
#include "quant/methods/input_statistics.h"

namespace assay {

// Sees inputs x [rows, k] f32 of one slot: every token of the set once, in its order, up to 512
// rows at a time. `x_full`: the same rows as the unquantized model has them, in walks with
// `both_inputs`; else empty. Views die with the call.
using InputCollector = std::function<absl::Status(TensorView x, TensorView x_full)>;
// Called once for a slot before its first row; an empty function: the slot is not wanted.
// Embedding tables have an input only where they are also the head.
using CollectorFactory = std::function<absl::StatusOr<InputCollector>(const LinearSlot& slot)>;

// Slot name -> what is known about its input.
using StatisticsMap = std::map<std::string, InputStatistics, std::less<>>;
// Fills `statistics`, which outlives the collectors, for the slots to which `options` gives any;
// they start anew. A cross term needs a walk with `both_inputs`.
CollectorFactory StatisticsInto(
    StatisticsMap& statistics, ThreadPool& pool,
    std::function<std::optional<InputStatisticsOptions>(const LinearSlot& slot)> options);

struct CalibrationRun {
  const CalibrationSet& set;
  ThreadPool& pool;
  std::function<absl::Status(double fraction)> progress;  // or empty; an error ends the run
};

// One pass over the set, as far up the stack as a wanted slot lies. ResourceExhausted; whatever the
// factory and its collectors return.
absl::Status CollectInputs(const Model& model, const CalibrationRun& run,
                           const CollectorFactory& collectors);

struct LayerWalkSteps {
  CollectorFactory collectors;
  // The slots of a layer have seen all of the set (`slots`: those that were wanted, never empty;
  // the head comes last). `model` is what the source gave for the layer. Gives the one to pass the
  // layer with: `model`, or one rebuilt with other linears for these slots.
  std::function<absl::StatusOr<std::shared_ptr<const Model>>(
      std::shared_ptr<const Model> model, const std::vector<const LinearSlot*>& slots)>
      finish;
  // The layers above see what `finish` gave: every layer runs twice, once to be seen and once to be
  // passed.
  bool feed_quantized = false;
  // Collectors also get the inputs that the model as it was given has. Needs feed_quantized.
  bool both_inputs = false;
};
// Memory: ModelPass, one layer of the source, and 4 bytes x hidden for every token of the set;
// twice that, and one sample's inputs of a layer, with `both_inputs`. Status codes as above, and
// those of the source and of `finish`.
absl::Status WalkLayers(const LayerSource& source, const CalibrationRun& run,
                        const LayerWalkSteps& steps);

}  // namespace assay
