// Requests and what comes back, as the engines see them.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "engine/metrics.h"

namespace assay {

using SequenceId = uint64_t;

struct SamplingParams {
  float temperature = 0;       // 0 = greedy
  int top_k = 0;               // 0 = off
  float top_p = 1, min_p = 0;  // 1 and 0 = off
  float repetition_penalty =
      1;  // 1 = off; divides positive and multiplies negative logits of seen tokens
  float presence_penalty = 0, frequency_penalty = 0;  // subtracted from logits of generated tokens
  uint64_t seed = 0;  // same request, same seed, same tokens, whatever else is in the batch
  int max_tokens = 128;
  int logprobs = 0;  // how many alternatives to report per token; -1 = not even the chosen one's
  bool ignore_eos = false;
  std::vector<std::string> stop;        // generation ends before the text that matches
  std::vector<int32_t> stop_token_ids;  // besides the tokenizer's end tokens
};
// InvalidArgument names the parameter and its range.
absl::Status Validate(const SamplingParams& params);

struct Usage {
  int prompt_tokens = 0, generated_tokens = 0,
      cached_tokens = 0;  // cached: prompt tokens taken from the prefix cache
  absl::Duration queued, time_to_first_token, total;
};

struct TokenEvent {
  enum class Kind { kToken, kEnd } kind = Kind::kToken;
  // kToken
  int32_t token = 0;
  std::string text;   // what became certain with this token; may be empty (inside a character or a
                      // possible stop string). A token that ends the generation is sent without
                      // its own text, with what was still held back
  float logprob = 0;  // of the chosen token, natural log, before temperature and penalties
  std::vector<std::pair<int32_t, float>> top;  // alternatives, most likely first
  // kEnd: exactly one, always last
  FinishReason reason = FinishReason::kStop;
  absl::Status status;  // OK for kStop and kLength; Cancelled for kCancelled; DeadlineExceeded for
                        // kDeadline; with kError Unavailable (shut down),
                        // ResourceExhausted (waited too long) or Internal
  Usage usage;
};
// Called on the engine's loop thread: never blocks; of the engine it may call Submit and
// Cancel, which only queue.
using TokenSink = std::function<void(TokenEvent&&)>;

struct GenerateRequest {
  std::vector<int32_t> prompt;  // not empty
  SamplingParams sampling;
  absl::Time deadline = absl::InfiniteFuture();
  TraceId trace;
  bool follows = false;  // a later row of a request that was taken: no bound on its wait
};

struct EncodeRequest {
  std::vector<int32_t> tokens;       // not empty, special tokens included
  std::vector<int32_t> token_types;  // empty = all 0
  absl::Time deadline = absl::InfiniteFuture();
  bool follows = false;  // as above
};
struct EncodeResult {
  absl::Status status;
  std::vector<float> values;  // embedding [hidden], or logits [num_labels]
  absl::Duration queued, compute;
  int batch_requests = 0;  // how many requests shared the executed batch
};
using EncodeSink = std::function<void(EncodeResult&&)>;  // as TokenSink; called exactly once

}  // namespace assay
