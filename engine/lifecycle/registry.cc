#include "engine/lifecycle/registry.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <chrono>
#include <future>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace assay {
namespace {

uint64_t WeightBytes(const Servable& servable) {
  if (servable.model == nullptr) return 0;
  uint64_t bytes = servable.model->other_weight_bytes();
  for (const auto& [name, linear] : servable.model->linears()) bytes += linear->bytes();
  return bytes;
}

// Asks the engine, which has a lock of its own: never under the registry's.
void FillLoad(const Servable& servable, VersionInfo& info) {
  info.weight_bytes = WeightBytes(servable);
  if (servable.generate != nullptr) {
    info.load = servable.generate->load();
    info.kv_bytes = servable.generate->kv_bytes();
    info.workspace_bytes = servable.generate->scratch_bytes();
  }
  if (servable.encode != nullptr) {
    info.load = servable.encode->load();
    info.workspace_bytes = servable.encode->scratch_bytes();
  }
}

void DrainEngine(Servable& servable) {
  if (servable.generate != nullptr) servable.generate->Drain();
  if (servable.encode != nullptr) servable.encode->Drain();
}

bool Ended(VersionState state) {
  return state == VersionState::kRetired || state == VersionState::kRejected ||
         state == VersionState::kFailed;
}

void LogChange(const VersionInfo& info) {
  const std::string version = absl::StrCat(info.version), state(Name(info.state));
  if (info.reason.empty()) {
    Log(LogLevel::kInfo, "version state",
        {{"model", info.name}, {"version", version}, {"state", state}});
  } else {
    Log(LogLevel::kInfo, "version state",
        {{"model", info.name}, {"version", version}, {"state", state}, {"reason", info.reason}});
  }
}

}  // namespace

std::string_view Name(VersionState state) {
  switch (state) {
    case VersionState::kQueued:
      return "QUEUED";
    case VersionState::kAdmitting:
      return "ADMITTING";
    case VersionState::kWarming:
      return "WARMING";
    case VersionState::kServing:
      return "SERVING";
    case VersionState::kDraining:
      return "DRAINING";
    case VersionState::kRetired:
      return "RETIRED";
    case VersionState::kRejected:
      return "REJECTED";
    case VersionState::kFailed:
      return "FAILED";
  }
  return "UNKNOWN";
}

void ModelRegistry::Leases::Release() {
  MutexLock lock(mu_);
  if (count_.fetch_sub(1) == 1) none_.NotifyAll();
}

void ModelRegistry::Leases::WaitForNone(absl::Duration limit) {
  const auto until = std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(limit);
  MutexLock lock(mu_);
  while (count_.load() > 0 && none_.WaitUntil(mu_, until)) {
  }
}

std::shared_ptr<Servable> ModelRegistry::Lease(std::shared_ptr<Servable> owner,
                                               std::shared_ptr<Leases> leases) {
  Servable* const servable = owner.get();
  // The request's reference goes first, so that whoever waits for the count holds the last one.
  return std::shared_ptr<Servable>(
      servable, [owner = std::move(owner), leases = std::move(leases)](Servable*) mutable {
        owner.reset();
        leases->Release();
      });
}

absl::StatusOr<std::shared_ptr<Servable>> ModelRegistry::Acquire(
    std::string_view name, const VersionSelector& wanted) const {
  std::shared_ptr<Servable> servable;
  std::shared_ptr<Leases> leases;
  {
    MutexLock lock(mu_);
    ASSIGN_OR_RETURN(const Entry* entry, ServingEntry(name, wanted));
    servable = entry->servable;
    leases = entry->leases;
    leases->Add();
  }
  return Lease(std::move(servable), std::move(leases));
}

absl::StatusOr<int64_t> ModelRegistry::Choose(std::string_view name,
                                              const VersionSelector& wanted) const {
  if (wanted.number != 0) return wanted.number;
  const auto known = labels_.find(name);
  const VersionLabels labels = known == labels_.end() ? VersionLabels() : known->second;
  if (!wanted.label.empty() && wanted.label != "stable") {
    const absl::StatusOr<int64_t> labelled = labels.VersionOf(wanted.label);
    return labelled.ok() ? labelled
                         : Annotate(labelled.status(), absl::StrCat("model=", std::string(name)));
  }
  const bool splits = wanted.is_open() && wanted.shared && labels.canary_share > 0;
  if (splits && splits_[std::string(name)].NextIsCanary(labels.canary_share)) return labels.canary;
  return labels.stable;
}

