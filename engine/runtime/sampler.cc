#include "engine/runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

// Four lanes in the compiler's vector notation: SSE2 on x86-64, NEON elsewhere.
using Float4 = float __attribute__((vector_size(16)));
using Int4 = int32_t __attribute__((vector_size(16)));
constexpr size_t kLanes = 4;
constexpr size_t kBlock = 256;  // logits per partial sum

Float4 Load(const float* p) {
  Float4 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
Float4 Splat(float x) { return Float4{x, x, x, x}; }

// e^x for x <= 0, relative error below 3e-7 down to -87, 0 below (also for -infinity).
// Cephes' expf: x = n ln 2 + r, |r| <= ln 2 / 2, polynomial in r, exponent n.
Float4 Exp(Float4 x) {
  const Int4 tiny = x < Splat(-87.0f);
  x = tiny ? Splat(-87.0f) : x;
  const Float4 shift = Splat(12582912.0f);  // 1.5 * 2^23: rounds to an integer in the low bits
  const Float4 shifted = x * 1.44269504088896341f + shift;
  const Float4 n = shifted - shift;
  const Float4 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Float4 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Int4 exponent = (std::bit_cast<Int4>(shifted) - std::bit_cast<Int4>(shift) + 127) << 23;
  const Float4 result = p * std::bit_cast<Float4>(exponent);
  return tiny ? Splat(0.0f) : result;
}
float Exp(float x) { return Exp(Splat(x))[0]; }

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

bool RanksBefore(const RankedLogit& a, const RankedLogit& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// Tokens that rank at or before `cut`, in order of id.
void Gather(std::span<const float> logits, const Cut& cut, std::vector<RankedLogit>& ranked) {
  ranked.clear();
  const Float4 threshold = Splat(cut.logit);
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    const Int4 above = Load(&logits[i]) >= threshold;
    if ((above[0] | above[1] | above[2] | above[3]) == 0) continue;
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

double Mass(std::span<const RankedLogit> ranked, float max, float temperature) {
  double mass = 0;
  for (const RankedLogit& r : ranked) mass += Exp((r.logit - max) / temperature);
  return mass;
}

// The last token of the shortest prefix of the ranking whose mass reaches `wanted`: quickselect by
// mass, linear on average. The whole when rounding leaves it short. REQUIRES: not empty.
Cut CutAtMass(std::span<RankedLogit> ranked, double wanted, float max, float temperature) {
  while (ranked.size() > 1) {
    const auto middle = ranked.begin() + static_cast<std::ptrdiff_t>((ranked.size() - 1) / 2);
    std::ranges::nth_element(ranked, middle, RanksBefore);
    const auto upper = ranked.first(static_cast<size_t>(middle - ranked.begin()) + 1);
    const double mass = Mass(upper, max, temperature);
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
  const float temperature = params.temperature;
  double total = 0;
  for (size_t i = 0; i < logits.size(); i += kBlock) {
    const auto block = logits.subspan(i, std::min(kBlock, logits.size() - i));
    size_t j = 0;
    Float4 sum = Splat(0.0f);
    for (; j + kLanes <= block.size(); j += kLanes)
      sum += Exp((Load(&block[j]) - max) / temperature);
    for (; j < block.size(); ++j) sum[0] += Exp((block[j] - max) / temperature);
    total += double{sum[0]} + sum[1] + sum[2] + sum[3];
  }
  const double wanted = static_cast<double>(params.top_p) * total;
  for (const float depth : {4.0f, 10.0f, std::numeric_limits<float>::infinity()}) {
    Gather(logits, {.logit = max - depth * temperature}, scratch.ranked);
    if (std::isinf(depth) || Mass(scratch.ranked, max, temperature) >= wanted) break;
  }
  return CutAtMass(scratch.ranked, wanted, max, temperature);
}

int32_t Draw(std::span<const float> logits, float max, const Cut& cut, double uniform,
             float temperature, SamplerScratch& scratch) {
  const auto weight = [&](size_t i) {
    return cut.Keeps(logits[i], static_cast<int32_t>(i)) ? Exp((logits[i] - max) / temperature)
                                                         : 0.0f;
  };
  const Float4 threshold = Splat(cut.logit);
  double total = 0;
  scratch.block_mass.clear();
  for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, logits.size());
    double mass = 0;
    for (size_t i = begin; i < end; i += kLanes) {
      if (i + kLanes <= end) {  // skip what the filters removed, four at a time
        const Int4 above = Load(&logits[i]) >= threshold;
        if ((above[0] | above[1] | above[2] | above[3]) == 0) continue;
        const Float4 w = Exp((Load(&logits[i]) - max) / temperature);
        for (size_t j = 0; j < kLanes; ++j)
          mass += cut.Keeps(logits[i + j], static_cast<int32_t>(i + j)) ? w[j] : 0.0f;
      } else {
        for (size_t j = i; j < end; ++j) mass += weight(j);
      }
    }
    scratch.block_mass.push_back(mass);
    total += mass;
  }
  double left = uniform * total;
  size_t last = 0;  // the last token with any weight: where rounding may push the draw
  for (size_t b = 0; b < scratch.block_mass.size(); ++b) {
    if (scratch.block_mass[b] == 0) continue;
    const bool here = left < scratch.block_mass[b];
    const size_t begin = b * kBlock, end = std::min(begin + kBlock, logits.size());
    for (size_t i = begin; i < end; ++i) {
      const double w = weight(i);
      if (w == 0) continue;
      last = i;
      if (!here) continue;
      if (left < w) return static_cast<int32_t>(i);
      left -= w;
    }
    if (here) break;
    left -= scratch.block_mass[b];
  }
  return static_cast<int32_t>(last);
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
  const auto repeated = std::ranges::unique(distinct);
  distinct.erase(repeated.begin(), repeated.end());
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

void ApplyPenalties(const SamplingParams& params, const TokenCounts& counts,
                    std::span<float> logits) {
  for (const TokenCounts::Entry& e : counts.entries()) {
    float& x = logits[e.token];
    x = x > 0 ? x / params.repetition_penalty : x * params.repetition_penalty;
    if (e.generated == 0) continue;
    x -= params.presence_penalty + params.frequency_penalty * static_cast<float>(e.generated);
  }
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

double LogSumExp(std::span<const float> logits, float max) {
  double total = 0;
  for (size_t i = 0; i < logits.size(); i += kBlock) {
    const auto block = logits.subspan(i, std::min(kBlock, logits.size() - i));
    Float4 sum = Splat(0.0f);
    size_t j = 0;
    for (; j + kLanes <= block.size(); j += kLanes) sum += Exp(Load(&block[j]) - max);
    for (; j < block.size(); ++j) sum[0] += Exp(block[j] - max);
    total += double{sum[0]} + sum[1] + sum[2] + sum[3];
  }
  return max + std::log(total);
}

Cut FilterLogits(std::span<const float> logits, float max, const SamplingParams& params,
                 SamplerScratch& scratch) {
  Cut cut;
  const bool top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size();
  if (top_k) {
    TopK(logits, static_cast<size_t>(params.top_k), scratch.ranked);
    cut = {scratch.ranked.front().logit, scratch.ranked.front().token};
    if (params.top_p < 1) {
      const double total = Mass(scratch.ranked, max, params.temperature);
      cut = CutAtMass(scratch.ranked, params.top_p * total, max, params.temperature);
    }
  } else if (params.top_p < 1) {
    cut = TopPOverAll(logits, max, params, scratch);
  }
  if (params.min_p > 0) {
    const float floor = std::min(max, max + params.temperature * std::log(params.min_p));
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
    sampled.token = Draw(logits, max, cut, UniformAt(input.params.seed, input.position),
                         input.params.temperature, scratch);
  }
  FillLogprobs(input, raw.value, scratch, sampled);
  return sampled;
}

}  // namespace assay
