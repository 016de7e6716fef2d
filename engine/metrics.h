// Every series of the service, by domain verb (names, labels, buckets: docs/operations.md).
// prometheus-cpp stays in the .cc. Thread-safe. Verbs on a ModelMetrics and an RpcMetrics are cheap
// (resolved series, no lookup, no lock beyond the library's; tests/bench/metrics_bench.cc).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "base/clock.h"
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

// Why a client was not let at something, and what it had too much of.
enum class AuthRefusal { kNoToken, kUnknownToken, kRole, kPort };
enum class Quota { kConcurrency, kTokens };

// The id of a distributed trace: 16 bytes. All zero, which W3C forbids, means that there is none.
struct TraceId {
  uint64_t high = 0, low = 0;
  explicit operator bool() const { return (high | low) != 0; }
  bool operator==(const TraceId&) const = default;
};

// How /metrics is written.
enum class ExpositionFormat {
  kText,         // Prometheus text 0.0.4
  kOpenMetrics,  // OpenMetrics 1.0: with exemplars (engine/open_metrics.h)
};

// One model version. Series of an unloaded version are dropped when the object dies.
class ModelMetrics {
 public:
  virtual ~ModelMetrics() = default;
  // `trace`, where there is one, becomes the exemplar of the bucket that `latency` falls into.
  virtual void RequestDone(Outcome outcome, absl::Duration latency, TraceId trace) = 0;
  virtual void Rejected(RejectReason reason) = 0;
  virtual void DeadlineExceeded(WorkStage stage) = 0;
  virtual void Cancelled(WorkStage stage) = 0;
  virtual void Queued(absl::Duration wait) = 0;  // a request left the queue for its first step
  virtual void StepDone(int requests, absl::Duration compute) = 0;  // one executed batch
  virtual void SetLoad(int waiting, int running) = 0;
  // text generation
  virtual void FirstToken(absl::Duration since_arrival, TraceId trace) = 0;
  virtual void InterToken(absl::Duration gap) = 0;
  virtual void TokensDone(int prompt_tokens, int generated_tokens, FinishReason reason,
                          absl::Duration latency) = 0;
  virtual void TokensProcessed(int prompt_tokens, int generated_tokens,
                               int prefix_cache_hits) = 0;  // counters, per step
  // Tokens of one step, by what they were chosen from: candidates that a device found, or whole
  // rows of logits.
  virtual void RowsSampled(int from_candidates, int from_rows) = 0;
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

// One method of the gRPC layer.
class RpcMetrics {
 public:
  virtual ~RpcMetrics() = default;
  virtual void Started() = 0;
  // `code` as gRPC numbers it, 0 = OK; what is no code of gRPC counts as Unknown.
  virtual void Done(int code, absl::Duration wall, int received, int sent) = 0;
};

// A GPU as it is now. Bytes.
struct DeviceReading {
  std::string name;  // "cuda:0"
  double total_bytes = 0, available_bytes = 0;
  bool healthy = true;  // false: an error ended its use
};

// The ports as they are now.
struct ConnectionReading {
  int open = 0;       // to the gRPC ports
  int open_http = 0;  // to the HTTP port
  // Since the start, by reason: turned away, or cut before their time.
  std::vector<std::pair<std::string, uint64_t>> refused;
  // Until when the certificates in use are valid, by what they are for: server, client_ca.
  std::vector<std::pair<std::string, absl::Time>> certificate_expiry;
};

class Metrics {
 public:
  // `clock`, the time of exemplars, outlives this and every ModelMetrics.
  Metrics(std::string_view version, std::string_view backend, const Clock& clock = RealClock());
  ~Metrics();
  // One live object per (model, version): asking again while it lives gives the same one.
  std::shared_ptr<ModelMetrics> ForModel(std::string_view model, int64_t version);
  // Drift of a version, by its statistic: mean_kl, cosine_loss or label_flip. Not to outlive this.
  std::unique_ptr<DriftMetrics> ForDrift(std::string_view model, int64_t version,
                                         std::string_view statistic);
  // Of a model, whatever its version: the version that was acted on may be gone before anybody
  // reads. The model's series begin with ForDrift, at 0, and stay.
  void DriftActed(std::string_view model, DriftAction action);
  // gRPC layer: makes the series of a method at 0 (but for the histogram and the codes other than
  // OK, which come with the first RPC that has them). Lives as long as this. `type` as
  // "server_stream".
  RpcMetrics& ForRpc(std::string_view service, std::string_view method, std::string_view type);
  void UnknownModel();  // a request for a model that does not exist: counted under model="_unknown"
  void ArtifactCache(std::string_view result);  // hit, miss, corrupt
  void SetArtifactCacheBytes(double bytes);
  void SetAdmissionsInProgress(int count);
  // GPUs, read at every scrape; before the first.
  void WatchDevices(std::function<std::vector<DeviceReading>()> read);
  // Likewise.
  void WatchConnections(std::function<ConnectionReading()> read);
  void VersionChanged(VersionChange change);
  void AuthRefused(AuthRefusal why);
  void QuotaRejected(Quota quota);
  void Unread();  // an RPC was cut, because its client did not read
  std::string Scrape(ExpositionFormat format = ExpositionFormat::kText) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace assay
