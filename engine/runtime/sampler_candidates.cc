#include "engine/runtime/sampler_candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/runtime/weigher.h"

namespace assay {
namespace {

// The beginning of a ranking of which the rest is not known.
struct Known {
  std::span<RankedLogit> ranked;  // in order; logits after penalties
  RankedLogit bound;              // what is not known ranks after it
  float max() const { return ranked.front().logit; }
  // Whether all that `cut` keeps is known.
  bool Holds(const Cut& cut) const {
    return cut.logit > bound.logit || (cut.logit == bound.logit && cut.token <= bound.token);
  }
};

// Some penalty may lift a logit: that of a token that is not known, too.
bool MayRaise(const SamplingParams& params) {
  return params.repetition_penalty < 1 || params.presence_penalty < 0 ||
         params.frequency_penalty < 0;
}

Known Penalize(const CandidateInput& input, Known known) {
  const std::span<const TokenCounts::Entry> seen = input.counts.entries();
  for (RankedLogit& r : known.ranked) {
    const auto at = std::ranges::lower_bound(seen, r.token, {}, &TokenCounts::Entry::token);
    if (at != seen.end() && at->token == r.token) r.logit = Penalized(r.logit, input.params, *at);
  }
  // Those that fell behind the bound are among unknown ones now.
  const auto end =
      std::remove_if(known.ranked.begin(), known.ranked.end(),
                     [&](const RankedLogit& r) { return RanksBefore(known.bound, r); });
  known.ranked = {known.ranked.begin(), end};
  std::ranges::sort(known.ranked, RanksBefore);
  return known;
}

// The last token of the shortest prefix whose mass reaches `wanted`; nothing where that is too
// close to call: the full sampler adds up to 2^20 numbers in its own order, an error below 2^-33 of
// the sum, and this one a few hundred.
std::optional<Cut> CutAtMass(std::span<const RankedLogit> ranked, double wanted,
                             const Weigher& weight) {
  constexpr double kMargin = 1e-9;
  double mass = 0;
  for (const RankedLogit& r : ranked) {
    mass += weight(r.logit);
    if (mass < wanted * (1 - kMargin)) continue;
    if (!(mass >= wanted * (1 + kMargin))) return std::nullopt;
    return Cut{r.logit, r.token};
  }
  return std::nullopt;
}

double Mass(std::span<const RankedLogit> ranked, const Weigher& weight) {
  double mass = 0;
  for (const RankedLogit& r : ranked) mass += weight(r.logit);
  return mass;
}

// FilterLogits' cut. What is known may be less than it keeps (Known::Holds).
std::optional<Cut> FilterKnown(const CandidateInput& input, const Known& known,
                               const Weigher& weight) {
  const SamplingParams& params = input.params;
  const bool rest_has_weight = weight(known.bound.logit) != 0;
  std::span<const RankedLogit> ranked = known.ranked;
  Cut cut;
  const bool top_k = params.top_k > 0 && params.top_k < input.vocab;
  const bool k_known = top_k && static_cast<size_t>(params.top_k) <= ranked.size();
  if (k_known) {
    ranked = ranked.first(static_cast<size_t>(params.top_k));
    cut = {ranked.back().logit, ranked.back().token};
  }
  if (params.top_p < 1) {
    if (top_k ? !k_known && rest_has_weight : UsesPenalties(params)) return std::nullopt;
    const double mass = top_k ? Mass(ranked, weight) : input.sums.scaled;
    const std::optional<Cut> at_mass = CutAtMass(ranked, params.top_p * mass, weight);
    if (!at_mass) return std::nullopt;
    cut = *at_mass;
  }
  if (params.min_p > 0) {
    const float floor = LowestOfMinP(known.max(), params);
    if (floor > cut.logit) cut = {.logit = floor};
  }
  return cut;
}

// Where a logit stands in the sums of its block (KeptMass of sampler.cc): those behind the last
// whole group of lanes are the first lane's.
size_t LaneOf(size_t token, size_t vocab) {
  const size_t begin = token / kSumBlock * kSumBlock;
  const size_t count = std::min(kSumBlock, vocab - begin);
  return token - begin < count / kLanes * kLanes ? token % kLanes : 0;
}

// Draw of sampler.cc over the kept tokens alone, in order of id. REQUIRES: not empty.
int32_t DrawKept(std::span<const RankedLogit> kept, size_t vocab, double uniform,
                 const Weigher& weight) {
  const auto block_of = [](const RankedLogit& r) {
    return static_cast<size_t>(r.token) / kSumBlock;
  };
  // The part of `kept` from `begin` on that lies in one block, and its mass.
  struct Block {
    std::span<const RankedLogit> kept;
    double mass = 0;
  };
  const auto block_from = [&](size_t begin) {
    size_t end = begin;
    Float4 sum = Splat(0.0f);
    for (; end < kept.size() && block_of(kept[end]) == block_of(kept[begin]); ++end)
      sum[LaneOf(static_cast<size_t>(kept[end].token), vocab)] += weight(kept[end].logit);
    return Block{kept.subspan(begin, end - begin), Sum(sum)};
  };
  double total = 0;
  for (size_t begin = 0; begin < kept.size();) {
    const Block block = block_from(begin);
    total += block.mass;
    begin += block.kept.size();
  }
  double left = uniform * total;
  Block chosen;
  for (size_t begin = 0; begin < kept.size();) {
    const Block block = block_from(begin);
    begin += block.kept.size();
    if (block.mass == 0) continue;
    chosen = block;
    if (left < block.mass) break;
    left -= block.mass;
  }
  int32_t token = kept.front().token;
  for (const RankedLogit& r : chosen.kept) {
    const double w = weight(r.logit);
    if (w == 0) continue;
    token = r.token;
    if (left < w) break;
    left -= w;
  }
  return token;
}

std::optional<int32_t> TokenOf(const CandidateInput& input, const Known& known) {
  const SamplingParams& params = input.params;
  if (known.ranked.empty() || !std::isfinite(known.max())) return std::nullopt;
  if (params.temperature == 0) return known.ranked.front().token;
  const Weigher weight(known.max(), params.temperature);
  const std::optional<Cut> cut = FilterKnown(input, known, weight);
  if (!cut || (!known.Holds(*cut) && weight(known.bound.logit) != 0)) return std::nullopt;
  const auto end = std::ranges::find_if_not(
      known.ranked, [&](const RankedLogit& r) { return cut->Keeps(r.logit, r.token); });
  const std::span<RankedLogit> kept(known.ranked.begin(), end);
  std::ranges::sort(kept, {}, &RankedLogit::token);
  return DrawKept(kept, static_cast<size_t>(input.vocab), UniformAt(params.seed, input.position),
                  weight);
}

void FillLogprobs(const CandidateInput& input, SampledToken& sampled) {
  if (input.params.logprobs < 0) return;
  const double normalizer = input.ranked.front().logit + std::log(input.sums.plain);
  const auto logprob = [&](float logit) { return static_cast<float>(logit - normalizer); };
  const auto own = std::ranges::find(input.ranked, sampled.token, &RankedLogit::token);
  sampled.logprob = logprob(own->logit);
  const size_t count = std::min(static_cast<size_t>(input.params.logprobs), input.ranked.size());
  sampled.top.reserve(count);
  for (const RankedLogit& r : input.ranked.first(count))
    sampled.top.emplace_back(r.token, logprob(r.logit));
}

}  // namespace

int NumCandidates(const SamplingParams& params) {
  if (TakesTheMostLikely(params)) return 1;
  if (MayRaise(params)) return 0;
  const bool top_k = params.top_k > 0 && params.top_k <= kMostCandidates;
  if (params.temperature == 0 || top_k) return kMostCandidates;
  if (params.top_p < 1) return params.top_k > 0 || UsesPenalties(params) ? 0 : kMostCandidates;
  return params.min_p > 0 ? kMostCandidates : 0;
}

float CandidateScale(const SamplingParams& params) {
  return params.temperature > 0 ? 1.0f / params.temperature : 1.0f;
}

std::optional<SampledToken> SampleCandidates(const CandidateInput& input, SamplerScratch& scratch) {
  if (MayRaise(input.params)) return std::nullopt;
  const auto vocab = static_cast<size_t>(input.vocab);
  if (input.ranked.size() <
      std::min(vocab, static_cast<size_t>(std::max(0, input.params.logprobs))))
    return std::nullopt;
  scratch.ranked.assign(input.ranked.begin(), input.ranked.end());
  Known known = {scratch.ranked, input.ranked.back()};
  if (input.ranked.size() == vocab)  // nothing is unknown
    known.bound = {-std::numeric_limits<float>::infinity(), std::numeric_limits<int32_t>::max()};
  if (UsesPenalties(input.params)) known = Penalize(input, known);
  const std::optional<int32_t> token = TokenOf(input, known);
  if (!token) return std::nullopt;
  SampledToken sampled{.token = *token};
  FillLogprobs(input, sampled);
  return sampled;
}

}  // namespace assay
