// The part of the registry that moves labels from version to version.
#include <algorithm>
#include <chrono>
#include <future>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/lifecycle/registry.h"

namespace assay {
namespace {

std::string PercentText(double share) { return absl::StrFormat("%.4g %%", 100 * share); }

}  // namespace

void ModelRegistry::Relabel(const std::string& name) {
  const VersionLabels& labels = labels_[name];
  for (auto& [version, entry] : models_[name]) {
    entry.info.label = std::string(labels.LabelOf(version));
    entry.info.traffic_share = labels.ShareOf(version);
    if (entry.servable == nullptr || entry.servable->metrics == nullptr) continue;
    entry.servable->metrics->SetTrafficShare(entry.info.traffic_share);
  }
  if (labels.previous != 0 && !keeper_.joinable() && !stop_) {
    keeper_ = std::thread([this] { Keep(); });
  }
  windows_changed_.NotifyAll();
}

std::string ModelRegistry::KeptText(const std::string& name) const {
  const VersionLabels& labels = labels_.find(name)->second;
  if (labels.previous == 0) return "";
  return absl::StrCat(
      "; version ", labels.previous, " is kept for a rollback until ",
      absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", labels.previous_until, absl::UTCTimeZone()));
}

void ModelRegistry::Replace(const std::string& name, int64_t version, int64_t by,
                            Changes& changes) {
  if (version == 0) return;
  const std::string reason = absl::StrCat("replaced by version ", by);
  BeginDrain(EntryOf(name, version), reason, reason, changes);
}

void ModelRegistry::MakeStable(const std::string& name, int64_t version, int64_t bad,
                               Changes& changes) {
  VersionLabels& labels = labels_[name];
  // Published again: not its own successor.
  if (labels.stable == version) labels.stable = 0;
  if (labels.previous == version) labels.previous = 0;
  if (labels.canary == version) labels.canary = 0;
  const int64_t former = labels.stable, earlier = labels.previous;
  const bool keeps = former != 0 && former != bad && rollback_window_ > absl::ZeroDuration();
  labels.stable = version;
  EntryOf(name, version).info.was_stable = true;
  labels.previous = keeps ? former : 0;
  labels.previous_until = keeps ? steady_.Now() + rollback_window_ : absl::InfiniteFuture();
  if (labels.canary == 0) labels.canary_share = 0;
  Relabel(name);
  Replace(name, earlier, version, changes);
  if (!keeps) Replace(name, former, version, changes);
}

void ModelRegistry::Publish(std::shared_ptr<Servable> servable, int64_t bad) {
  const std::string name = servable->name;
  const int64_t version = servable->version;
  Changes changes;
  {
    MutexLock lock(mu_);
    Entry& entry = Install(std::move(servable));
    Move(entry, VersionState::kServing, "", changes);
    MakeStable(name, version, bad, changes);
    changes.states.front() = entry.info;  // with its label
    changes.labels.push_back({VersionChange::kPublish, name, version,
                              absl::StrCat("published as stable", KeptText(name))});
  }
  Settle(changes);
}

absl::Status ModelRegistry::PublishCanary(std::shared_ptr<Servable> servable, double share) {
  const std::string name = servable->name;
  const int64_t version = servable->version;
  Changes changes;
  {
    MutexLock lock(mu_);
    VersionLabels& labels = labels_[name];
    if (labels.stable == 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("a canary needs a stable version beside it, and none serves: model=", name));
    }
    Entry& entry = Install(std::move(servable));
    const int64_t former = labels.canary;
    labels.canary = version;
    labels.canary_share = share;
    Relabel(name);
    Move(entry, VersionState::kServing, "", changes);
    changes.labels.push_back({VersionChange::kCanary, name, version,
                              absl::StrCat("canary with ", PercentText(share),
                                           " of the requests, beside version ", labels.stable)});
    if (former != version) Replace(name, former, version, changes);
  }
  Settle(changes);
  return absl::OkStatus();
}

absl::StatusOr<VersionLabels*> ModelRegistry::LabelsWith(std::string_view name,
                                                         std::string_view label, int64_t expected) {
  const auto model = models_.find(name);
  if (model == models_.end() || model->second.empty()) {
    return absl::NotFoundError(absl::StrCat("no such model: model=", std::string(name)));
  }
  VersionLabels& labels = labels_[std::string(name)];
  const absl::StatusOr<int64_t> version = labels.VersionOf(label);
  if (!version.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("model '", std::string(name), "' has no ", std::string(label), " version"));
  }
  if (expected == 0 || *version == expected) return &labels;
  return absl::FailedPreconditionError(absl::StrCat(
      "the ", std::string(label), " version is another one by now: model=", std::string(name),
      " version=", *version, " expected=", expected));
}

absl::StatusOr<VersionLabels> ModelRegistry::Labels(std::string_view name) const {
  MutexLock lock(mu_);
  const auto model = models_.find(name);
  if (model == models_.end() || model->second.empty()) {
    return absl::NotFoundError(absl::StrCat("no such model: model=", std::string(name)));
  }
  const auto labels = labels_.find(name);
  return labels == labels_.end() ? VersionLabels() : labels->second;
}

