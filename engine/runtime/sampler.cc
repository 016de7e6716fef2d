#include "engine/runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/runtime/weigher.h"

namespace assay {
namespace {

// Sum over all of `logits`, partial sums of kSumBlock in float, in double above.
double TotalWeight(std::span<const float> logits, const Weigher& weight) {
  double total = 0;
  for (size_t i = 0; i < logits.size(); i += kSumBlock) {
    const auto block = logits.subspan(i, std::min(kSumBlock, logits.size() - i));
    Float4 sum = Splat(0.0f);
    size_t j = 0;
    for (; j + kLanes <= block.size(); j += kLanes) sum += weight(Load(&block[j]));
    for (; j < block.size(); ++j) sum[0] += weight(block[j]);
    total += Sum(sum);
  }
  return total;
}

struct Maximum {
  float value = -std::numeric_limits<float>::infinity();
  bool nan = false;
};

Maximum FindMaximum(std::span<const float> logits) {
  Float4 best[4], sum[4];
  for (int lane = 0; lane < 4; ++lane) {
    best[lane] = Splat(-std::numeric_limits<float>::infinity());
    sum[lane] = Splat(0.0f);
  }
  const size_t whole = logits.size() / 16 * 16;
  for (size_t i = 0; i < whole; i += 16) {
    for (size_t lane = 0; lane < 4; ++lane) {
      const Float4 x = Load(&logits[i + kLanes * lane]);
      best[lane] = x > best[lane] ? x : best[lane];
      sum[lane] += x * 0.0f;  // stays 0 unless x is NaN or infinite
    }
  }
  Maximum result;
  float poison = 0;
  for (int lane = 0; lane < 4; ++lane) {
    for (size_t j = 0; j < kLanes; ++j) {
      result.value = std::max(result.value, best[lane][j]);
      poison += sum[lane][j];
    }
  }
  for (size_t i = whole; i < logits.size(); ++i) {
    if (logits[i] > result.value) result.value = logits[i];
    poison += logits[i] * 0.0f;
  }
  // Rare: tell NaN from the infinities that masks put in.
  if (poison != 0.0f || std::isnan(poison)) {
    result.nan = std::ranges::any_of(logits, [](float x) { return std::isnan(x); });
  }
  return result;
}

// Tokens that rank at or before `cut`, in order of id.
void Gather(std::span<const float> logits, const Cut& cut, std::vector<RankedLogit>& ranked) {
  ranked.clear();
  const Float4 threshold = Splat(cut.logit);
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    if (!Any(Load(&logits[i]) >= threshold)) continue;
    for (size_t j = i; j < i + kLanes; ++j) {
      const int32_t token = static_cast<int32_t>(j);
      if (cut.Keeps(logits[j], token)) ranked.push_back({logits[j], token});
    }
  }
  for (; i < logits.size(); ++i) {
    const int32_t token = static_cast<int32_t>(i);
    if (cut.Keeps(logits[i], token)) ranked.push_back({logits[i], token});
  }
}

// The k first of the ranking into `ranked`, as a heap whose top is the last of them.
// One pass; an entry is touched only if it beats the worst so far.
void TopK(std::span<const float> logits, size_t k, std::vector<RankedLogit>& ranked) {
  k = std::min(k, logits.size());
  ranked.clear();
  for (size_t i = 0; i < k; ++i) ranked.push_back({logits[i], static_cast<int32_t>(i)});
  std::ranges::make_heap(ranked, RanksBefore);
  for (size_t i = k; i < logits.size(); ++i) {
    // A later id never wins a tie.
    if (!(logits[i] > ranked.front().logit)) continue;
    std::ranges::pop_heap(ranked, RanksBefore);
    ranked.back() = {logits[i], static_cast<int32_t>(i)};
    std::ranges::push_heap(ranked, RanksBefore);
  }
}

double Mass(std::span<const RankedLogit> ranked, const Weigher& weight) {
  double mass = 0;
  size_t i = 0;
  for (; i + kLanes <= ranked.size(); i += kLanes) {
    const RankedLogit* r = &ranked[i];
    mass += Sum(weight(Float4{r[0].logit, r[1].logit, r[2].logit, r[3].logit}));
  }
  for (; i < ranked.size(); ++i) mass += weight(ranked[i].logit);
  return mass;
}

// The last token of the shortest prefix of the ranking whose mass reaches `wanted`: quickselect by
// mass, linear on average. The whole when rounding leaves it short. REQUIRES: not empty.
Cut CutAtMass(std::span<RankedLogit> ranked, double wanted, const Weigher& weight) {
  while (ranked.size() > 1) {
    const auto middle = ranked.begin() + static_cast<std::ptrdiff_t>((ranked.size() - 1) / 2);
    std::ranges::nth_element(ranked, middle, RanksBefore);
    const auto upper = ranked.first(static_cast<size_t>(middle - ranked.begin()) + 1);
    const double mass = Mass(upper, weight);
    if (mass >= wanted) {
      ranked = upper;
    } else {
      wanted -= mass;
      ranked = ranked.subspan(upper.size());
    }
  }
  return {ranked.front().logit, ranked.front().token};
}

// Cut of top-p over the whole vocabulary: gathers only as far down as the mass demands.
Cut TopPOverAll(std::span<const float> logits, float max, const SamplingParams& params,
                SamplerScratch& scratch) {
  const Weigher weight(max, params.temperature);
  const double wanted = static_cast<double>(params.top_p) * TotalWeight(logits, weight);
  for (const float depth : {3.0f, 6.0f, 9.0f, 14.0f, std::numeric_limits<float>::infinity()}) {
    Gather(logits, {.logit = max - depth * params.temperature}, scratch.ranked);
    if (std::isinf(depth) || Mass(scratch.ranked, weight) >= wanted) break;
  }
  return CutAtMass(scratch.ranked, wanted, weight);
}

// Mass of what `cut` keeps among logits [begin, end).
double KeptMass(std::span<const float> logits, size_t begin, size_t end, const Cut& cut,
                const Weigher& weight) {
  const Float4 threshold = Splat(cut.logit);
  const Int4 last_equal = {cut.token, cut.token, cut.token, cut.token};
  const int32_t first = static_cast<int32_t>(begin);
  Int4 token = {first, first + 1, first + 2, first + 3};
  Float4 sum = Splat(0.0f);
  size_t i = begin;
  for (; i + kLanes <= end; i += kLanes, token += static_cast<int32_t>(kLanes)) {
    const Float4 x = Load(&logits[i]);
    const Int4 keep = (x > threshold) | ((x == threshold) & (token <= last_equal));
    if (Any(keep)) sum += keep ? weight(x) : Splat(0.0f);
  }
  for (; i < end; ++i)
    if (cut.Keeps(logits[i], static_cast<int32_t>(i))) sum[0] += weight(logits[i]);
  return Sum(sum);
}

// Inverse CDF in order of id: first the block, then the token in it.
int32_t Draw(std::span<const float> logits, const Cut& cut, double uniform, const Weigher& weight,
             SamplerScratch& scratch) {
  double total = 0;
  scratch.block_mass.clear();
  for (size_t begin = 0; begin < logits.size(); begin += kSumBlock) {
    const size_t end = std::min(begin + kSumBlock, logits.size());
    scratch.block_mass.push_back(KeptMass(logits, begin, end, cut, weight));
    total += scratch.block_mass.back();
  }
  double left = uniform * total;
  size_t block = 0, chosen = 0;
  for (size_t b = 0; b < scratch.block_mass.size(); ++b) {
    if (scratch.block_mass[b] == 0) continue;
    block = chosen = b;  // the last with any mass: where rounding may push the draw
    if (left < scratch.block_mass[b]) break;
    left -= scratch.block_mass[b];
  }
  const size_t begin = block * kSumBlock, end = std::min(begin + kSumBlock, logits.size());
  for (size_t i = begin; i < end; ++i) {
    if (!cut.Keeps(logits[i], static_cast<int32_t>(i))) continue;
    const double w = weight(logits[i]);
    if (w == 0) continue;
    chosen = i;
    if (left < w) break;
    left -= w;
  }
  return static_cast<int32_t>(chosen);
}

absl::Status CheckLogits(const Maximum& raw, int64_t position) {
  if (!raw.nan && std::isfinite(raw.value)) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("the model's logits at position ", position, " have ",
                   raw.nan ? "a NaN" : absl::StrCat("the maximum ", raw.value)));
}

