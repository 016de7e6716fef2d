// Once a second beside the run: a line of progress, and the server's figures. A thread of its own,
// because the sender must not be late.
#pragma once
#include <functional>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "loadtest/recorder.h"
#include "loadtest/runner.h"
#include "loadtest/server_metrics.h"

namespace assay::load {

class Monitor {
 public:
  // `metrics` empty: no figures of the server. `show` gets a line each second; empty: no progress.
  Monitor(const Scenario& scenario, const Recorder& recorder, const Runner& runner,
          std::string metrics, std::function<void(const std::string&)> show);
  ~Monitor();
  void Start(Instant start);
  void Stop();
  // After Stop().
  const std::vector<ServerSample>& samples() const { return samples_; }
  const std::string& error() const { return error_; }  // of the first scrape that failed

 private:
  void Loop(Instant start);
  std::string Line(double seconds) const;

  const Scenario& scenario_;
  const Recorder& recorder_;
  const Runner& runner_;
  const std::string metrics_;
  const std::function<void(const std::string&)> show_;
  Mutex mu_;
  CondVar wake_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<ServerSample> samples_;  // the thread's, until it is joined
  std::string error_;                  // likewise
  std::thread thread_;
};

}  // namespace assay::load
