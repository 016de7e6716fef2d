#include "server/drift_responder.h"

#include "absl/strings/str_cat.h"
#include "quant/policy/recipe_list.h"

namespace assay {
namespace {

// A recipe that can be asked for by name; else the policy chooses, as it did before.
std::string RecipeOf(const VersionInfo& version) {
  if (version.report == nullptr) return "";
  const std::string& name = version.report->decision.recipe.name;
  return FindLadder(name).ok() ? name : "";
}

}  // namespace

DriftResponder::Answer DriftResponder::Decide(const DriftStatus& status) const {
  Answer answer{.action = action_, .request = {.name = status.model}, .reason = ""};
  if (action_ == DriftAction::kAlert) {
    answer.reason = "drift.action is alert: nothing else is done";
    return answer;
  }
  const absl::StatusOr<VersionInfo> now = registry_.Find(status.model, status.version);
  if (!now.ok())
    return {.action = DriftAction::kAlert, .request = {}, .reason = "the version is gone"};
  answer.request.path = now->path;
  if (action_ == DriftAction::kServeReference) {
    answer.request.scheme = "f32";
    answer.reason = "admitting the checkpoint in f32";
    return answer;
  }
  if (action_ == DriftAction::kRollBack) {
    const VersionInfo* previous = nullptr;
    const std::vector<VersionInfo> all = registry_.List();
    for (const VersionInfo& version : all) {
      const bool served = version.state == VersionState::kRetired && version.was_stable &&
                          version.report != nullptr && version.report->verdict == "admitted";
      if (version.name == status.model && version.version < status.version && served)
        previous = &version;
    }
    if (previous != nullptr) {
      answer.request.path = previous->path;
      answer.request.recipe = RecipeOf(*previous);
      answer.reason = absl::StrCat("admitting what version ", previous->version, " served");
      return answer;
    }
    answer.action = DriftAction::kRefresh;
    answer.reason = "no earlier version has served: ";
  }
  answer.request.recipe = RecipeOf(*now);
  absl::StrAppend(&answer.reason, "admitting the checkpoint again");
  return answer;
}

void DriftResponder::Tell(const DriftStatus& status, LogLevel level, std::string reason) {
  events_.Add({.level = level,
               .model = status.model,
               .version = status.version,
               .kind = "action",
               .reason = std::move(reason)});
}

bool DriftResponder::ActAtOnce(const DriftStatus& status) {
  const std::pair<std::string, int64_t> version(status.model, status.version);
  const absl::StatusOr<VersionLabels> labels = registry_.Labels(status.model);
  if (!labels.ok()) return false;
  if (labels->canary == status.version) {
    const absl::Status dropped =
        versions_.Drop(status.model, status.version,
                       absl::StrCat("its drift is VIOLATED: ", DriftFigures(status)));
    return dropped.ok();  // else it is no canary any more
  }
  if (labels->previous == status.version) {
    Tell(status, LogLevel::kWarning,
         "VIOLATED, but only kept for a rollback: nothing else is done");
    return true;
  }
  if (action_ != DriftAction::kRollBack || labels->previous == 0) return false;
  if (versions_.StateOf(status.model, labels->previous) == DriftState::kViolated) return false;
  if (!answered_.insert(version).second) return true;
  const absl::Status rolled_back = versions_.RollBack(
      status.model, status.version, absl::StrCat("drift is VIOLATED: ", DriftFigures(status)));
  if (!rolled_back.ok()) {
    answered_.erase(version);
    return false;
  }
  monitor_.Acted(status.model, status.version, DriftAction::kRollBack);
  return true;
}

void DriftResponder::Act(const DriftStatus& status) {
  if (ActAtOnce(status)) return;
  const Answer answer = Decide(status);
  const std::string name(Name(answer.action));
  if (answer.action == DriftAction::kAlert) {
    monitor_.Acted(status.model, status.version, answer.action);
    return Tell(status, LogLevel::kWarning, absl::StrCat(name, ": ", answer.reason));
  }
  if (!answered_.insert({status.model, status.version}).second) return;
  const auto sink = [this, status, name](const AdmissionProgress& progress) {
    if (!progress.done) return;
    // What was found to be wrong is nothing to roll back to.
    if (progress.status.ok()) versions_.Discard(status.model, status.version);
    Tell(status, progress.status.ok() ? LogLevel::kInfo : LogLevel::kError,
         progress.status.ok()
             ? absl::StrCat(name, " done: version ", progress.version, " serves")
             : absl::StrCat(name, " failed, version ", status.version,
                            " keeps serving: ", std::string(progress.status.message())));
  };
  Tell(status, LogLevel::kWarning, absl::StrCat(name, ": ", answer.reason));  // before its end
  const absl::StatusOr<int64_t> version = admissions_.Enqueue(answer.request, sink);
  if (!version.ok()) {
    answered_.erase({status.model, status.version});
    return Tell(status, LogLevel::kError,
                absl::StrCat(name, " failed, version ", status.version,
                             " keeps serving: ", std::string(version.status().message())));
  }
  monitor_.Acted(status.model, status.version, answer.action);
}

}  // namespace assay
