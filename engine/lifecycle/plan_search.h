// What every layer would cost in every candidate, measured: the input of the plan's solver
// (quant/policy/plan_solver.h).
//
// Two passes over a few calibration samples, never over the evaluation set, on which the result is
// judged. First, up the stack: each layer is encoded (rounding to nearest) in every candidate and
// its output is compared with the reference's, on the reference's own input: relative noise power
// r(layer, candidate). Then, layer by layer: the loss of the model when this layer alone is in its
// noisiest candidate, loss(layer). A small error's loss grows with its power, so that
//   error(layer, candidate) = loss(layer) * r(layer, candidate) / r(layer, noisiest).
// That is a model of the error: the chosen plan is verified as a whole.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/lifecycle/calibration_set.h"
#include "engine/lifecycle/layer_source.h"
#include "engine/model/backend.h"
#include "quant/policy/plan_solver.h"
#include "quant/policy/policy.h"

namespace assay {

struct SearchTable {
  std::vector<LinearSlot> slots;                       // those that have a choice
  std::vector<std::vector<PlanCandidate>> candidates;  // by slot: those that accept its shape
  // By slot and candidate: bytes of the stored weight; error as mean KL in nats (1 - cosine, 1 -
  // label agreement); seconds of a product with one row; fallback where the scheme is floating.
  PlanProblem problem;
  std::vector<std::vector<double>> noise;  // likewise: r above
};

struct SearchInputs {
  const ModelFamily& family;
  const Checkpoint& checkpoint;
  const LayerSource& reference;
  const CalibrationSet& set;  // a few short samples
  ThreadPool& pool;
  std::function<bool(const LinearSlot& slot)> wanted;
  std::function<absl::Status(double fraction)> progress;  // or empty; an error ends the search
  const ModelBackend* backend = &CpuBackend();            // whose layers are tried
};

// Memory: a layer's weights in every candidate, decoded at worst, one layer of the reference, and
// what CompareVariants takes. Tables that are only looked up have no choice. InvalidArgument: a
// slot that no candidate accepts, with the reasons; what the checkpoint and the verifier return.
absl::StatusOr<SearchTable> MeasureCandidates(const SearchInputs& inputs,
                                              const std::vector<PlanCandidate>& candidates);

}  // namespace assay