void FillLogprobs(const SamplerInput& input, float raw_max, SamplerScratch& scratch,
                  SampledToken& sampled) {
  if (input.params.logprobs < 0) return;
  const double normalizer = LogSumExp(input.logits, raw_max);
  sampled.logprob = static_cast<float>(input.logits[sampled.token] - normalizer);
  if (input.params.logprobs == 0) return;
  TopK(input.logits, static_cast<size_t>(input.params.logprobs), scratch.ranked);
  std::ranges::sort(scratch.ranked, RanksBefore);
  sampled.top.reserve(scratch.ranked.size());
  for (const RankedLogit& r : scratch.ranked)
    sampled.top.emplace_back(r.token, static_cast<float>(r.logit - normalizer));
}

}  // namespace

void TokenCounts::Reset(std::span<const int32_t> prompt, int max_generated) {
  std::vector<int32_t> distinct(prompt.begin(), prompt.end());
  std::ranges::sort(distinct);
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  entries_.clear();
  entries_.reserve(distinct.size() + static_cast<size_t>(max_generated));
  for (int32_t token : distinct) entries_.push_back({token, 0});
}

void TokenCounts::Add(int32_t generated_token) {
  auto at = std::ranges::lower_bound(entries_, generated_token, {}, &Entry::token);
  if (at == entries_.end() || at->token != generated_token)
    at = entries_.insert(at, {generated_token, 0});
  ++at->generated;
}

