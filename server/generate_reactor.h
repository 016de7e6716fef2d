// assay.v1 Generate: the tokens of one sequence as a stream of messages. While a message is being
// written, what comes meanwhile is merged into the next one: a slow client costs no memory beyond
// its own text. A client that goes away frees its slot at the next step.
#pragma once
#include <memory>
#include <optional>

#include "proto/assay/v1/assay.pb.h"
#include "server/reactors.h"
#include "server/request_record.h"

namespace assay {

class GenerateReactor final
    : public SelfOwned<grpc::ServerWriteReactor<assay::v1::GenerateResponse>> {
 public:
  GenerateReactor(ServiceContext& context, const assay::v1::GenerateRequest& request,
                  Caller caller);
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  absl::Status Open(ServiceContext& context, const assay::v1::GenerateRequest& request);
  absl::Status Submit(const assay::v1::GenerateRequest& request, Progress& progress)
      ABSL_LOCKS_EXCLUDED(mu_);
  void Refuse(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void OnToken(TokenEvent&& event) ABSL_LOCKS_EXCLUDED(mu_);
  void AddToken(const TokenEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddEnd(const TokenEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Record(const TokenEvent& end);
  struct Next {  // what to do once the lock is released
    bool write = false, finish = false;
    absl::Status end;
  };
  // Decided in the critical section that made it possible: once the engine has ended and another
  // thread may finish, a thread that was given nothing must not touch the reactor again.
  Next DecideLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Act(const Next& next);

  const Clock& clock_;
  const Caller caller_;
  grpc::CallbackServerContext* const rpc_ = caller_.rpc;
  const absl::Time arrival_ = clock_.Now();
  const absl::Time deadline_ = DeadlineOf(*rpc_, clock_);
  std::unique_ptr<RequestRecord> record_;  // set by Open
  bool wants_logprobs_ = false;            // set by Submit
  size_t uncharged_ = 0;                   // tokens of the prompt; set by Submit, then the engine's
  assay::v1::GenerateResponse writing_message_;

  Mutex mu_;
  std::optional<SequenceId> id_ ABSL_GUARDED_BY(mu_);
  assay::v1::GenerateResponse pending_ ABSL_GUARDED_BY(mu_);
  bool has_pending_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mu_);
  bool submitting_ ABSL_GUARDED_BY(mu_) = false;  // a thread will still touch the reactor
  bool ended_ ABSL_GUARDED_BY(mu_) = false;       // the engine has said its last
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

// InvalidArgument names the field.
absl::StatusOr<SamplingParams> ToSampling(const assay::v1::SamplingParams& proto);

}  // namespace assay
