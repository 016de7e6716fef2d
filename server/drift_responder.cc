#include "server/drift_responder.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "quant/policy/recipe_list.h"

namespace assay {
namespace {

// Fewer prompts, or fewer tokens in them, are no calibration set.
constexpr int kFewestPrompts = 32;
constexpr int64_t kFewestTokens = 2048;
// After so long without an action the next is taken at once again; no action waits longer.
constexpr absl::Duration kForgotten = absl::Hours(24);
constexpr char kTime[] = "%Y-%m-%d %H:%M:%S UTC";
// Of the layers that are quantized, how many raise_precision takes out at a time.
constexpr double kRaised = 0.1;

// As it was asked for: a ladder by its name is climbed again, anything else is taken as it served.
void TakeRecipe(const VersionInfo& version, AdmissionRequest& request) {
  if (version.report == nullptr) return;
  const Recipe& recipe = version.report->decision.recipe;
  if (FindLadder(recipe.name).ok()) {
    request.recipe = recipe.name;
  } else {
    request.exact = recipe;
  }
}

// Of quantized layers those whose outputs are least accurate, and the one whose input its static
// scale cuts off.
std::vector<std::string> WorstLayers(const AdmissionReport& report, const DriftStatus& status) {
  std::vector<std::pair<double, std::string>> by_accuracy;
  for (const LayerReport& layer : report.layers) {
    const absl::StatusOr<const QuantScheme*> scheme = FindScheme(layer.scheme);
    if (scheme.ok() && (*scheme)->is_floating()) continue;
    const bool cut = status.input.shifted && layer.name == status.input.saturated_layer;
    by_accuracy.emplace_back(cut ? -1e9 : layer.output_sqnr_db, layer.name);
  }
  std::sort(by_accuracy.begin(), by_accuracy.end());
  const auto count = static_cast<size_t>(std::ceil(kRaised * by_accuracy.size()));
  std::vector<std::string> worst;
  for (size_t i = 0; i < count; ++i) worst.push_back(by_accuracy[i].second);
  return worst;
}

}  // namespace

void DriftResponder::Again(const DriftStatus& status, const VersionInfo& version,
                           Answer& answer) const {
  TakeRecipe(version, answer.request);
  absl::StrAppend(&answer.reason, "admitting the checkpoint again");
  // Where memory went bad, the calibration was not at fault.
  if (status.replay_difference > DriftMonitor::kReplayTolerance) return;
  std::string prompts = monitor_.Prompts(status.model, status.version);
  const auto count = std::count(prompts.begin(), prompts.end(), '\n');
  const auto tokens = std::count(prompts.begin(), prompts.end(), ',') + count;
  if (count < kFewestPrompts || tokens < kFewestTokens) return;
  absl::StrAppend(&answer.reason, ", what is calibrated with ", count, " live prompts");
  answer.request.traffic = std::move(prompts);
}

DriftResponder::Answer DriftResponder::RollBack(const DriftStatus& status, Answer answer) const {
  std::optional<VersionInfo> previous;
  for (VersionInfo& version : registry_.List()) {
    const auto history = history_.find(status.model);
    if (history != history_.end() && history->second.violated.contains(version.version)) continue;
    const bool served = version.state == VersionState::kRetired && version.was_stable &&
                        version.report != nullptr && version.report->verdict == "admitted";
    if (version.name == status.model && version.version < status.version && served)
      previous = std::move(version);
  }
  if (previous.has_value()) {
    answer.request.path = previous->path;
    TakeRecipe(*previous, answer.request);
    answer.reason = absl::StrCat("admitting what version ", previous->version, " served");
    return answer;
  }
  answer.action = DriftAction::kRefresh;
  answer.reason = "no earlier version that was not VIOLATED has served: ";
  return answer;
}

DriftResponder::Answer DriftResponder::Decide(const DriftStatus& status) const {
  Answer answer{.action = options_.action,
                .request = {.name = status.model, .instead_of = status.version},
                .reason = ""};
  const absl::StatusOr<VersionInfo> now = registry_.Find(status.model, status.version);
  if (!now.ok())
    return {.action = DriftAction::kAlert, .request = {}, .reason = "the version is gone"};
  answer.request.path = now->path;
  if (options_.action == DriftAction::kServeReference) {
    answer.request.scheme = "f32";
    answer.reason = "admitting the checkpoint in f32";
    return answer;
  }
  if (options_.action == DriftAction::kRollBack) {
    answer = RollBack(status, std::move(answer));
    if (answer.action == DriftAction::kRollBack) return answer;
  }
  Again(status, *now, answer);
  if (options_.action != DriftAction::kRaisePrecision || now->report == nullptr) return answer;
  answer.request.keep = WorstLayers(*now->report, status);
  if (answer.request.keep.empty()) {
    answer.action = DriftAction::kRefresh;
    absl::StrAppend(&answer.reason, "; no layer is left to raise");
  } else {
    absl::StrAppend(&answer.reason, ", ", answer.request.keep.size(), " layers in ",
                    now->report->decision.recipe.fallback_scheme, ": ",
                    absl::StrJoin(answer.request.keep, ", "));
  }
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
  if (options_.action != DriftAction::kRollBack || labels->previous == 0) return false;
  if (versions_.StateOf(status.model, labels->previous) == DriftState::kViolated) return false;
  if (!answered_.insert(version).second) return true;
  const absl::Status rolled_back = versions_.RollBack(
      status.model, status.version, absl::StrCat("drift is VIOLATED: ", DriftFigures(status)));
  if (!rolled_back.ok()) {
    answered_.erase(version);
    return false;
  }
  metrics_.DriftActed(status.model, DriftAction::kRollBack);
  return true;
}

absl::Time DriftResponder::NotBefore(const std::string& model) const {
  const auto found = history_.find(model);
  if (found == history_.end() || found->second.actions == 0) return absl::InfinitePast();
  const int doublings = std::min(found->second.actions - 1, 30);
  return found->second.last +
         std::min(options_.interval * static_cast<double>(int64_t{1} << doublings), kForgotten);
}

void DriftResponder::Act(const DriftStatus& status) {
  History& history = history_[status.model];
  history.violated.insert(status.version);
  if (ActAtOnce(status)) return;
  if (options_.action == DriftAction::kAlert) {
    metrics_.DriftActed(status.model, DriftAction::kAlert);
    return Tell(status, LogLevel::kWarning, "alert: drift.action is alert: nothing else is done");
  }
  if (answered_.contains({status.model, status.version})) return;
  history.last = std::min(history.last, clock_.Now());  // the clock may have been set back
  if (clock_.Now() - history.last > kForgotten) history.actions = 0;
  const absl::Time due = NotBefore(status.model);
  if (clock_.Now() >= due) return Admit(status);
  history.waits = status.version;
  Tell(status, LogLevel::kWarning,
       absl::StrCat(std::string(Name(options_.action)), " waits: the one before, at ",
                    absl::FormatTime(kTime, history.last, absl::UTCTimeZone()),
                    ", did not help; not before ",
                    absl::FormatTime(kTime, due, absl::UTCTimeZone())));
}

void DriftResponder::Compared(const DriftStatus& status) {
  const auto found = history_.find(status.model);
  if (found == history_.end() || found->second.waits != status.version) return;
  found->second.last = std::min(found->second.last, clock_.Now());
  if (status.state != DriftState::kViolated) {
    found->second.waits = 0;
  } else if (clock_.Now() >= NotBefore(status.model)) {
    found->second.waits = 0;
    Admit(status);
  }
}

void DriftResponder::Admit(const DriftStatus& status) {
  const Answer answer = Decide(status);
  const std::string name(Name(answer.action));
  if (answer.action == DriftAction::kAlert) {
    metrics_.DriftActed(status.model, answer.action);
    return Tell(status, LogLevel::kWarning, absl::StrCat(name, ": ", answer.reason));
  }
  if (!answered_.insert({status.model, status.version}).second) return;
  Tell(status, LogLevel::kWarning, absl::StrCat(name, ": ", answer.reason));  // before its end
  const absl::Status begun = Begin(status, name, answer.request);
  if (!begun.ok()) {
    answered_.erase({status.model, status.version});
    return TellFailed(status, name, begun);
  }
  History& history = history_[status.model];
  ++history.actions;
  history.last = clock_.Now();
  metrics_.DriftActed(status.model, answer.action);
}

absl::Status DriftResponder::Begin(const DriftStatus& status, const std::string& name,
                                   const AdmissionRequest& request) {
  const auto sink = [this, status, name, request](const AdmissionProgress& progress) {
    if (!progress.done) return;
    if (progress.status.ok()) {
      return Tell(status, LogLevel::kInfo,
                  absl::StrCat(name, " done: version ", progress.version, " serves"));
    }
    if (request.traffic.empty() || absl::IsUnavailable(progress.status))
      return TellFailed(status, name, progress.status);
    Tell(status, LogLevel::kWarning,
         absl::StrCat(name, " with live prompts failed, once more as the recipe says: ",
                      progress.status.message()));
    AdmissionRequest again = request;
    again.traffic.clear();
    const absl::Status begun = Begin(status, name, again);
    if (!begun.ok()) TellFailed(status, name, begun);
  };
  return admissions_.Enqueue(request, sink).status();
}

void DriftResponder::TellFailed(const DriftStatus& status, const std::string& name,
                                const absl::Status& why) {
  Tell(status, LogLevel::kError,
       absl::StrCat(name, " failed, version ", status.version, " keeps serving: ", why.message()));
}

}  // namespace assay
