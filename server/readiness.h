// Whether the server is ready, and which models keep it from being so. One source for the health
// service, ServerReady and /readyz. Thread-safe.
//
// Ready = not draining, no device lost, and every model found at start serves (strict), or has had
// its verdict. A model that an operator unloads is no longer waited for. Models admitted later
// never take the readiness away.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "engine/lifecycle/registry.h"

namespace assay {

class Readiness {
 public:
  // Services of the health protocol besides one per model.
  static constexpr const char* kProcess = "";
  static constexpr const char* kReady = "ready";
  using HealthSink = std::function<void(const std::string& service, bool serving)>;

  explicit Readiness(bool strict) : strict_(strict) {}

  void SetHealthSink(HealthSink sink) ABSL_LOCKS_EXCLUDED(mu_);
  // A model that must serve before the server is ready. Before StartupDeclared().
  void Require(const std::string& model) ABSL_LOCKS_EXCLUDED(mu_);
  // All required models are known: from now on the server can be ready.
  void StartupDeclared() ABSL_LOCKS_EXCLUDED(mu_);
  // From ModelRegistry::OnChange; `serves`: some version of the model serves.
  void Changed(const VersionInfo& version, bool serves) ABSL_LOCKS_EXCLUDED(mu_);
  // A required model that never got as far as the registry.
  void Failed(const std::string& model, std::string_view reason) ABSL_LOCKS_EXCLUDED(mu_);
  // A device is lost until the process is started anew: the server is neither ready nor healthy, so
  // that whoever watches it restarts it.
  void Broken(const std::string& device, std::string_view reason) ABSL_LOCKS_EXCLUDED(mu_);
  void Drain() ABSL_LOCKS_EXCLUDED(mu_);

  bool ready() const ABSL_LOCKS_EXCLUDED(mu_);
  // One line per obstacle: "smollm2: ADMITTING (verify)"; empty when ready.
  std::vector<std::string> Obstacles() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Required {
    bool serves = false, has_verdict = false;
    std::string state = "not yet admitted";
  };
  std::vector<std::string> ObstaclesLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Report(const std::string& service, bool serving) ABSL_LOCKS_EXCLUDED(mu_);

  const bool strict_;
  mutable Mutex mu_;
  HealthSink sink_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Required> required_ ABSL_GUARDED_BY(mu_);
  bool declared_ ABSL_GUARDED_BY(mu_) = false;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  std::map<std::string, std::string> broken_ ABSL_GUARDED_BY(mu_);  // device -> reason
};

}  // namespace assay
