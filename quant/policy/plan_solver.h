// The choice of one option for every layer: a multiple-choice knapsack. What the options are and
// how their figures come about is the caller's business (engine/lifecycle/plan_search.h). Pure.
#pragma once
#include <cstdint>
#include <limits>
#include <vector>

#include "base/status.h"

namespace assay {

// One way to serve a layer. Errors of layers add (noise powers do, as long as they are small).
struct PlanOption {
  uint64_t bytes = 0;
  double error = 0;       // at least 0
  double seconds = 0;     // of one call; at least 0
  bool fallback = false;  // counts against PlanLimits::max_fallback
};
using PlanProblem = std::vector<std::vector<PlanOption>>;  // by layer; never empty lists

struct PlanLimits {
  uint64_t max_bytes = std::numeric_limits<uint64_t>::max();
  double max_error = std::numeric_limits<double>::infinity();
  double max_seconds = std::numeric_limits<double>::infinity();
  int max_fallback = std::numeric_limits<int>::max();  // layers
};

struct PlanPoint {
  std::vector<int> choice;  // by layer: index of its option
  uint64_t bytes = 0;
  double error = 0, seconds = 0;
  int fallback = 0;
};

// The plans of at most `max_fallback` fallback layers that no other such plan beats in bytes and
// error, bytes ascending. Exact while a layer adds fewer than 1000 such partial plans; beyond,
// those are thinned evenly over the bytes, and a plan is at most (layers / 1000) of the range of
// bytes away from the frontier. InvalidArgument: a layer without options, or a negative or NaN
// figure.
absl::StatusOr<std::vector<PlanPoint>> PlanFrontier(const PlanProblem& problem, int max_fallback);

// With max_error: the fewest bytes inside all limits. Without (infinite): the least error inside
// the others. Exact but for max_seconds, which is met by a price of time (Lagrange): a plan that
// needs a mix of slow and fast layers may be passed over for a larger one. NotFound names the limit
// that cannot be kept to, and the best that can be had.
absl::StatusOr<PlanPoint> SolvePlan(const PlanProblem& problem, const PlanLimits& limits);

}  // namespace assay
