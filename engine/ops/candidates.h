// What of a row of logits is enough to sample from it, as a rule: the first tokens of the sampler's
// ranking (by logit, equal ones by id, lowest first) and sums over the whole row. Made on a device
// (engine/ops/cuda/top_candidates.h), read on the host.
#pragma once
#include <cstdint>

namespace assay {

// Of a row at most. Nuclei of 0.9 at temperatures up to 1 have tens of tokens as a rule, and 2 KiB
// of 512 may move for each row of each step.
inline constexpr int kMostCandidates = 256;

struct RankedLogit {
  float logit = 0;
  int32_t token = 0;
};

// Of all logits of a row, `max` the largest: sums of e^((logit - max) scale), summed as
// engine/runtime/sampler.h does, bit for bit.
struct LogitSums {
  double plain = 0;   // scale 1
  double scaled = 0;  // the scale that was asked for
};

}  // namespace assay
