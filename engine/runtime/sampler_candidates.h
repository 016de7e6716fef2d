// From the first tokens of a row's ranking to the token that SampleToken takes from the row itself,
// wherever those tokens decide it.
//
// They decide it when all that the filters keep lies among them. Every weight, sum and draw then
// has the bits that it has over the row: tokens that are not kept add zeros there. Masses of
// prefixes are added up in another order, so that a top-p cut must be clear by 1e-9 of the mass.
// Not decided: a nucleus or a min-p that reaches past the candidates, top-k of more, no filter at
// all unless the temperature leaves the rest no weight; with penalties a top-p without top-k (the
// sum is the raw row's), and penalties that raise logits.
//
// Thread rule: pure; concurrent calls need distinct scratch.
#pragma once
#include <optional>

#include "engine/model/model.h"
#include "engine/runtime/sampler.h"

namespace assay {

// How many of a row's first tokens may decide: 1, kMostCandidates, or 0 when the row itself is as
// good as certain to be needed.
int NumCandidates(const SamplingParams& params);
// RowCandidates::scale for such sampling.
float CandidateScale(const SamplingParams& params);

struct CandidateInput {
  std::span<const RankedLogit> ranked;  // the first of the ranking of `vocab` logits, not empty
  int vocab = 0;
  const LogitSums& sums;  // of CandidateScale(params)
  const SamplingParams& params;
  const TokenCounts& counts;  // read only when UsesPenalties(params)
  int64_t position = 0;       // index of the new token in its sequence
};

// What SampleToken gives for the row, bit for bit, or nothing where the row is needed. Allocates as
// SampleToken does.
std::optional<SampledToken> SampleCandidates(const CandidateInput& input, SamplerScratch& scratch);

}  // namespace assay
