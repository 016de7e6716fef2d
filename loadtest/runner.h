// Sends a scenario's requests, phase by phase, on the caller's thread.
// An open loop sends at the planned moments, whatever the server does, and says how late it was
// itself. A closed loop has so many requests open, and sends the next when one ends: a stall of the
// server delays what it would have sent, so its latencies hide stalls.
#pragma once
#include <atomic>
#include <vector>

#include "loadtest/calls.h"
#include "loadtest/recorder.h"

namespace assay::load {

struct PhaseRun {
  double begin_s = 0, end_s = 0;  // since the start of the run
  double offered_per_s = 0;       // as planned; 0: a closed loop
};

class Runner {
 public:
  // All three outlive the runner.
  Runner(const Scenario& scenario, Target& target, Recorder& recorder)
      : scenario_(scenario), target_(target), recorder_(recorder) {}
  // Returns when every request has ended. The planner's errors (PlanPhase).
  absl::Status Run(Instant start);

  // Once Run() has returned.
  const std::vector<PhaseRun>& phases() const { return phases_; }
  double capacity_per_s() const { return capacity_per_s_; }  // of the last closed phase; 0: none
  // Which phase runs. Any thread.
  size_t current_phase() const { return current_.load(std::memory_order_relaxed); }

 private:
  void RunOpen(size_t phase, const std::vector<PlannedRequest>& plan, Instant begin);
  void RunClosed(size_t phase, Instant begin);
  void Send(const Dispatch& dispatch, bool open_loop);
  void Drain();

  const Scenario& scenario_;
  Target& target_;
  Recorder& recorder_;
  std::vector<PhaseRun> phases_;
  double capacity_per_s_ = 0;
  std::atomic<size_t> current_ = 0;  // read by the progress line
};

}  // namespace assay::load
