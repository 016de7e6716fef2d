#include "loadtest/runner.h"

#include <algorithm>
#include <thread>

namespace assay::load {
namespace {

std::chrono::nanoseconds ToChrono(absl::Duration duration) {
  return std::chrono::nanoseconds(absl::ToInt64Nanoseconds(duration));
}

double SecondsBetween(Instant from, Instant to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

absl::Status Runner::Run(Instant start) {
  recorder_.SetStart(start);
  Instant begin = start;
  for (size_t i = 0; i < scenario_.phases.size(); ++i) {
    const Phase& phase = scenario_.phases[i];
    const bool closed = phase.arrivals.process == Arrivals::Process::kClosed;
    absl::StatusOr<std::vector<PlannedRequest>> plan = PlanPhase(scenario_, i, capacity_per_s_);
    if (!plan.ok()) {
      Drain();
      return plan.status();
    }
    current_.store(i, std::memory_order_relaxed);
    if (closed) {  // its clients are the only ones
      Drain();
      begin = SteadyClock::now();
    } else if (plan->size() > 100000) {
      begin = SteadyClock::now();  // planning took a moment, which is nobody's lateness
    }
    Instant end = begin + ToChrono(phase.duration);
    if (closed) {
      RunClosed(i, begin);
      Drain();
      end = SteadyClock::now();
      Tally sum;
      for (size_t kind = 0; kind < scenario_.kinds.size(); ++kind) {
        sum.Merge(recorder_.cell(i, kind));
      }
      capacity_per_s_ =
          static_cast<double>(sum.outcomes["OK"]) / std::max(SecondsBetween(begin, end), 1e-9);
    } else {
      RunOpen(i, *plan, begin);
      std::this_thread::sleep_until(end);
      if (phase.drain) {
        Drain();
        end = std::max(end, SteadyClock::now());
      }
    }
    phases_.push_back({SecondsBetween(start, begin), SecondsBetween(start, end),
                       OfferedRate(phase, capacity_per_s_)});
    begin = end;
  }
  Drain();
  return absl::OkStatus();
}

void Runner::RunOpen(size_t phase, const std::vector<PlannedRequest>& plan, Instant begin) {
  for (const PlannedRequest& planned : plan) {
    const Instant intended = begin + std::chrono::microseconds(planned.offset_us);
    if (intended > SteadyClock::now()) std::this_thread::sleep_until(intended);
    const Dispatch dispatch{planned, phase, intended};
    if (recorder_.open() >= scenario_.max_open) {
      recorder_.OnNotSent(dispatch);
    } else {
      Send(dispatch, /*open_loop=*/true);
    }
  }
}

void Runner::RunClosed(size_t phase, Instant begin) {
  const Instant end = begin + ToChrono(scenario_.phases[phase].duration);
  RequestSampler sampler(scenario_, SeedOf(scenario_, phase));
  while (recorder_.WaitUntilOpenIsBelow(scenario_.phases[phase].arrivals.clients, end)) {
    const Instant now = SteadyClock::now();
    if (now >= end) break;
    const int64_t offset =
        std::chrono::duration_cast<std::chrono::microseconds>(now - begin).count();
    Send({sampler.Next(offset), phase, now}, /*open_loop=*/false);
  }
}

void Runner::Send(const Dispatch& dispatch, bool open_loop) {
  const int64_t late =
      std::chrono::duration_cast<std::chrono::microseconds>(SteadyClock::now() - dispatch.intended)
          .count();
  recorder_.OnStarted(dispatch, late, open_loop);
  target_.Start(dispatch, [this](CallResult&& result) { recorder_.OnEnded(result); });
}

void Runner::Drain() {
  // Every request has a deadline, so this ends; an hour is never reached.
  while (!recorder_.WaitUntilOpenIsBelow(1, SteadyClock::now() + std::chrono::hours(1))) {
  }
}

}  // namespace assay::load
