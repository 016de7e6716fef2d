// What the server does when a version is found to disagree with its reference. A canary is dropped;
// for the stable version `drift.action` says what; one that is only kept for a rollback gets an
// event. Each action is an event with its reason and is counted. Called on the drift monitor's
// thread; an admission that it starts reports on the admission's.
#pragma once
#include <set>
#include <utility>

#include "engine/lifecycle/admission.h"
#include "server/version_control.h"

namespace assay {

class DriftResponder {
 public:
  // All of it outlives the responder's last call.
  DriftResponder(DriftAction action, const ModelRegistry& registry, AdmissionPipeline& admissions,
                 DriftMonitor& monitor, EventLog& events, VersionControl& versions)
      : action_(action),
        registry_(registry),
        admissions_(admissions),
        monitor_(monitor),
        events_(events),
        versions_(versions) {}
  // At most once per version, but for alerts.
  void Act(const DriftStatus& status);

 private:
  // What is admitted next, and why, in words.
  struct Answer {
    DriftAction action = DriftAction::kAlert;
    AdmissionRequest request;
    std::string reason;
  };
  Answer Decide(const DriftStatus& status) const;
  Answer RollBack(const DriftStatus& status, Answer answer) const;
  // As `version` was admitted, for this traffic.
  void Again(const DriftStatus& status, const VersionInfo& version, Answer& answer) const;
  // Enqueues; what comes of it is told. Once more without live prompts where these are at fault.
  absl::Status Begin(const DriftStatus& status, const std::string& name,
                     const AdmissionRequest& request);
  // By what is loaded already: a canary is dropped, the previous version takes over. False: that
  // does not answer it.
  bool ActAtOnce(const DriftStatus& status);
  void Tell(const DriftStatus& status, LogLevel level, std::string reason);
  void TellFailed(const DriftStatus& status, const std::string& name, const absl::Status& why);

  const DriftAction action_;
  const ModelRegistry& registry_;
  AdmissionPipeline& admissions_;
  DriftMonitor& monitor_;
  EventLog& events_;
  VersionControl& versions_;
  std::set<std::pair<std::string, int64_t>> answered_;
};

}  // namespace assay
