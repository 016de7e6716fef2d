// Finished requests, for whoever checks what was answered (engine/lifecycle/drift_monitor.h).
#pragma once
#include <cstdint>
#include <vector>

namespace assay {

struct ServedRequest {
  std::vector<int32_t> tokens;  // decoders: prompt and answer; encoders: the input
  int num_prompt = 0;
  std::vector<float> logprobs;       // decoders: of the answer's tokens, as they were computed then
  std::vector<int32_t> token_types;  // encoders; empty = all 0
};

// Neither method blocks or waits; both are thread-safe.
class TrafficWatch {
 public:
  virtual ~TrafficWatch() = default;
  // Whether the request that arrives now is wanted: a choice that does not depend on its content.
  virtual bool Sample() = 0;
  // A wanted request that was answered in full. On the engine's loop thread.
  virtual void Served(ServedRequest request) = 0;
};

}  // namespace assay