absl::Status ModelRegistry::SetCanaryShare(std::string_view name, double share) {
  Changes changes;
  {
    MutexLock lock(mu_);
    ASSIGN_OR_RETURN(VersionLabels* const labels, LabelsWith(name, "canary", 0));
    const double before = std::exchange(labels->canary_share, share);
    Relabel(std::string(name));
    changes.labels.push_back({VersionChange::kCanary, std::string(name), labels->canary,
                              absl::StrCat("canary with ", PercentText(share),
                                           " of the requests, before ", PercentText(before))});
  }
  Settle(changes);
  return absl::OkStatus();
}

absl::Status ModelRegistry::Promote(std::string_view name, int64_t expected,
                                    std::string_view reason) {
  Changes changes;
  {
    MutexLock lock(mu_);
    const std::string key(name);
    ASSIGN_OR_RETURN(VersionLabels* const labels, LabelsWith(name, "canary", expected));
    const int64_t version = labels->canary, former = labels->stable;
    MakeStable(key, version, /*bad=*/0, changes);
    changes.labels.push_back({VersionChange::kPromote, key, version,
                              absl::StrCat("promoted from canary to stable, in place of version ",
                                           former, ": ", std::string(reason), KeptText(key))});
  }
  Settle(changes);
  return absl::OkStatus();
}

absl::Status ModelRegistry::RollBack(std::string_view name, int64_t expected,
                                     std::string_view reason) {
  Changes changes;
  {
    MutexLock lock(mu_);
    const std::string key(name);
    RETURN_IF_ERROR(LabelsWith(name, "stable", expected).status());
    ASSIGN_OR_RETURN(VersionLabels* const labels, LabelsWith(name, "previous", 0));
    std::swap(labels->stable, labels->previous);
    labels->previous_until = steady_.Now() + rollback_window_;
    Relabel(key);
    changes.labels.push_back({VersionChange::kRollBack, key, labels->stable,
                              absl::StrCat("stable again, in place of version ", labels->previous,
                                           ": ", std::string(reason), KeptText(key))});
  }
  Settle(changes);
  return absl::OkStatus();
}

absl::Status ModelRegistry::DropCanary(std::string_view name, int64_t expected,
                                       std::string_view reason) {
  Changes changes;
  {
    MutexLock lock(mu_);
    const std::string key(name);
    ASSIGN_OR_RETURN(VersionLabels* const labels, LabelsWith(name, "canary", expected));
    const int64_t version = labels->canary;
    const std::string why = absl::StrCat("canary dropped: ", std::string(reason));
    BeginDrain(EntryOf(name, version), why, why, changes);
    changes.labels.push_back({VersionChange::kDrop, key, version, why});
  }
  Settle(changes);
  return absl::OkStatus();
}

absl::Time ModelRegistry::NextExpiry() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [name, labels] : labels_) next = std::min(next, labels.previous_until);
  return next;
}

void ModelRegistry::RetireExpired() {
  Changes changes;
  {
    MutexLock lock(mu_);
    for (const auto& [name, labels] : labels_) {
      if (labels.previous == 0 || labels.previous_until > steady_.Now()) continue;
      BeginDrain(EntryOf(name, labels.previous), "the rollback window is over",
                 "the rollback window is over", changes);
    }
  }
  Settle(changes);
}

bool ModelRegistry::RetirePrevious(std::string_view device, std::string_view reason) {
  Changes changes;
  const auto freed = std::make_shared<std::promise<void>>();
  {
    MutexLock lock(mu_);
    std::pair<std::string, int64_t> first;
    absl::Time ends = absl::InfiniteFuture();
    for (const auto& [name, labels] : labels_) {
      if (labels.previous == 0 || labels.previous_until > ends) continue;
      const Servable& previous = *EntryOf(name, labels.previous).servable;
      if (previous.model->device().name() != device) continue;
      first = {name, labels.previous};
      ends = labels.previous_until;
    }
    if (first.second == 0) return false;
    Entry& entry = EntryOf(first.first, first.second);
    BeginDrain(entry, std::string(reason), std::string(reason), changes);
    entry.unloads.push_back(std::shared_ptr<void>(nullptr, [freed](void*) { freed->set_value(); }));
  }
  Settle(changes);
  freed->get_future().wait();
  return true;
}

void ModelRegistry::Keep() {
  while (true) {
    {
      MutexLock lock(mu_);
      while (!stop_ && NextExpiry() > steady_.Now()) {
        const absl::Duration left = std::min(NextExpiry() - steady_.Now(), absl::Hours(1));
        windows_changed_.WaitUntil(mu_, std::chrono::steady_clock::now() +
                                            absl::ToChronoMilliseconds(left) +
                                            std::chrono::milliseconds(1));
      }
      if (stop_) return;
    }
    RetireExpired();
  }
}

int64_t ModelRegistry::HighestServing(std::string_view name) const {
  MutexLock lock(mu_);
  const auto model = models_.find(name);
  if (model == models_.end()) return 0;
  int64_t highest = 0;
  for (const auto& [version, entry] : model->second) {
    if (entry.info.state == VersionState::kServing) highest = std::max(highest, version);
  }
  return highest;
}

void ModelRegistry::OnLabelChange(std::function<void(const LabelChange&)> callback) {
  MutexLock lock(mu_);
  label_callbacks_.push_back(std::move(callback));
}

}  // namespace assay
