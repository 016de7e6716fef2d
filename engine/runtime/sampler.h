// From one row of logits to one token.
//
// Order of operations: repetition penalty (Keskar et al. 2019, CTRL), presence and frequency
// penalties (as OpenAI's API defines them), temperature, top-k, top-p on what top-k left (Holtzman
// et al. 2020), min-p (Nguyen et al. 2024, relative to the most likely token), then one draw by
// inverse CDF in order of token id. Tokens rank by logit, equal ones by id, lowest first; all
// filters keep a prefix of that ranking. temperature 0 takes the first of the ranking.
//
// The random number is a function of (seed, position) alone, and every sum has a fixed order, so
// the token does not depend on what else is in the batch.
//
// Thread rule: pure; concurrent calls need distinct scratch.
#pragma once
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "engine/ops/candidates.h"
#include "engine/runtime/sequence.h"

namespace assay {

// How often each token was seen, for the penalties. Add does not allocate as long as the total
// stays within what Reset announced.
class TokenCounts {
 public:
  struct Entry {
    int32_t token = 0;
    int32_t generated = 0;  // 0: only in the prompt
  };
  void Reset(std::span<const int32_t> prompt, int max_generated);
  void Add(int32_t generated_token);
  std::span<const Entry> entries() const { return entries_; }  // by token

 private:
  std::vector<Entry> entries_;
};

// True when `params` needs TokenCounts.
bool UsesPenalties(const SamplingParams& params);
// True when the most likely token, perhaps with its logprob, is all that is asked for.
bool TakesTheMostLikely(const SamplingParams& params);

struct SamplerInput {
  std::span<const float> logits;  // [vocab], not empty; not modified
  const SamplingParams& params;
  const TokenCounts& counts;  // read only when UsesPenalties(params)
  int64_t position = 0;       // index of the new token in its sequence
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;                           // from the raw logits; 0 when params.logprobs < 0
  std::vector<std::pair<int32_t, float>> top;  // params.logprobs entries, most likely first
};

// Buffers of the sampler, reused from call to call. One per thread.
struct SamplerScratch {
  std::vector<float> row;
  std::vector<RankedLogit> ranked;
  std::vector<double> block_mass;
};

// Internal: the logits contain NaN or +infinity, or nothing finite. Allocates only for
// `params.logprobs` > 0, once the scratch has grown.
absl::StatusOr<SampledToken> SampleToken(const SamplerInput& input, SamplerScratch& scratch);

// The steps, visible for tests.

// A seen token's logit.
float Penalized(float logit, const SamplingParams& params, const TokenCounts::Entry& seen);
// REQUIRES: `logits` [vocab] covers every token of `counts`.
void ApplyPenalties(const SamplingParams& params, const TokenCounts& counts,
                    std::span<float> logits);
// What the filters keep: tokens that rank at or before (logit, token).
struct Cut {
  float logit = -std::numeric_limits<float>::infinity();
  int32_t token = std::numeric_limits<int32_t>::max();
  bool Keeps(float other_logit, int32_t other_token) const {
    return other_logit > logit || (other_logit == logit && other_token <= token);
  }
};
// `logits` after penalties, all below +infinity, `max` their maximum; params.temperature > 0.
Cut FilterLogits(std::span<const float> logits, float max, const SamplingParams& params,
                 SamplerScratch& scratch);
// The lowest logit that min-p keeps. params.min_p > 0.
float LowestOfMinP(float max, const SamplingParams& params);
// Uniform in [0, 1), 53 bits: SplitMix64 as a counter-based generator.
double UniformAt(uint64_t seed, int64_t position);
// Sum of e^((logit - max) / temperature) in double, of partial sums in float
// (engine/ops/candidates.h gives the same). `max`: the maximum.
double TotalWeight(std::span<const float> logits, float max, float temperature);
// ln sum exp(logits), `max` their maximum. Error below 1e-5.
double LogSumExp(std::span<const float> logits, float max);

}  // namespace assay