bool UsesPenalties(const SamplingParams& params) {
  return params.repetition_penalty != 1 || params.presence_penalty != 0 ||
         params.frequency_penalty != 0;
}

bool TakesTheMostLikely(const SamplingParams& params) {
  return params.temperature == 0 && params.logprobs <= 0 && !UsesPenalties(params);
}

float Penalized(float logit, const SamplingParams& params, const TokenCounts::Entry& seen) {
  const float repeated =
      logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  if (seen.generated == 0) return repeated;
  return repeated -
         (params.presence_penalty + params.frequency_penalty * static_cast<float>(seen.generated));
}

void ApplyPenalties(const SamplingParams& params, const TokenCounts& counts,
                    std::span<float> logits) {
  for (const TokenCounts::Entry& e : counts.entries())
    logits[e.token] = Penalized(logits[e.token], params, e);
}

double UniformAt(uint64_t seed, int64_t position) {
  const auto mix = [](uint64_t x) {  // SplitMix64's finalizer
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  };
  constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;
  const uint64_t stream = mix(seed + kGamma);  // so that neighbouring seeds share nothing
  const uint64_t bits = mix(stream + (static_cast<uint64_t>(position) + 1) * kGamma);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

double TotalWeight(std::span<const float> logits, float max, float temperature) {
  return TotalWeight(logits, Weigher(max, temperature));
}

double LogSumExp(std::span<const float> logits, float max) {
  return max + std::log(TotalWeight(logits, max, 1.0f));
}

float LowestOfMinP(float max, const SamplingParams& params) {
  return std::min(max, max + params.temperature * std::log(params.min_p));
}

Cut FilterLogits(std::span<const float> logits, float max, const SamplingParams& params,
                 SamplerScratch& scratch) {
  Cut cut;
  const bool top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size();
  if (top_k) {
    TopK(logits, static_cast<size_t>(params.top_k), scratch.ranked);
    cut = {scratch.ranked.front().logit, scratch.ranked.front().token};
    if (params.top_p < 1) {
      const Weigher weight(max, params.temperature);
      cut = CutAtMass(scratch.ranked, params.top_p * Mass(scratch.ranked, weight), weight);
    }
  } else if (params.top_p < 1) {
    cut = TopPOverAll(logits, max, params, scratch);
  }
  if (params.min_p > 0) {
    const float floor = LowestOfMinP(max, params);
    if (floor > cut.logit) cut = {.logit = floor};
  }
  return cut;
}

absl::StatusOr<SampledToken> SampleToken(const SamplerInput& input, SamplerScratch& scratch) {
  const Maximum raw = FindMaximum(input.logits);
  RETURN_IF_ERROR(CheckLogits(raw, input.position));
  std::span<const float> logits = input.logits;
  float max = raw.value;
  if (UsesPenalties(input.params)) {
    scratch.row.assign(logits.begin(), logits.end());
    ApplyPenalties(input.params, input.counts, scratch.row);
    logits = scratch.row;
    max = FindMaximum(logits).value;
  }
  SampledToken sampled;
  if (input.params.temperature == 0) {
    sampled.token = static_cast<int32_t>(std::ranges::find(logits, max) - logits.begin());
  } else {
    const Cut cut = FilterLogits(logits, max, input.params, scratch);
    sampled.token = Draw(logits, cut, UniformAt(input.params.seed, input.position),
                         Weigher(max, input.params.temperature), scratch);
  }
  FillLogprobs(input, raw.value, scratch, sampled);
  return sampled;
}

}  // namespace assay