absl::StatusOr<const ModelRegistry::Entry*> ModelRegistry::ServingEntry(
    std::string_view name, const VersionSelector& wanted) const {
  const auto model = models_.find(name);
  if (model == models_.end() || model->second.empty()) {
    return absl::NotFoundError(absl::StrCat("no such model: model=", std::string(name)));
  }
  const std::map<int64_t, Entry>& versions = model->second;
  ASSIGN_OR_RETURN(int64_t version, Choose(name, wanted));
  if (version == 0) version = versions.rbegin()->first;  // to say why it does not serve
  const auto it = versions.find(version);
  if (it == versions.end()) {
    return absl::NotFoundError(
        absl::StrCat("no such version: model=", std::string(name), " version=", version));
  }
  const VersionInfo& info = it->second.info;
  if (info.state == VersionState::kServing) return &it->second;
  return absl::UnavailableError(absl::StrCat(
      "model is not serving: model=", info.name, " version=", version,
      " state=", std::string(Name(info.state)), info.stage.empty() ? "" : " stage=" + info.stage,
      info.reason.empty() ? "" : " reason=" + info.reason));
}

ModelRegistry::Entry& ModelRegistry::EntryOf(std::string_view name, int64_t version) {
  Entry& entry = models_[std::string(name)][version];
  entry.info.name = std::string(name);
  entry.info.version = version;
  return entry;
}

void ModelRegistry::SetState(std::string_view name, int64_t version, VersionState state,
                             std::string_view stage, std::string_view reason) {
  VersionInfo changed;
  bool is_new_state = false;
  {
    MutexLock lock(mu_);
    Entry& entry = EntryOf(name, version);
    is_new_state = entry.info.state != state || entry.info.changed == absl::Time();
    entry.info.state = state;
    entry.info.stage = std::string(stage);
    entry.info.reason = std::string(reason);
    entry.info.changed = calendar_.Now();
    changed = entry.info;
  }
  if (is_new_state) LogChange(changed);
  Notify({changed});
}

void ModelRegistry::SetPath(std::string_view name, int64_t version, std::string_view path) {
  MutexLock lock(mu_);
  EntryOf(name, version).info.path = std::string(path);
}

void ModelRegistry::SetReport(std::string_view name, int64_t version,
                              std::shared_ptr<const AdmissionReport> report) {
  MutexLock lock(mu_);
  EntryOf(name, version).info.report = std::move(report);
}

void ModelRegistry::Move(Entry& entry, VersionState state, std::string reason, Changes& changes) {
  entry.info.state = state;
  entry.info.stage.clear();
  entry.info.reason = std::move(reason);
  entry.info.changed = calendar_.Now();
  changes.states.push_back(entry.info);
}

ModelRegistry::Entry& ModelRegistry::Install(std::shared_ptr<Servable> servable) {
  Entry& entry = EntryOf(servable->name, servable->version);
  entry.info.report = std::make_shared<const AdmissionReport>(servable->report);
  entry.servable = std::move(servable);
  entry.leases = std::make_shared<Leases>();
  return entry;
}

void ModelRegistry::BeginDrain(Entry& entry, std::string reason, std::string retired,
                               Changes& changes) {
  labels_[entry.info.name].Remove(entry.info.version);
  Relabel(entry.info.name);
  Move(entry, VersionState::kDraining, std::move(reason), changes);
  changes.drains.push_back({entry.info.name, entry.info.version, std::move(retired)});
  ++num_retiring_;
}

void ModelRegistry::Settle(const Changes& changes) {
  for (const VersionInfo& info : changes.states) LogChange(info);
  Notify(changes.states);
  std::vector<std::function<void(const LabelChange&)>> callbacks;
  {
    MutexLock lock(mu_);
    callbacks = label_callbacks_;
  }
  for (const LabelChange& change : changes.labels) {
    for (const auto& callback : callbacks) callback(change);
  }
  for (const Drain& drain : changes.drains) StartRetiring(drain.name, drain.version, drain.reason);
}

void ModelRegistry::StartRetiring(const std::string& name, int64_t version,
                                  const std::string& reason) {
  std::list<std::thread> finished;
  {
    MutexLock lock(mu_);
    finished.swap(finished_);
    const auto self = retiring_.emplace(retiring_.end());
    *self = std::thread([this, self, name, version, reason] {
      Retire(name, version, reason);
      MutexLock thread_lock(mu_);
      finished_.splice(finished_.end(), retiring_, self);
      --num_retiring_;
      retired_.NotifyAll();
    });
  }
  for (std::thread& thread : finished) thread.join();
}

void ModelRegistry::WaitForRetirements() {
  std::list<std::thread> finished;
  {
    MutexLock lock(mu_);
    while (num_retiring_ > 0) retired_.Wait(mu_);
    finished.swap(finished_);
  }
  for (std::thread& thread : finished) thread.join();
}

ModelRegistry::~ModelRegistry() {
  std::thread keeper;
  {
    MutexLock lock(mu_);
    stop_ = true;
    windows_changed_.NotifyAll();
    keeper = std::move(keeper_);
  }
  if (keeper.joinable()) keeper.join();
  WaitForRetirements();
}

