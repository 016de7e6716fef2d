#include "loadtest/schedule.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace assay::load {
namespace {

constexpr double kMicroseconds = 1e6;

// A Poisson process whose rate is `rates[i]` until `ends[i]` seconds, again and again until
// `until`: a unit process, stretched. Memoryless, so a draw that reaches over an edge continues
// behind it at the new rate.
template <typename Next>
void PoissonArrivals(const std::vector<std::pair<double, double>>& pieces, double until,
                     RequestSampler& sampler, const Next& next) {
  double now = 0, begin = 0, left = -std::log(sampler.Uniform());
  for (size_t piece = 0; begin < until; piece = (piece + 1) % pieces.size()) {
    const auto [seconds, rate] = pieces[piece];
    const double end = std::min(begin + seconds, until);
    for (now = begin; rate > 0 && now + left / rate < end;) {
      now += left / rate;
      next(now);
      left = -std::log(sampler.Uniform());
    }
    left -= (end - now) * rate;
    begin = end;
  }
}

double PerSecond(const Rate& rate, double capacity_per_s) {
  return rate.times_capacity ? rate.value * capacity_per_s : rate.value;
}

}  // namespace

RequestSampler::RequestSampler(const Scenario& scenario, uint64_t seed)
    : scenario_(scenario), engine_(seed) {
  for (const RequestKind& kind : scenario.kinds) weights_ += kind.weight;
}

double RequestSampler::Uniform() { return (static_cast<double>(engine_() >> 11) + 1) * 0x1p-53; }

int RequestSampler::DrawKind() {
  double left = Uniform() * weights_;
  for (size_t i = 0; i < scenario_.kinds.size(); ++i) {
    left -= scenario_.kinds[i].weight;
    if (left <= 0) return static_cast<int>(i);
  }
  return static_cast<int>(scenario_.kinds.size()) - 1;
}

int RequestSampler::Draw(const Distribution& d) {
  double value = d.first;
  if (d.shape == Distribution::Shape::kUniform) {
    value = d.first - 1 + std::ceil(Uniform() * (d.second - d.first + 1));
  } else if (d.shape == Distribution::Shape::kLognormal) {
    // Box and Muller; both draws are always made, so that a request's place in the stream is fixed.
    const double radius = std::sqrt(-2 * std::log(Uniform()));
    const double normal = radius * std::cos(2 * M_PI * Uniform());
    value = std::min(d.first * std::exp(d.second * normal), d.most);
  }
  return std::max(1, static_cast<int>(std::lround(value)));
}

PlannedRequest RequestSampler::Next(int64_t offset_us, int kind) {
  PlannedRequest out{.offset_us = offset_us, .kind = kind >= 0 ? kind : DrawKind()};
  out.prompt_words = Draw(scenario_.kinds[out.kind].prompt_words);
  out.answer_tokens = Draw(scenario_.kinds[out.kind].answer_tokens);
  out.seed = engine_();
  return out;
}

uint64_t SeedOf(const Scenario& scenario, size_t phase) {
  return scenario.seed * 0x9e3779b97f4a7c15u + phase + 1;
}

double OfferedRate(const Phase& phase, double capacity_per_s) {
  const Arrivals& arrivals = phase.arrivals;
  const double seconds = absl::ToDoubleSeconds(phase.duration);
  switch (arrivals.process) {
    case Arrivals::Process::kPoisson:
    case Arrivals::Process::kConstant:
      return PerSecond(arrivals.rate, capacity_per_s);
    case Arrivals::Process::kBurst: {
      const double share = absl::FDivDuration(arrivals.length, arrivals.every);
      return share * PerSecond(arrivals.peak, capacity_per_s) +
             (1 - share) * PerSecond(arrivals.rate, capacity_per_s);
    }
    case Arrivals::Process::kReplay:
      return static_cast<double>(arrivals.replay.size()) / seconds;
    case Arrivals::Process::kClosed:
      break;
  }
  return 0;
}

absl::StatusOr<std::vector<PlannedRequest>> PlanPhase(const Scenario& scenario, size_t index,
                                                      double capacity_per_s) {
  const Phase& phase = scenario.phases[index];
  const Arrivals& arrivals = phase.arrivals;
  if ((arrivals.rate.times_capacity || arrivals.peak.times_capacity) && capacity_per_s <= 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("phase '", phase.name,
                     "' wants a multiple of the capacity, but no closed phase before it had a "
                     "request that succeeded"));
  }
  const double seconds = absl::ToDoubleSeconds(phase.duration);
  const double expected = OfferedRate(phase, capacity_per_s) * seconds;
  if (expected > kMostArrivals) {
    return absl::ResourceExhaustedError(absl::StrCat("phase '", phase.name, "' has ", expected,
                                                     " requests, at most ", kMostArrivals));
  }
  RequestSampler sampler(scenario, SeedOf(scenario, index));
  std::vector<PlannedRequest> out;
  const auto add = [&](double at) {
    out.push_back(sampler.Next(static_cast<int64_t>(at * kMicroseconds)));
  };
  const double rate = PerSecond(arrivals.rate, capacity_per_s);
  switch (arrivals.process) {
    case Arrivals::Process::kPoisson:
      PoissonArrivals({{seconds, rate}}, seconds, sampler, add);
      break;
    case Arrivals::Process::kConstant:
      for (int64_t i = 0; static_cast<double>(i) < expected; ++i)
        add(static_cast<double>(i) / rate);
      break;
    case Arrivals::Process::kBurst: {
      const double length = absl::ToDoubleSeconds(arrivals.length);
      const double rest = absl::ToDoubleSeconds(arrivals.every) - length;
      PoissonArrivals({{length, PerSecond(arrivals.peak, capacity_per_s)}, {rest, rate}}, seconds,
                      sampler, add);
      break;
    }
    case Arrivals::Process::kReplay:
      for (const ReplayedArrival& arrival : arrivals.replay) {
        if (absl::Microseconds(arrival.offset_us) > phase.duration) break;
        out.push_back(sampler.Next(arrival.offset_us, arrival.kind));
      }
      break;
    case Arrivals::Process::kClosed:
      break;
  }
  return out;
}

std::string TextOf(const PlannedRequest& request) {
  // A token or two each in the vocabularies of the demo models, stories260K's 512 pieces among
  // them.
  static const char* const kWords[] = {"the", "cat", "dog", "she", "was", "big", "red", "sun",
                                       "day", "mom", "ran", "saw", "and", "her", "toy", "new"};
  uint64_t state = request.seed;
  std::string text;
  for (int i = 0; i < request.prompt_words; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    absl::StrAppend(&text, i > 0 ? " " : "", kWords[state >> 60]);
  }
  return text;
}

}  // namespace assay::load
