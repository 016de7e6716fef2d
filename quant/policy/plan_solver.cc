#include "quant/policy/plan_solver.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr size_t kMaxLabels = 1000;  // partial plans kept per layer and number of fallback layers
constexpr int kTimeSteps = 24;       // prices of time that are tried
constexpr double kFirstPrice = 1e-4, kPriceStep = 16;

// A plan of the first layers: its figures, and how it came about.
struct Label {
  uint64_t bytes = 0;
  double error = 0;
  int32_t parent = 0;  // index in the previous layer's list of `parent_fallback`
  int16_t parent_fallback = 0, option = 0;
};
using Labels = std::vector<Label>;
using Table = std::vector<Labels>;  // by number of fallback layers

bool Cheaper(const Label& a, const Label& b) {
  return a.bytes != b.bytes ? a.bytes < b.bytes : a.error < b.error;
}

// Leaves what nothing else beats, bytes ascending and error descending.
void KeepBest(Labels& labels) {
  std::sort(labels.begin(), labels.end(), Cheaper);
  size_t kept = 0;
  for (const Label& label : labels) {
    if (kept == 0 || label.error < labels[kept - 1].error) labels[kept++] = label;
  }
  labels.resize(kept);
  if (kept <= kMaxLabels) return;
  const uint64_t first = labels.front().bytes, range = labels.back().bytes - first;
  const uint64_t step = range / kMaxLabels + 1;
  size_t out = 0;
  for (size_t i = 0; i < labels.size(); ++i) {  // of each step the last: its least error
    const bool last = i + 1 == labels.size() ||
                      (labels[i + 1].bytes - first) / step != (labels[i].bytes - first) / step;
    if (last || i == 0) labels[out++] = labels[i];
  }
  labels.resize(out);
}

absl::Status Check(const PlanProblem& problem) {
  for (size_t layer = 0; layer < problem.size(); ++layer) {
    if (problem[layer].empty()) {
      return absl::InvalidArgumentError(absl::StrCat("a layer without options: layer=", layer));
    }
    for (const PlanOption& option : problem[layer]) {
      if (option.error >= 0 && option.seconds >= 0) continue;
      return absl::InvalidArgumentError(absl::StrCat("figures must not be negative: layer=", layer,
                                                     " error=", option.error,
                                                     " seconds=", option.seconds));
    }
  }
  return absl::OkStatus();
}

// Adds one layer to every partial plan.
Table Extend(const Table& before, const std::vector<PlanOption>& options, int max_fallback) {
  Table after(std::min<size_t>(before.size() + 1, static_cast<size_t>(max_fallback) + 1));
  for (size_t used = 0; used < before.size(); ++used) {
    for (size_t o = 0; o < options.size(); ++o) {
      const size_t now = used + (options[o].fallback ? 1 : 0);
      if (now >= after.size()) continue;
      for (size_t i = 0; i < before[used].size(); ++i) {
        after[now].push_back({before[used][i].bytes + options[o].bytes,
                              before[used][i].error + options[o].error, static_cast<int32_t>(i),
                              static_cast<int16_t>(used), static_cast<int16_t>(o)});
      }
    }
  }
  for (Labels& labels : after) KeepBest(labels);
  return after;
}

// Adds the figures of a layer's choice.
void Add(const std::vector<PlanOption>& options, size_t layer, PlanPoint& point) {
  const PlanOption& option = options[static_cast<size_t>(point.choice[layer])];
  point.bytes += option.bytes;
  point.error += option.error;
  point.seconds += option.seconds;
  point.fallback += option.fallback ? 1 : 0;
}

PlanPoint Trace(const PlanProblem& problem, const std::vector<Table>& tables, size_t fallback,
                size_t index) {
  PlanPoint point;
  point.choice.resize(problem.size());
  for (size_t layer = problem.size(); layer-- > 0;) {
    const Label& label = tables[layer + 1][fallback][index];
    point.choice[layer] = label.option;
    Add(problem[layer], layer, point);
    fallback = static_cast<size_t>(label.parent_fallback);
    index = static_cast<size_t>(label.parent);
  }
  return point;
}

// The point of a frontier that the limits other than time want; null: none.
const PlanPoint* Pick(const std::vector<PlanPoint>& frontier, const PlanLimits& limits) {
  const PlanPoint* best = nullptr;
  for (const PlanPoint& point : frontier) {
    if (point.bytes > limits.max_bytes || point.error > limits.max_error) continue;
    if (std::isfinite(limits.max_error)) return &point;  // bytes ascend
    if (best == nullptr || point.error < best->error) best = &point;
  }
  return best;
}

