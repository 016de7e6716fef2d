// On which device a model is served, and what its memory there is spent on: fixed at admission,
// with the arithmetic in words.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/cuda/gpus.h"
#include "engine/runtime/engine.h"
#include "quant/policy/policy.h"

namespace assay {

// The host's processor, and GPUs: profiles are what counts, devices that cannot be used say why.
HardwareInfo DescribeHardware(const Gpus& gpus);

// The memory of a GPU when a model moves in (design: weights once, one scratch of the largest step,
// the rest keys and values).
struct GpuMemory {
  // Bytes.
  uint64_t free = 0;         // before anything of this version
  uint64_t weights = 0;      // as they lie there
  uint64_t scratch = 0;      // of the largest step
  uint64_t comparisons = 0;  // of served requests with their reference
  uint64_t graphs = 0;       // allowance for captured steps
  uint64_t reserve = 0;      // kept: 512 MiB and 5 % of the device
  uint64_t kv = 0;           // bound of the KV pool; 0: an encoder
  uint64_t sequence = 0;     // keys and values of the longest sequence
  int64_t kv_tokens = 0;
  int64_t context_tokens = 0;  // of the longest sequence
  bool clipped = false;        // to fewer than the model has
  bool room_for_next = false;  // for the next version beside this one

  std::string ToString() const;  // "79.1 GB free = 8.0 weights + ... "
};

struct GpuMemoryInputs {
  uint64_t free = 0, total = 0, weights = 0, scratch = 0, comparisons = 0;
  uint64_t admission = 0;      // beside weights, until it serves: passes of the proof, timings
  uint64_t wanted_kv = 0;      // bound, as configured; 0: what is left
  uint64_t token_bytes = 0;    // keys and values of one position; 0: an encoder
  int64_t context_tokens = 0;  // of the longest sequence
  // For a sequence of so many there must be room, at most context_tokens; what lies between is
  // clipped where memory is short.
  int64_t least_tokens = 0;
  int64_t useful_tokens = 0;  // more are never used
};
// ResourceExhausted, with the numbers: no room for least_tokens.
absl::StatusOr<GpuMemory> PlanGpuMemory(const GpuMemoryInputs& inputs);
// Before a model moves in. Likewise.
absl::Status RoomForAdmission(const GpuMemoryInputs& inputs);

}  // namespace assay
