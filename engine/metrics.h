// Every series of the service, by domain verb (names, labels, buckets: docs/operations.md).
// prometheus-cpp stays in the .cc. Thread-safe. Verbs on a ModelMetrics are cheap (resolved series,
// no lookup, no lock beyond the library's atomics).
#pragma once
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "engine/metrics_drift.h"

namespace assay {

enum class Outcome { kSuccess, kError, kRejected, kTimeout, kCancelled };
enum class RejectReason { kQueueFull, kTooLarge, kInvalid, kDraining, kNotReady };
enum class WorkStage { kQueue, kCompute, kSend };
enum class FinishReason { kStop, kLength, kCancelled, kError, kDeadline };
enum class MemoryKind { kWeights, kKv, kWorkspace, kReference };
// What moves the labels of versions.
enum class VersionChange { kPublish, kCanary, kPromote, kRollBack, kDrop };
std::string_view Name(VersionChange change);  // "publish", "canary", "promote", "roll_back", "drop"

// One model version. Series of an unloaded version are dropped when the object dies.
class ModelMetrics {
 public:
  virtual ~ModelMetrics() = default;
  virtual void RequestDone(Outcome outcome, absl::Duration latency) = 0;
  virtual void Rejected(RejectReason reason) = 0;
  virtual void DeadlineExceeded(WorkStage stage) = 0;
  virtual void Cancelled(WorkStage stage) = 0;
  virtual void Queued(absl::Duration wait) = 0;  // a request left the queue for its first step
  virtual void StepDone(int requests, absl::Duration compute) = 0;  // one executed batch
  virtual void SetLoad(int waiting, int running) = 0;
  // text generation
  virtual void FirstToken(absl::Duration since_arrival) = 0;
  virtual void InterToken(absl::Duration gap) = 0;
  virtual void TokensDone(int prompt_tokens, int generated_tokens, FinishReason reason,
                          absl::Duration latency) = 0;
  virtual void TokensProcessed(int prompt_tokens, int generated_tokens,
                               int prefix_cache_hits) = 0;  // counters, per step
  virtual void Preempted() = 0;
  virtual void SetKvBlocks(int used, int cached, int total) = 0;
  // lifecycle
  virtual void SetInfo(std::string_view format, std::string_view precision,
                       std::string_view device) = 0;
  virtual void SetState(std::string_view state) = 0;  // VersionState in lower case
  virtual void SetMemory(MemoryKind kind, double bytes) = 0;
  virtual void SetQuantization(const std::vector<std::pair<std::string, int>>& layers_by_precision,
                               double compression_ratio) = 0;
  virtual void AdmissionStageDone(std::string_view stage, absl::Duration elapsed) = 0;
  virtual void AdmissionDone(
      std::string_view outcome) = 0;  // admitted, rejected_accuracy, rejected_size, failed
  virtual void SetAccuracyLoss(std::string_view metric,
                               double value) = 0;  // mean_kl, top1_loss, ppl_ratio, cosine_loss
  virtual void Loaded(std::string_view source,
                      absl::Duration elapsed) = 0;  // artifact_cache, quantize
  virtual void SetTrafficShare(double share) = 0;   // of unversioned inference requests, 0..1
};

// Values of the label stage of the admission's metrics, in the order of the pipeline
// (engine/lifecycle/admission_stages.cc).
std::span<const char* const> AdmissionStageNames();

class Metrics {
 public:
  Metrics(std::string_view version, std::string_view backend);
  ~Metrics();
  // One live object per (model, version): asking again while it lives gives the same one.
  std::shared_ptr<ModelMetrics> ForModel(std::string_view model, int64_t version);
  // Drift of a version, by its statistic: mean_kl, cosine_loss or label_flip. Not to outlive this.
  std::unique_ptr<DriftMetrics> ForDrift(std::string_view model, int64_t version,
                                         std::string_view statistic);
  // gRPC layer. DeclareRpc makes the series of a method at 0.
  void DeclareRpc(std::string_view service, std::string_view method, std::string_view type);
  void RpcStarted(std::string_view service, std::string_view method, std::string_view type);
  void RpcDone(std::string_view service, std::string_view method, std::string_view type,
               std::string_view code, absl::Duration wall);
  void RpcMessages(std::string_view service, std::string_view method, std::string_view type,
                   int received, int sent);
  void SetGrpcConnections(int open);
  void UnknownModel();  // a request for a model that does not exist: counted under model="_unknown"
  void ArtifactCache(std::string_view result);  // hit, miss, corrupt
  void SetArtifactCacheBytes(double bytes);
  void SetAdmissionsInProgress(int count);
  void VersionChanged(VersionChange change);
  std::string Scrape() const;  // Prometheus text format 0.0.4; also what tests assert on

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace assay
