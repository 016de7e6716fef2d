// RPCs that wait for an admission or an unload. The work goes on when the client goes away, so its
// callbacks reach the RPC through a link that OnDone cuts.
#pragma once
#include <atomic>
#include <deque>
#include <memory>

#include "proto/assay/v1/assay.pb.h"
#include "proto/open_inference/grpc_service.pb.h"
#include "server/admin.h"
#include "server/reactors.h"

namespace assay {

// From a thread of the server's to a reactor that may be gone. Thread-safe.
template <typename Reactor>
class ReactorLink {
 public:
  explicit ReactorLink(Reactor* reactor) : reactor_(reactor) {}
  void Cut() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    reactor_ = nullptr;
  }
  // Calls with the lock held: the reactor cannot go meanwhile. gRPC's Start... and Finish never
  // call back on the same stack.
  template <typename Call>
  void With(Call call) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    if (reactor_ != nullptr) call(*reactor_);
  }

 private:
  Mutex mu_;
  Reactor* reactor_ ABSL_GUARDED_BY(mu_);
};

// A unary RPC that ends when a callback says so.
class DeferredReactor final : public SelfOwned<grpc::ServerUnaryReactor> {
 public:
  explicit DeferredReactor(grpc::CallbackServerContext* rpc) : rpc_(rpc) {}
  std::function<void(absl::Status)> Completion();
  void Complete(const absl::Status& status);  // the first call counts
  void OnCancel() override;
  void OnDone() override;

 private:
  grpc::CallbackServerContext* const rpc_;
  const std::shared_ptr<ReactorLink<DeferredReactor>> link_ =
      std::make_shared<ReactorLink<DeferredReactor>>(this);
  std::atomic<bool> complete_{false};  // set by whoever may call Finish
};

// assay.v1 Admit: one message per progress event; the latest wins while the client is slow.
class AdmitReactor final : public SelfOwned<grpc::ServerWriteReactor<assay::v1::AdmitProgress>> {
 public:
  AdmitReactor(Admin& admin, const assay::v1::AdmitRequest& request,
               grpc::CallbackServerContext* rpc);
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mu_);
  void OnDone() override;

 private:
  void Push(const AdmissionProgress& progress) ABSL_LOCKS_EXCLUDED(mu_);
  void End(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void Pump() ABSL_LOCKS_EXCLUDED(mu_);

  grpc::CallbackServerContext* const rpc_;
  const std::shared_ptr<ReactorLink<AdmitReactor>> link_ =
      std::make_shared<ReactorLink<AdmitReactor>>(this);
  assay::v1::AdmitProgress writing_message_;

  Mutex mu_;
  std::deque<assay::v1::AdmitProgress> queue_ ABSL_GUARDED_BY(mu_);
  absl::Status end_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;  // nothing more will be pushed
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

// What a client is told when an admission is over: REJECTED is FailedPrecondition with the reason.
absl::Status AdmissionOutcome(const AdmissionProgress& progress);

}  // namespace assay
