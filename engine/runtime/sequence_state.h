// One accepted generation request and everything that changes while it runs. Created by the thread
// that submits, then owned by the scheduler and touched by the loop thread only.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/runtime/kv_cache.h"
#include "engine/runtime/sampler.h"
#include "engine/runtime/sequence.h"
#include "engine/runtime/text_stream.h"

namespace assay {

struct Sequence {
  SequenceId id = 0;  // in order of arrival
  SamplingParams sampling;
  absl::Time arrival, deadline = absl::InfiniteFuture();
  absl::Time start_by = absl::InfiniteFuture();  // may not wait in the queue any longer
  TraceId trace;

  // scheduler
  std::vector<int32_t> tokens;  // prompt, then what was generated
  int num_prompt = 0;
  int num_computed = 0;  // leading tokens whose keys and values are in the cache
  KvTable kv;

  // engine
  TokenSink sink;
  std::optional<TextStream> text;
  TokenCounts counts;      // kept only when a penalty asks for it
  int num_first_seen = 0;  // tokens that were computed or taken from the cache at least once
  Usage usage;
  bool started = false;  // has left the queue
  absl::Time last_token;
  bool watched = false;         // the traffic's watch wants it
  bool hides_logprob = false;   // and the client does not want its log probabilities
  std::vector<float> logprobs;  // of what was generated, while watched

  int num_generated() const { return static_cast<int>(tokens.size()) - num_prompt; }
  int num_pending() const { return static_cast<int>(tokens.size()) - num_computed; }
};

}  // namespace assay
