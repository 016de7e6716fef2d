// Versions of models and their states. A request holds a shared_ptr to its Servable; every version
// that drains has a thread, which frees it once the last request has let go (a request that clings
// to it for longer than kLeaseWait frees it itself). So an engine is never destroyed from its own
// loop thread, and a stream that takes its time holds up nobody but its own version. Acquire never
// waits for an admission. All methods are thread-safe.
#pragma once
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
  std::string stage;   // while ADMITTING
  std::string reason;  // why REJECTED, FAILED, RETIRED ("unloaded")
  std::string path;    // checkpoint
  absl::Time changed;
  std::shared_ptr<const AdmissionReport> report;  // null before the first verdict
  EngineLoad load;
  uint64_t weight_bytes = 0, kv_bytes = 0, workspace_bytes = 0;
};

class ModelRegistry {
 public:
  static constexpr absl::Duration kLeaseWait = absl::Seconds(10);

  explicit ModelRegistry(const Clock& clock = RealClock()) : clock_(clock) {}
  ~ModelRegistry();  // waits for what drains
  // version 0 = the newest that serves. NotFound: unknown name or version; Unavailable: known but
  // not serving (says its state and reason).
  absl::StatusOr<std::shared_ptr<Servable>> Acquire(std::string_view name,
                                                    int64_t version = 0) const
      ABSL_LOCKS_EXCLUDED(mu_);
  // Declares a version before its admission, or moves it along. `stage`, `reason` as in
  // VersionInfo.
  void SetState(std::string_view name, int64_t version, VersionState state, std::string_view stage,
                std::string_view reason) ABSL_LOCKS_EXCLUDED(mu_);
  void SetPath(std::string_view name, int64_t version, std::string_view path)
      ABSL_LOCKS_EXCLUDED(mu_);
  void SetReport(std::string_view name, int64_t version,
                 std::shared_ptr<const AdmissionReport> report) ABSL_LOCKS_EXCLUDED(mu_);
  // Atomic switch: from now on Acquire gives `servable`. Returns at once; any other serving version
  // of the name drains and retires on a thread of its own.
  void Publish(std::shared_ptr<Servable> servable) ABSL_LOCKS_EXCLUDED(mu_);
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
  void DrainAll() ABSL_LOCKS_EXCLUDED(mu_);  // shutdown: every engine finishes what it has

 private:
  // Counts the requests that hold a Servable.
  class Leases {
   public:
    void Add() ABSL_LOCKS_EXCLUDED(mu_);
    void Release() ABSL_LOCKS_EXCLUDED(mu_);
    void WaitForNone(absl::Duration limit) ABSL_LOCKS_EXCLUDED(mu_);

   private:
    Mutex mu_;
    CondVar none_;
    int count_ ABSL_GUARDED_BY(mu_) = 0;
  };
  struct Entry {
    VersionInfo info;
    std::shared_ptr<Servable> servable;          // set while SERVING or DRAINING
    std::shared_ptr<Leases> leases;              // likewise
    std::vector<std::shared_ptr<void>> unloads;  // the last owner of each calls its `freed`
  };
  static std::shared_ptr<Servable> Lease(std::shared_ptr<Servable> owner,
                                         std::shared_ptr<Leases> leases);
  absl::StatusOr<const Entry*> ServingEntry(std::string_view name, int64_t version) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Entry& EntryOf(std::string_view name, int64_t version) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Move(Entry& entry, VersionState state, std::string reason, std::vector<VersionInfo>& changes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // To DRAINING; StartRetiring follows, without the lock.
  void BeginDrain(Entry& entry, std::string reason, std::vector<VersionInfo>& changes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StartRetiring(const std::string& name, int64_t version, const std::string& reason)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Waits for the engine of a DRAINING version, then frees it.
  void Retire(const std::string& name, int64_t version, std::string reason)
      ABSL_LOCKS_EXCLUDED(mu_);
  void Notify(const std::vector<VersionInfo>& changes) ABSL_LOCKS_EXCLUDED(mu_);

  const Clock& clock_;
  mutable Mutex mu_;
  std::map<std::string, std::map<int64_t, Entry>, std::less<>> models_ ABSL_GUARDED_BY(mu_);
  std::vector<std::function<void(const VersionInfo&)>> callbacks_ ABSL_GUARDED_BY(mu_);
  CondVar retired_;
  int num_retiring_ ABSL_GUARDED_BY(mu_) = 0;  // from BeginDrain to the end of the thread
  std::list<std::thread> retiring_ ABSL_GUARDED_BY(mu_);
  std::list<std::thread> finished_ ABSL_GUARDED_BY(mu_);  // to be joined
};

}  // namespace assay
