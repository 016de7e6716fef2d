#include "server/readiness.h"

#include "absl/strings/str_cat.h"

namespace assay {

void Readiness::SetHealthSink(HealthSink sink) {
  {
    MutexLock lock(mu_);
    sink_ = std::move(sink);
  }
  bool intact = false;
  {
    MutexLock lock(mu_);
    intact = broken_.empty();
  }
  Report(kProcess, intact);
  Report(kReady, ready());
}

void Readiness::Require(const std::string& model) {
  MutexLock lock(mu_);
  required_.emplace(model, Required{});
}

void Readiness::StartupDeclared() {
  {
    MutexLock lock(mu_);
    declared_ = true;
  }
  Report(kReady, ready());
}

void Readiness::Changed(const VersionInfo& version, bool serves) {
  {
    MutexLock lock(mu_);
    const auto it = required_.find(version.name);
    if (it != required_.end()) {
      it->second.serves = serves;
      it->second.state = std::string(Name(version.state));
      if (!version.stage.empty()) absl::StrAppend(&it->second.state, " (", version.stage, ")");
      if (!version.reason.empty()) absl::StrAppend(&it->second.state, ": ", version.reason);
      if (version.state == VersionState::kServing || version.state == VersionState::kRejected ||
          version.state == VersionState::kFailed) {
        it->second.has_verdict = true;
      }
      if (version.state == VersionState::kRetired && !serves) required_.erase(it);
    }
  }
  Report(version.name, serves);
  Report(kReady, ready());
}

void Readiness::Failed(const std::string& model, std::string_view reason) {
  {
    MutexLock lock(mu_);
    Required& required = required_[model];
    required.has_verdict = true;
    required.state = absl::StrCat("FAILED: ", std::string(reason));
  }
  Report(kReady, ready());
}

void Readiness::Broken(const std::string& device, std::string_view reason) {
  {
    MutexLock lock(mu_);
    broken_[device] = std::string(reason);
  }
  Report(kReady, false);
  Report(kProcess, false);
}

void Readiness::Drain() {
  MutexLock lock(mu_);
  draining_ = true;
}

bool Readiness::ready() const {
  MutexLock lock(mu_);
  return ObstaclesLocked().empty();
}

std::vector<std::string> Readiness::Obstacles() const {
  MutexLock lock(mu_);
  return ObstaclesLocked();
}

std::vector<std::string> Readiness::ObstaclesLocked() const {
  std::vector<std::string> out;
  if (draining_) out.push_back("the server is draining");
  for (const auto& [device, reason] : broken_)
    out.push_back(absl::StrCat(device, " is lost, restart the server: ", reason));
  if (!declared_) out.push_back("the server is starting");
  for (const auto& [model, required] : required_) {
    const bool enough = required.serves || (!strict_ && required.has_verdict);
    if (!enough) out.push_back(absl::StrCat(model, ": ", required.state));
  }
  return out;
}

void Readiness::Report(const std::string& service, bool serving) {
  HealthSink sink;
  {
    MutexLock lock(mu_);
    if (draining_) return;  // the health service has been shut down: all NOT_SERVING
    sink = sink_;
  }
  if (sink) sink(service, serving);
}

}  // namespace assay
