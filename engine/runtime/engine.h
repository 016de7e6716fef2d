// One model, one loop thread: requests in, tokens out. Continuous batching with chunked prefill
// over a paged KV cache. Public methods are thread-safe. The scheduler and the KV cache belong to
// the loop thread and are tested without it.
//
// Every accepted request gets exactly one end, whatever happens: finished, cancelled, expired,
// failed model, drained, destroyed engine. Deadlines and cancellations take effect before the next
// step; a request that waits when its deadline passes costs no compute.
//
// Metrics: an engine reports what happens inside it (refusals of Submit, queue, steps, tokens, KV
// blocks, deadlines, cancellations, load); RequestDone is the caller's, who sees the whole request.
#pragma once
#include <memory>

#include "base/clock.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"
#include "engine/runtime/sequence.h"
#include "engine/runtime/traffic.h"

namespace assay {

struct EngineOptions {
  // Running at once; bounded by max_step_tokens, and so that slots of the KV pool take up to half
  // of kv_bytes.
  int max_sequences = 64;
  int max_step_tokens = 512;  // rows of one forward pass
  int max_queue = 256;        // waiting requests; beyond that ResourceExhausted
  // No request waits longer for its first step: who would, or has, gets ResourceExhausted. 0: no
  // bound.
  absl::Duration max_queue_wait = absl::Seconds(30);
  size_t kv_bytes = size_t{256} << 20;  // bound of the KV pool, blocks and slots
  int max_context =
      0;  // 0 = the model's, or what kv_bytes holds if that is less; never more than the model's
  bool prefix_cache = true;  // without effect where the KV format has rows in 16 bit
  KvFormat kv_format;
  // encoders
  int max_batch_tokens = 4096;
  absl::Duration max_delay = absl::ZeroDuration();  // how long a batch may wait for company
};

struct EngineLoad {
  int waiting = 0, running = 0;  // waiting: also the preempted
  int kv_blocks_used = 0, kv_blocks_cached = 0, kv_blocks_total = 0;
};

// What engines run with; everything outlives the engine.
struct EngineHost {
  ThreadPool& pool;  // shared by all engines of the process
  const Clock& clock;
  std::shared_ptr<ModelMetrics> metrics;
  std::shared_ptr<TrafficWatch> watch = nullptr;  // null: nobody looks at what was answered
};

// Text generation.
class GenerateEngine {
 public:
  // ResourceExhausted when KV pool or scratch cannot be had; InvalidArgument for options that
  // cannot work (named).
  static absl::StatusOr<std::unique_ptr<GenerateEngine>> Start(
      std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
      const EngineOptions& options, EngineHost host);
  virtual ~GenerateEngine() = default;  // ends what is left with Unavailable, then joins
  // InvalidArgument: empty prompt, prompt + max_tokens beyond the context (both numbers), bad
  // parameter, unknown token id. ResourceExhausted: queue full. Unavailable: draining.
  // DeadlineExceeded: already past.
  virtual absl::StatusOr<SequenceId> Submit(GenerateRequest request, TokenSink sink) = 0;
  // What Submit would say now of a request with this deadline because of the queue, counted as
  // Submit counts it: asked before work is done for a request, so that under overload a refusal
  // costs as little as can be.
  virtual absl::Status Ask(absl::Time deadline) const = 0;
  virtual void Cancel(SequenceId id) = 0;  // idempotent; the sink still gets its kEnd (Cancelled)
  virtual void
  Drain() = 0;  // refuses new work from now on; returns when the last request has ended
  virtual EngineLoad load() const = 0;
  virtual size_t kv_bytes() const = 0;
  virtual size_t scratch_bytes() const = 0;
};

// Embeddings and classification: dynamic batching by token budget and delay, deadline order, no KV
// cache.
class EncodeEngine {
 public:
  static absl::StatusOr<std::unique_ptr<EncodeEngine>> Start(std::shared_ptr<const Model> model,
                                                             const EngineOptions& options,
                                                             EngineHost host);
  virtual ~EncodeEngine() = default;
  // As GenerateEngine::Submit; InvalidArgument also when the sequence is longer than the model's
  // max_context.
  virtual absl::StatusOr<SequenceId> Submit(EncodeRequest request, EncodeSink sink) = 0;
  virtual absl::Status Ask(absl::Time deadline) const = 0;  // as GenerateEngine::Ask
  virtual void Cancel(SequenceId id) = 0;
  virtual void Drain() = 0;
  virtual EngineLoad load() const = 0;
  virtual size_t scratch_bytes() const = 0;
};

}  // namespace assay
