// What the server does when a version is found to disagree with its reference. A canary is dropped;
// for the stable version `drift.action` says what; one that is only kept for a rollback gets an
// event. Each action is an event with its reason and is counted.
//
// What an action brings may be found wrong, too (the checkpoint itself does not suit this traffic,
// or the gate's text does not). The first action for a model is taken at once; the next within a
// day not before `interval` after the one before, the one after that not before twice as long, at
// most a day, and so on. A version that has been VIOLATED is never what is rolled back to.
//
// Called on the drift monitor's thread; an admission that it starts reports on the admission's.
#pragma once
#include <map>
#include <set>
#include <utility>

#include "engine/lifecycle/admission.h"
#include "server/version_control.h"

namespace assay {

class DriftResponder {
 public:
  struct Options {
    DriftAction action = DriftAction::kAlert;
    absl::Duration interval = absl::Minutes(10);
  };
  // What it works with; all of it outlives the responder's last call.
  struct Server {
    const ModelRegistry& registry;
    AdmissionPipeline& admissions;
    DriftMonitor& monitor;
    EventLog& events;
    VersionControl& versions;
    Metrics& metrics;
    const Clock& clock;
  };
  DriftResponder(const Options& options, const Server& server)
      : options_(options),
        registry_(server.registry),
        admissions_(server.admissions),
        monitor_(server.monitor),
        events_(server.events),
        versions_(server.versions),
        metrics_(server.metrics),
        clock_(server.clock) {}
  // A version has become VIOLATED. At most one action per version, but for alerts.
  void Act(const DriftStatus& status);
  // After every comparison: takes the action that had to wait, when its time has come.
  void Compared(const DriftStatus& status);

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
  void Admit(const DriftStatus& status);
  // When the next action for the model may be taken.
  absl::Time NotBefore(const std::string& model) const;
  void Tell(const DriftStatus& status, LogLevel level, std::string reason);
  void TellFailed(const DriftStatus& status, const std::string& name, const absl::Status& why);

  struct History {
    int actions = 0;  // in a row
    absl::Time last;
    std::set<int64_t> violated;  // versions
    int64_t waits = 0;           // a version that is acted on later; 0: none
  };

  const Options options_;
  const ModelRegistry& registry_;
  AdmissionPipeline& admissions_;
  DriftMonitor& monitor_;
  EventLog& events_;
  VersionControl& versions_;
  Metrics& metrics_;
  const Clock& clock_;
  std::set<std::pair<std::string, int64_t>> answered_;
  std::map<std::string, History> history_;  // by model
};

}  // namespace assay
