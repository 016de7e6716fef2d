// Versions of models, their states and their labels. Several versions of a model may serve: the
// stable one gets the unversioned requests, the canary a share of them, the previous one stays
// loaded for a while so that a rollback takes no admission.
//
// A request holds a shared_ptr to its Servable; every version that drains has a thread, which frees
// it once the last request has let go (a request that clings to it for longer than kLeaseWait after
// the engine has ended frees it itself). So an engine is never destroyed from its own loop thread,
// and a stream that takes its time holds up nobody but its own version. The engine is told to
// refuse work only after the requests that hold the version have ended, or kLeaseWait has passed:
// what got a version before it drained can still use it. Acquire never waits for an admission. All
// methods are thread-safe.
#pragma once
#include <atomic>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "engine/lifecycle/report.h"
#include "engine/lifecycle/version_labels.h"
#include "engine/metrics.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"
#include "engine/runtime/engine.h"

namespace assay {

// One enum for a version's life, in code, RPC, CLI and metrics (design.md section 5).
enum class VersionState {
  kQueued,
  kAdmitting,
  kWarming,
  kServing,
  kDraining,
  kRetired,
  kRejected,
  kFailed
};
std::string_view Name(VersionState state);  // "QUEUED", ...

// What a request holds while it runs. Exactly one engine is set.
struct Servable {
  std::string name;
  int64_t version = 0;
  ModelSpec spec;
  AdmissionReport report;
  std::shared_ptr<const Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;  // null when the checkpoint has none
  std::shared_ptr<ModelMetrics> metrics;
  std::unique_ptr<GenerateEngine> generate;  // last members: stopped first
  std::unique_ptr<EncodeEngine> encode;
};

struct VersionInfo {
  std::string name;
  int64_t version = 0;
  VersionState state = VersionState::kQueued;
  std::string stage;         // while ADMITTING
  std::string reason;        // why REJECTED, FAILED, RETIRED ("unloaded")
  std::string path;          // checkpoint
  std::string label;         // "stable", "canary", "previous"; empty: none
  bool was_stable = false;   // at some time, or is
  double traffic_share = 0;  // of the model's unversioned inference requests
  absl::Time changed;
  std::shared_ptr<const AdmissionReport> report;  // null before the first verdict
  EngineLoad load;
  uint64_t weight_bytes = 0, kv_bytes = 0, workspace_bytes = 0;
};

// A label that moved, or the canary's share that did.
struct LabelChange {
  VersionChange change = VersionChange::kPublish;
  std::string model;
  int64_t version = 0;  // that is stable now; kCanary: the canary, kDrop: that was it
  std::string reason;
};

class ModelRegistry {
 public:
  static constexpr absl::Duration kLeaseWait = absl::Seconds(10);

  // A version that is no longer stable stays loaded for `rollback_window` by `steady`, which nobody
  // sets; zero: it drains at once. `calendar`: of what people read.
  explicit ModelRegistry(const Clock& calendar = RealClock(),
                         absl::Duration rollback_window = absl::ZeroDuration(),
                         const Clock& steady = SteadyClock())
      : calendar_(calendar), steady_(steady), rollback_window_(rollback_window) {}
  ~ModelRegistry();  // waits for what drains
  // InvalidArgument: no such label; NotFound: unknown name or version, or nobody has the label;
  // Unavailable: known but not serving (says its state and reason).
  absl::StatusOr<std::shared_ptr<Servable>> Acquire(std::string_view name,
                                                    const VersionSelector& wanted = {}) const
      ABSL_LOCKS_EXCLUDED(mu_);
  int64_t HighestServing(std::string_view name) const ABSL_LOCKS_EXCLUDED(mu_);  // 0: none
  // Declares a version before its admission, or moves it along. `stage`, `reason` as in
  // VersionInfo.
  void SetState(std::string_view name, int64_t version, VersionState state, std::string_view stage,
                std::string_view reason) ABSL_LOCKS_EXCLUDED(mu_);
  void SetPath(std::string_view name, int64_t version, std::string_view path)
      ABSL_LOCKS_EXCLUDED(mu_);
  void SetReport(std::string_view name, int64_t version,
                 std::shared_ptr<const AdmissionReport> report) ABSL_LOCKS_EXCLUDED(mu_);
  // Atomic switch: `servable` is the stable version from now on. Returns at once; the one before it
  // becomes the previous version, or drains; an earlier previous version drains. Whatever drains
  // retires on a thread of its own.
  // `bad`: a version that is not kept for a rollback (what was found to be wrong is nothing to go
  // back to); 0: none is known.
  void Publish(std::shared_ptr<Servable> servable, int64_t bad = 0) ABSL_LOCKS_EXCLUDED(mu_);
  // `servable` gets `share` (0..1) of the unversioned inference requests; a canary before it
  // drains. FailedPrecondition: no stable version serves.
  absl::Status PublishCanary(std::shared_ptr<Servable> servable, double share)
      ABSL_LOCKS_EXCLUDED(mu_);

