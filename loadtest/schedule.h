// When requests are meant to be sent, and what they ask: decided before the first one is sent, from
// a seed, so that neither the server nor a late generator can change it.
#pragma once
#include <cstdint>
#include <random>
#include <vector>

#include "loadtest/scenario.h"

namespace assay::load {

struct PlannedRequest {
  int64_t offset_us = 0;  // from the start of the phase
  int kind = 0;           // index into Scenario::kinds
  int prompt_words = 0, answer_tokens = 0;
  uint64_t seed = 0;  // of its text
};

// What requests ask. The same on every platform: only the engine of <random> is used, whose numbers
// the standard fixes, not its distributions.
class RequestSampler {
 public:
  RequestSampler(const Scenario& scenario, uint64_t seed);
  // `kind` -1: by weight.
  PlannedRequest Next(int64_t offset_us, int kind = -1);
  double Uniform();  // in (0, 1]
 private:
  int Draw(const Distribution& distribution);
  int DrawKind();

  const Scenario& scenario_;
  std::mt19937_64 engine_;
  double weights_ = 0;
};

// Of an open phase; empty for a closed one. `capacity_per_s` is what "2x" multiplies.
// FailedPrecondition: "2x" without a capacity; ResourceExhausted: more than kMostArrivals.
absl::StatusOr<std::vector<PlannedRequest>> PlanPhase(const Scenario& scenario, size_t phase,
                                                      double capacity_per_s);
inline constexpr double kMostArrivals = 2e7;

// Requests per second that the phase offers on average; 0: a closed loop decides itself.
double OfferedRate(const Phase& phase, double capacity_per_s);

// Of the requests of a closed phase.
uint64_t SeedOf(const Scenario& scenario, size_t phase);

// So many common words, no two texts alike, so that no prefix cache helps.
std::string TextOf(const PlannedRequest& request);

}  // namespace assay::load
