// A server in this process with fake engines and a fake admission, so that services are tested
// over real gRPC without a model. The fake engines have a loop thread, as the real ones have.
#pragma once
#include <grpcpp/grpcpp.h>

#include <deque>
#include <future>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/thread_pool.h"
#include "server/admin.h"
#include "server/assay_service.h"
#include "server/open_inference_service.h"
#include "server/unread_watch.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_tokenizer.h"

namespace assay {

// Emits the letters a, b, c, ... one token per step for every running sequence.
class FakeGenerateEngine final : public GenerateEngine {
 public:
  explicit FakeGenerateEngine(int max_queue = 1000);
  ~FakeGenerateEngine() override;
  absl::StatusOr<SequenceId> Submit(GenerateRequest request, TokenSink sink) override;
  absl::Status Ask(absl::Time) const override { return absl::OkStatus(); }
  void Cancel(SequenceId id) override ABSL_LOCKS_EXCLUDED(mu_);
  void Drain() override ABSL_LOCKS_EXCLUDED(mu_);
  EngineLoad load() const override ABSL_LOCKS_EXCLUDED(mu_);
  size_t kv_bytes() const override { return 1000; }
  size_t scratch_bytes() const override { return 500; }

  void Hold() ABSL_LOCKS_EXCLUDED(mu_);  // no more tokens until Release
  void Release() ABSL_LOCKS_EXCLUDED(mu_);
  void WaitForRunning(int sequences) ABSL_LOCKS_EXCLUDED(mu_);
  int cancellations() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Sequence {
    SequenceId id = 0;
    GenerateRequest request;
    TokenSink sink;
    int generated = 0;
    bool cancelled = false;
  };
  void Loop() ABSL_LOCKS_EXCLUDED(mu_);

  const int max_queue_;
  mutable Mutex mu_;
  mutable CondVar changed_;
  std::vector<std::unique_ptr<Sequence>> running_ ABSL_GUARDED_BY(mu_);
  SequenceId last_id_ ABSL_GUARDED_BY(mu_) = 0;
  int cancellations_ ABSL_GUARDED_BY(mu_) = 0;
  bool hold_ ABSL_GUARDED_BY(mu_) = false;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// The embedding of a sequence is [number of tokens, sum of ids].
class FakeEncodeEngine final : public EncodeEngine {
 public:
  absl::StatusOr<SequenceId> Submit(EncodeRequest request, EncodeSink sink) override;
  absl::Status Ask(absl::Time) const override { return absl::OkStatus(); }
  void Cancel(SequenceId) override {}
  void Drain() override {}
  EngineLoad load() const override { return {}; }
  size_t scratch_bytes() const override { return 500; }
};

// Publishes "text" models at once; paths that contain "bad" are rejected by the gate.
class FakeAdmission final : public AdmissionPipeline {
 public:
  FakeAdmission(ModelRegistry& registry, Metrics& metrics)
      : registry_(registry), metrics_(metrics) {}
  absl::StatusOr<int64_t> Enqueue(AdmissionRequest request, ProgressSink sink) override;
  int in_progress() const override { return 0; }

 private:
  ModelRegistry& registry_;
  Metrics& metrics_;
};

std::shared_ptr<Servable> FakeServable(const std::string& name, ModelTask task, Metrics& metrics);

// Holds the one thread of FakeServing that tokenizes long texts, until Release or the end.
class HeldTexts {
 public:
  explicit HeldTexts(TextWorkers& texts) {
    (void)texts.Run(TextWorkers::kShortBytes + 1,
                    [released = go_.get_future().share()] { released.wait(); });
  }
  ~HeldTexts() { Release(); }
  void Release() {
    if (!std::exchange(released_, true)) go_.set_value();
  }

 private:
  std::promise<void> go_;
  bool released_ = false;
};

// Models "text" (generates), "embed" and "classify" serve.
class FakeServing {
 public:
  // Administration comes by a port of gRPC's own here, which is the data port to the server.
  explicit FakeServing(ServerConfig config = {.admin = AdminAccess::kOn});
  ~FakeServing();

  std::shared_ptr<grpc::Channel> channel() { return server_->InProcessChannel({}); }
  FakeGenerateEngine& engine() { return *engine_; }
  ServiceContext& context() { return context_; }
  OpenInferenceService& open_inference() { return open_inference_; }
  Metrics& metrics() { return metrics_; }
  WorkGate& gate() { return gate_; }
  TextWorkers& texts() { return texts_; }
  // As after `time` in which nobody read anything.
  void Unread(absl::Duration time) {
    unread_clock_.Advance(time);
    unread_.Look();
  }
  EventLog& events() { return events_; }
  DriftMonitor& drift() { return drift_; }
  ModelRegistry& registry() { return registry_; }

 private:
  const ServerConfig config_;
  const Gpus gpus_;
  Metrics metrics_{"test", "cpu"};
  ModelRegistry registry_{RealClock(), config_.versions.rollback_window};
  WorkGate gate_;
  Readiness readiness_{true};
  Statistics statistics_;
  TrafficHistory traffic_;
  TextWorkers texts_{1};
  EventLog events_{RealClock()};
  DriftMonitor drift_{config_.drift, registry_, metrics_, events_, RealClock()};
  VersionControl versions_{config_.versions, registry_, drift_, metrics_, events_};
  FakeAdmission admissions_{registry_, metrics_};
  AccessControl access_;
  Quotas quotas_{
      {config_.auth.max_concurrent, config_.auth.tokens_per_minute}, RealClock(), metrics_};
  PeerAddresses peers_;
  FakeClock unread_clock_;
  UnreadWatch unread_{config_.max_unread_time, unread_clock_, metrics_};
  ServiceContext context_;
  std::unique_ptr<Admin> admin_;
  OpenInferenceService open_inference_;
  AssayServiceImpl assay_;
  FakeGenerateEngine* engine_ = nullptr;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace assay