  // The labels of a model. NotFound: unknown model; FailedPrecondition: nobody has the label that
  // is to move, or another version than `expected` (0: any) has it.
  absl::StatusOr<VersionLabels> Labels(std::string_view name) const ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status SetCanaryShare(std::string_view name, double share) ABSL_LOCKS_EXCLUDED(mu_);
  // The canary becomes stable, as with Publish. `expected`: the canary.
  absl::Status Promote(std::string_view name, int64_t expected, std::string_view reason)
      ABSL_LOCKS_EXCLUDED(mu_);
  // The stable and the previous version change places. `expected`: the stable one.
  absl::Status RollBack(std::string_view name, int64_t expected, std::string_view reason)
      ABSL_LOCKS_EXCLUDED(mu_);
  // The canary drains. `expected`: the canary.
  absl::Status DropCanary(std::string_view name, int64_t expected, std::string_view reason)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Drains the previous versions whose window is over. A thread of the registry does it in time;
  // tests, whose clock it cannot wait for, do it themselves.
  void RetireExpired() ABSL_LOCKS_EXCLUDED(mu_);
  // Frees the previous version, of any model on `device` (Device::name), whose window ends
  // first, and waits for that. False: there is none.
  bool RetirePrevious(std::string_view device, std::string_view reason) ABSL_LOCKS_EXCLUDED(mu_);

  // Drains and frees one version (0 = all). `freed` is called when that is done, also of versions
  // that drained already: on the thread that retires the last of them, or here when there is
  // nothing to wait for. NotFound: `freed` is not called.
  absl::Status BeginUnload(std::string_view name, int64_t version, std::function<void()> freed)
      ABSL_LOCKS_EXCLUDED(mu_);
  // The same, and returns when it is done.
  absl::Status Unload(std::string_view name, int64_t version) ABSL_LOCKS_EXCLUDED(mu_);
  void WaitForRetirements() ABSL_LOCKS_EXCLUDED(mu_);              // until no version drains
  std::vector<VersionInfo> List() const ABSL_LOCKS_EXCLUDED(mu_);  // by name, then version
  absl::StatusOr<VersionInfo> Find(std::string_view name, int64_t version) const
      ABSL_LOCKS_EXCLUDED(mu_);  // 0 = newest
  // Called (without the lock) after every change of state: health watchers hang on it.
  void OnChange(std::function<void(const VersionInfo&)> callback) ABSL_LOCKS_EXCLUDED(mu_);
  // Likewise, after every move of a label that was asked for.
  void OnLabelChange(std::function<void(const LabelChange&)> callback) ABSL_LOCKS_EXCLUDED(mu_);
  void DrainAll() ABSL_LOCKS_EXCLUDED(mu_);  // shutdown: every engine finishes what it has

 private:
  // Counts the requests that hold a Servable.
  class Leases {
   public:
    // With the registry's lock held: who drains a version sees every request that got it before.
    void Add() { count_.fetch_add(1, std::memory_order_relaxed); }
    void Release() ABSL_LOCKS_EXCLUDED(mu_);
    void WaitForNone(absl::Duration limit) ABSL_LOCKS_EXCLUDED(mu_);

