// Moves the labels of versions (docs/adr/0011-versions-side-by-side.md) for clients, for the drift
// responder and for `versions.auto_promote`: checks what a promotion depends on, and makes an
// event, a log line and a count of every move, those of admissions included. Thread-safe.
#pragma once
#include <string>
#include <string_view>

#include "engine/lifecycle/drift_monitor.h"
#include "engine/lifecycle/event_log.h"
#include "server/config.h"

namespace assay {

// "mean_kl 0.00312 of 0.01 allowed after 34 requests".
std::string DriftFigures(const DriftStatus& status);

class VersionControl {
 public:
  // All of it outlives the control's last call.
  VersionControl(const VersionOptions& options, ModelRegistry& registry, const DriftMonitor& drift,
                 Metrics& metrics, EventLog& events)
      : options_(options), registry_(registry), drift_(drift), metrics_(metrics), events_(events) {}
  VersionControl(const VersionControl&) = delete;
  VersionControl& operator=(const VersionControl&) = delete;

  void Watch();  // once, before the first version is published
  // NotFound: no such model; FailedPrecondition: nobody has the label. InvalidArgument: not 0..1.
  absl::Status SetShare(const std::string& model, double share);
  // FailedPrecondition also: a condition is not met, with its figures. `force` passes over drift.
  absl::Status Promote(const std::string& model, bool force);
  // `expected`: the stable version, the canary; 0: whichever it is. `reason`: for the event.
  absl::Status RollBack(const std::string& model, int64_t expected, std::string_view reason);
  absl::Status Drop(const std::string& model, int64_t expected, std::string_view reason);
  // After a request of a version was compared with its reference: promotes, where that is wanted.
  void Compared(const DriftStatus& status);
  DriftState StateOf(const std::string& model, int64_t version) const;  // OK: not watched, too

 private:
  // Why live traffic does not speak for the version yet; OK: it does.
  absl::Status CheckDrift(const std::string& model, int64_t version) const;
  absl::Status CheckDrift(const DriftStatus& status) const;

  const VersionOptions options_;
  ModelRegistry& registry_;
  const DriftMonitor& drift_;
  Metrics& metrics_;
  EventLog& events_;
};

}  // namespace assay