absl::Status NothingFits(const std::vector<PlanPoint>& frontier, const PlanLimits& limits) {
  if (frontier.empty()) {
    return absl::NotFoundError(
        absl::StrCat("no plan keeps to max_fallback=", limits.max_fallback, " layers"));
  }
  if (frontier.front().bytes > limits.max_bytes) {
    return absl::NotFoundError(absl::StrCat("no plan keeps to max_bytes=", limits.max_bytes,
                                            ": the smallest has ", frontier.front().bytes));
  }
  return absl::NotFoundError(absl::StrCat("no plan keeps to max_error=", limits.max_error,
                                          limits.max_bytes == std::numeric_limits<uint64_t>::max()
                                              ? std::string()
                                              : absl::StrCat(" and max_bytes=", limits.max_bytes),
                                          ": the most accurate has ", frontier.back().error, " in ",
                                          frontier.back().bytes, " bytes"));
}

// What the limits other than time want when time has this price, in bytes where bytes are to be
// few, else in error. Nothing: it is so dear that they are out of reach.
absl::StatusOr<std::optional<PlanPoint>> PickAtPrice(const PlanProblem& problem,
                                                     const PlanLimits& limits, double price) {
  const bool few_bytes = std::isfinite(limits.max_error);
  PlanProblem priced = problem;
  for (auto& options : priced) {
    for (PlanOption& option : options) {
      const double cost = price * option.seconds;
      few_bytes ? void(option.bytes += static_cast<uint64_t>(cost)) : void(option.error += cost);
    }
  }
  ASSIGN_OR_RETURN(const std::vector<PlanPoint> points, PlanFrontier(priced, limits.max_fallback));
  PlanLimits without_time = limits;
  if (few_bytes) without_time.max_bytes = std::numeric_limits<uint64_t>::max();
  const PlanPoint* chosen = Pick(points, without_time);
  if (chosen == nullptr) return std::nullopt;
  PlanPoint plan{.choice = chosen->choice};
  for (size_t layer = 0; layer < problem.size(); ++layer) Add(problem[layer], layer, plan);
  if (plan.bytes > limits.max_bytes) return std::nullopt;
  return plan;
}

// Lagrange: looks for the least price of time at which the choice is fast enough.
absl::StatusOr<PlanPoint> FastEnough(const PlanProblem& problem, const PlanLimits& limits,
                                     const PlanPoint& slow) {
  std::optional<PlanPoint> fast;
  double fastest = slow.seconds, low = 0, high = 0;
  const double unit =
      std::isfinite(limits.max_error) ? static_cast<double>(slow.bytes) : slow.error;
  double price = kFirstPrice * (1 + unit) / slow.seconds;
  for (int step = 0; step < kTimeSteps; ++step) {
    ASSIGN_OR_RETURN(const std::optional<PlanPoint> chosen, PickAtPrice(problem, limits, price));
    if (chosen.has_value()) fastest = std::min(fastest, chosen->seconds);
    const bool good = chosen.has_value() && chosen->seconds <= limits.max_seconds;
    if (good) fast = *chosen;
    (good || !chosen.has_value() ? high : low) = price;
    price = high == 0 ? price * kPriceStep : (low + high) / 2;
  }
  if (fast.has_value()) return *fast;
  return absl::NotFoundError(absl::StrCat("no plan was found that keeps to max_seconds=",
                                          limits.max_seconds, ": the fastest takes ", fastest));
}

}  // namespace

absl::StatusOr<std::vector<PlanPoint>> PlanFrontier(const PlanProblem& problem, int max_fallback) {
  RETURN_IF_ERROR(Check(problem));
  max_fallback = std::min(max_fallback, static_cast<int>(problem.size()));
  if (max_fallback < 0) {
    return absl::InvalidArgumentError(absl::StrCat("max_fallback=", max_fallback));
  }
  std::vector<Table> tables = {{{Label{}}}};
  for (const auto& options : problem) {
    tables.push_back(Extend(tables.back(), options, max_fallback));
  }
  struct Place {
    Label label;
    size_t fallback, index;
  };
  std::vector<Place> ends;
  for (size_t used = 0; used < tables.back().size(); ++used) {
    for (size_t i = 0; i < tables.back()[used].size(); ++i) {
      ends.push_back({tables.back()[used][i], used, i});
    }
  }
  std::stable_sort(ends.begin(), ends.end(),
                   [](const Place& a, const Place& b) { return Cheaper(a.label, b.label); });
  std::vector<PlanPoint> frontier;
  for (const Place& end : ends) {
    if (!frontier.empty() && end.label.error >= frontier.back().error) continue;
    frontier.push_back(Trace(problem, tables, end.fallback, end.index));
  }
  return frontier;
}

absl::StatusOr<PlanPoint> SolvePlan(const PlanProblem& problem, const PlanLimits& limits) {
  ASSIGN_OR_RETURN(const std::vector<PlanPoint> frontier,
                   PlanFrontier(problem, limits.max_fallback));
  const PlanPoint* best = Pick(frontier, limits);
  if (best == nullptr) return NothingFits(frontier, limits);
  if (best->seconds <= limits.max_seconds) return *best;
  return FastEnough(problem, limits, *best);
}

}  // namespace assay