   private:
    Mutex mu_;
    CondVar none_;
    std::atomic<int> count_{0};  // falls with mu_ held, so that nobody misses the last one
  };
  struct Entry {
    VersionInfo info;
    std::shared_ptr<Servable> servable;          // set while SERVING or DRAINING
    std::shared_ptr<Leases> leases;              // likewise
    std::vector<std::shared_ptr<void>> unloads;  // the last owner of each calls its `freed`
  };
  // What is told, and begun, when the lock is released.
  struct Drain {
    std::string name;
    int64_t version = 0;
    std::string reason;  // once it is retired
  };
  struct Changes {
    std::vector<VersionInfo> states;
    std::vector<LabelChange> labels;
    std::vector<Drain> drains;
  };
  // What Leases::Add counted.
  static std::shared_ptr<Servable> Lease(std::shared_ptr<Servable> owner,
                                         std::shared_ptr<Leases> leases);
  // The number that is wanted; 0: the stable one, and there is none.
  absl::StatusOr<int64_t> Choose(std::string_view name, const VersionSelector& wanted) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<const Entry*> ServingEntry(std::string_view name,
                                            const VersionSelector& wanted) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Entry& EntryOf(std::string_view name, int64_t version) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Puts it in its entry; SERVING follows.
  Entry& Install(std::shared_ptr<Servable> servable) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Move(Entry& entry, VersionState state, std::string reason, Changes& changes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // To DRAINING, without a label. `retired`: the reason once it is retired.
  void BeginDrain(Entry& entry, std::string reason, std::string retired, Changes& changes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Drains `version` (0: nothing) in favour of `by`.
  void Replace(const std::string& name, int64_t version, int64_t by, Changes& changes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // `version`, whose entry serves, becomes stable.
  void MakeStable(const std::string& name, int64_t version, int64_t bad, Changes& changes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // After any change of labels_[name]: entries and metrics show it.
  void Relabel(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The labels of a known model whose `label` is of `expected` (0: any) version.
  absl::StatusOr<VersionLabels*> LabelsWith(std::string_view name, std::string_view label,
                                            int64_t expected) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::string KeptText(const std::string& name) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Time NextExpiry() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Keep() ABSL_LOCKS_EXCLUDED(mu_);  // the thread that ends windows
  // Tells what changed, and starts the threads of what drains.
  void Settle(const Changes& changes) ABSL_LOCKS_EXCLUDED(mu_);
  void StartRetiring(const std::string& name, int64_t version, const std::string& reason)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Waits for the engine of a DRAINING version, then frees it.
  void Retire(const std::string& name, int64_t version, std::string reason)
      ABSL_LOCKS_EXCLUDED(mu_);
  void Notify(const std::vector<VersionInfo>& changes) ABSL_LOCKS_EXCLUDED(mu_);

  const Clock &calendar_, &steady_;
  const absl::Duration rollback_window_;
  mutable Mutex mu_;
  std::map<std::string, std::map<int64_t, Entry>, std::less<>> models_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, VersionLabels, std::less<>> labels_ ABSL_GUARDED_BY(mu_);
  // Moves with every request that it decides about.
  mutable std::map<std::string, TrafficSplit, std::less<>> splits_ ABSL_GUARDED_BY(mu_);
  std::vector<std::function<void(const VersionInfo&)>> callbacks_ ABSL_GUARDED_BY(mu_);
  std::vector<std::function<void(const LabelChange&)>> label_callbacks_ ABSL_GUARDED_BY(mu_);
  CondVar retired_;
  int num_retiring_ ABSL_GUARDED_BY(mu_) = 0;  // from BeginDrain to the end of the thread
  std::list<std::thread> retiring_ ABSL_GUARDED_BY(mu_);
  std::list<std::thread> finished_ ABSL_GUARDED_BY(mu_);  // to be joined
  CondVar windows_changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread keeper_ ABSL_GUARDED_BY(mu_);  // from the first window on
};

}  // namespace assay
