// How much memory an admission will take and how much the model then serves in, predicted from
// shapes before any weight is read: what CpuDevice() will have given out (weights, caches, scratch;
// not the few vectors between the steps).
//
// Kernels pack weights as they like and say how much scratch they need, so both come from them: of
// every kind of layer a slice of made-up weights is packed. Any thread; takes milliseconds.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/lifecycle/artifact.h"
#include "engine/lifecycle/evaluation.h"
#include "engine/runtime/engine.h"

namespace assay {

struct MemoryInputs {
  const ModelSpec& spec;
  const std::vector<LinearSlot>& slots;
  const Plan& plan;           // what a search chooses instead is not known yet
  uint64_t other_bytes = 0;   // weights outside of the slots
  EngineOptions engine;       // with the KV type that serves
  bool on_gpu = false;        // candidate and engine lie there: the host's memory beside it
  bool serves = true;         // else the admission ends with its verdict
  bool calibrated = false;    // layers are quantized from the first to the last, then the rest
  bool long_context = false;  // verified there, too
  EvaluationSize evaluation;
};

struct MemoryEstimate {
  uint64_t weights = 0;  // as packed, all that is not linear included; on a GPU as stored
  uint64_t engine = 0;   // KV pool, scratch and logits
  uint64_t steady() const { return weights + engine; }
  uint64_t peak = 0;
  std::string moment;  // when: "reference", "quantize", "verify", "warm", "serve"
};

// A slot whose scheme or kernel is not to be had counts as f32: quantizing it will say so.
MemoryEstimate EstimateMemory(const MemoryInputs& inputs);

}  // namespace assay
