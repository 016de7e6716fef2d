// Does the model that serves still agree with its reference, on this traffic? Sampled requests are
// computed again by both (shadow_evaluator.h), off the hot path, and a sequential test
// (quant/sequential.h) compares the mean loss per request with what admission measured.
//
// One thread does it, at idle priority: it runs when the cores have nothing else to do, and within
// a ceiling of CPU time and of tokens. The limit of a version's mean loss is
//
//   min(budget, max(tolerance * upper bound of the certificate, a floor)),
//
// where the budget is the policy's. An observation is the mean over a request's positions of
// min(loss, clip) / clip, clip = kClip * limit; an answer that is not what the model computes now
// counts as 1. Prompts stay in memory, in a bounded ring that is overwritten when a version ends.
//
// Thread-safe. The registry, metrics, events and clock outlive the monitor; engines that were given
// a watch may outlive it.
#pragma once
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/lifecycle/drift_options.h"
#include "engine/lifecycle/event_log.h"
#include "engine/lifecycle/input_drift.h"
#include "engine/lifecycle/registry.h"
#include "engine/lifecycle/shadow_evaluator.h"
#include "engine/lifecycle/traffic_sampler.h"
#include "quant/sequential.h"

namespace assay {

struct DriftStatus {
  std::string model;
  int64_t version = 0;
  std::string statistic;  // "mean_kl" (nats), "cosine_loss", "label_flip"
  DriftState state = DriftState::kOk;
  std::string cause;  // why not OK: "mean" or "change"
  // Of the statistic, clipped, over the requests since the test began anew (with the first, and
  // with each verdict): mean, its standard error, its band; and the limit.
  double score = 0, standard_error = 0, low = 0, high = 0, limit = 0;
  int64_t since = 0;                             // how many those are
  double certificate = 0, budget = 0;            // the bound admission measured; what it allows
  double top1_flip = 0, logprob_difference = 0;  // decoders, means over requests
  double replay_difference = 0;                  // the largest
  double e_value = 1, change_evidence = 1;
  int64_t samples = 0, mismatches = 0, skipped = 0, tokens = 0;
  size_t waiting = 0;
  double cpu_seconds = 0;
  absl::Time last, violated_at;  // UnixEpoch: never
  InputDriftStatus input;
  std::string error;  // why nothing can be compared; empty: can
};

class DriftMonitor {
 public:
  static constexpr double kClip = 20;
  // Answers differ from what the model computes now by at most this log probability.
  static constexpr double kReplayTolerance = 0.01;
  // A GPU computed the prompt in steps of other sizes, with weights and sums rounded elsewhere.
  static constexpr double kReplayToleranceOnGpu = 0.5;
  // A request counts as a mismatch above so many times the limit.
  static constexpr double kMismatch = 4;

  DriftMonitor(const DriftOptions& options, const ModelRegistry& registry, Metrics& metrics,
               EventLog& events, const Clock& clock);
  ~DriftMonitor();
  const DriftOptions& options() const { return options_; }
  // Called on the monitor's thread when a version becomes VIOLATED. Set before the first Watch.
  void OnViolated(std::function<void(const DriftStatus&)> callback) {
    on_violated_ = std::move(callback);
  }
  // Called on the monitor's thread after every comparison. Set before the first Watch.
  void OnCompared(std::function<void(const DriftStatus&)> callback) {
    on_compared_ = std::move(callback);
  }
  // For the engine of a version that is about to serve; null when nothing is looked at.
  // `checkpoint` is what was admitted: the reference.
  std::shared_ptr<TrafficWatch> Watch(const AdmissionReport& report, ModelTask task,
                                      std::shared_ptr<const Checkpoint> checkpoint)
      ABSL_LOCKS_EXCLUDED(mu_);
  // A version that no longer serves: its ring is overwritten, its series go.
  void Forget(std::string_view model, int64_t version) ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<DriftStatus> List() const ABSL_LOCKS_EXCLUDED(mu_);  // by name, then version
  // The kept prompts of a version as a calibration source (calibration_source.h): lines of token
  // ids, oldest first. They hold what users wrote: not for logs or files. Empty: none.
  std::string Prompts(std::string_view model, int64_t version) const ABSL_LOCKS_EXCLUDED(mu_);
  void WaitUntilIdle() ABSL_LOCKS_EXCLUDED(mu_);  // tests: no request waits

 private:
  struct Subject;
  struct Shared;  // with engines
  void Work() ABSL_LOCKS_EXCLUDED(mu_);
  // Lets the thread's priority be that of others until what it does is over: somebody waits for it.
  void Hurry() ABSL_LOCKS_EXCLUDED(mu_);
  std::shared_ptr<Subject> Next(ServedRequest& request) ABSL_LOCKS_EXCLUDED(mu_);
  // Returns how long the thread has to rest afterwards.
  absl::Duration Look(const std::shared_ptr<Subject>& subject, const ServedRequest& request)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<ShadowScore> Score(Subject& subject, const ServedRequest& request)
      ABSL_LOCKS_EXCLUDED(mu_);
  void Record(Subject& subject, const ServedRequest& request, const ShadowScore& score,
              double cpu_seconds) ABSL_LOCKS_EXCLUDED(mu_);
  void RecordInput(Subject& subject, const ServedRequest& request, std::vector<Event>& news)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Failed(Subject& subject, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void Publish(Subject& subject) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const DriftOptions options_;
  const ModelRegistry& registry_;
  Metrics& metrics_;
  EventLog& events_;
  const Clock& clock_;
  std::function<void(const DriftStatus&)> on_violated_, on_compared_;
  const std::shared_ptr<Shared> shared_;
  mutable Mutex mu_;
  std::map<std::pair<std::string, int64_t>, std::shared_ptr<Subject>> subjects_
      ABSL_GUARDED_BY(mu_);
  std::thread worker_;  // last
};

}  // namespace assay