void ModelRegistry::Retire(const std::string& name, int64_t version, std::string reason) {
  std::shared_ptr<Servable> servable;
  std::shared_ptr<Leases> leases;
  {
    MutexLock lock(mu_);
    Entry& entry = EntryOf(name, version);
    servable = entry.servable;
    leases = entry.leases;
  }
  // First those that have the version and may be about to submit: an engine that drains refuses.
  if (leases != nullptr) leases->WaitForNone(kLeaseWait);
  if (servable != nullptr) DrainEngine(*servable);
  if (leases != nullptr) leases->WaitForNone(kLeaseWait);
  Changes changes;
  std::vector<std::shared_ptr<void>> unloads;
  {
    MutexLock lock(mu_);
    Entry& entry = EntryOf(name, version);
    entry.servable.reset();
    entry.leases.reset();
    unloads.swap(entry.unloads);
    if (!Ended(entry.info.state)) Move(entry, VersionState::kRetired, std::move(reason), changes);
  }
  servable.reset();  // before RETIRED is announced, the memory is free
#ifdef __GLIBC__
  malloc_trim(
      0);  // and back with the system: the allocator would keep what lies between live blocks
#endif
  Settle(changes);
}

absl::Status ModelRegistry::BeginUnload(std::string_view name, int64_t version,
                                        std::function<void()> freed) {
  std::shared_ptr<void> unload;
  Changes changes;
  {
    MutexLock lock(mu_);
    const auto model = models_.find(name);
    if (model == models_.end() || (version != 0 && !model->second.contains(version))) {
      return absl::NotFoundError(
          absl::StrCat("nothing to unload: model=", std::string(name),
                       version == 0 ? "" : " version=", version == 0 ? "" : absl::StrCat(version)));
    }
    unload = std::shared_ptr<void>(nullptr, [freed = std::move(freed)](void*) { freed(); });
    for (auto& [number, entry] : model->second) {
      if (version != 0 && number != version) continue;
      if (entry.info.state == VersionState::kServing) {
        BeginDrain(entry, "unloading", "unloaded", changes);
      }
      if (entry.info.state == VersionState::kDraining) entry.unloads.push_back(unload);
    }
  }
  Settle(changes);
  return absl::OkStatus();
}

absl::Status ModelRegistry::Unload(std::string_view name, int64_t version) {
  const auto freed = std::make_shared<std::promise<void>>();
  std::future<void> done = freed->get_future();
  RETURN_IF_ERROR(BeginUnload(name, version, [freed] { freed->set_value(); }));
  done.wait();
  return absl::OkStatus();
}

std::vector<VersionInfo> ModelRegistry::List() const {
  std::vector<std::pair<VersionInfo, std::shared_ptr<Servable>>> entries;
  {
    MutexLock lock(mu_);
    for (const auto& [name, versions] : models_) {
      for (const auto& [version, entry] : versions) {
        entries.emplace_back(entry.info, entry.servable);
      }
    }
  }
  std::vector<VersionInfo> infos;
  for (auto& [info, servable] : entries) {
    if (servable != nullptr) FillLoad(*servable, info);
    infos.push_back(std::move(info));
  }
  return infos;
}

absl::StatusOr<VersionInfo> ModelRegistry::Find(std::string_view name, int64_t version) const {
  VersionInfo info;
  std::shared_ptr<Servable> servable;
  {
    MutexLock lock(mu_);
    const auto model = models_.find(name);
    if (model == models_.end() || model->second.empty()) {
      return absl::NotFoundError(absl::StrCat("no such model: model=", std::string(name)));
    }
    const auto it = version == 0 ? std::prev(model->second.end()) : model->second.find(version);
    if (it == model->second.end()) {
      return absl::NotFoundError(
          absl::StrCat("no such version: model=", std::string(name), " version=", version));
    }
    info = it->second.info;
    servable = it->second.servable;
  }
  if (servable != nullptr) FillLoad(*servable, info);
  return info;
}

void ModelRegistry::OnChange(std::function<void(const VersionInfo&)> callback) {
  MutexLock lock(mu_);
  callbacks_.push_back(std::move(callback));
}

void ModelRegistry::Notify(const std::vector<VersionInfo>& changes) {
  std::vector<std::function<void(const VersionInfo&)>> callbacks;
  {
    MutexLock lock(mu_);
    callbacks = callbacks_;
  }
  for (const VersionInfo& info : changes) {
    for (const auto& callback : callbacks) callback(info);
  }
}

void ModelRegistry::DrainAll() {
  Changes changes;
  {
    MutexLock lock(mu_);
    for (auto& [name, versions] : models_) {
      for (auto& [version, entry] : versions) {
        if (entry.info.state != VersionState::kServing) continue;
        BeginDrain(entry, "shutting down", "shut down", changes);
      }
    }
  }
  Settle(changes);
  WaitForRetirements();
}

}  // namespace assay
