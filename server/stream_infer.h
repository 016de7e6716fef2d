// ModelStreamInfer: many requests in, many responses out, on one stream.
//
// Errors of a request go in-band (error_message) and the stream goes on; with the request header
// `triton_grpc_error: true` the first error ends the stream with a real status. Requests that are
// not yet answered are bounded: beyond grpc.max_requests_per_stream the server stops reading.
// Responses to a slow reader are bounded, too: pieces of text of one request are merged while they
// wait.
#pragma once
#include <deque>
#include <map>
#include <memory>

#include "proto/open_inference/grpc_service.grpc.pb.h"
#include "server/infer_job.h"
#include "server/reactors.h"

namespace assay {

class OpenInferenceService;

class StreamInferReactor final
    : public SelfOwned<grpc::ServerBidiReactor<inference::ModelInferRequest,
                                               inference::ModelStreamInferResponse>> {
 public:
  StreamInferReactor(ServiceContext& context, OpenInferenceService& service, Caller caller);

  // Finishes with UNAVAILABLE once no request is left.
  void Drain() ABSL_LOCKS_EXCLUDED(mu_);
  bool open() ABSL_LOCKS_EXCLUDED(mu_);  // the client may still send requests

  void OnReadDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mu_);
  void OnDone() override;

 private:
  void ReadIsOver() ABSL_LOCKS_EXCLUDED(mu_);
  using JobId = uint64_t;
  struct Message {
    JobId job = 0;
    bool last = false;
    inference::ModelStreamInferResponse response;
  };
  struct Next {  // what to do once the lock is released
    bool write = false, finish = false, read = false;
  };

  void OnEvent(JobId job, const std::string& request_id, InferEvent&& event)
      ABSL_LOCKS_EXCLUDED(mu_);
  bool MergeLocked(JobId job, const InferEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Next DecideLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Act(Next next) ABSL_LOCKS_EXCLUDED(mu_);
  void CancelJobs() ABSL_LOCKS_EXCLUDED(mu_);

  ServiceContext& context_;
  OpenInferenceService& service_;
  grpc::CallbackServerContext* const rpc_;
  const absl::Time arrival_ = context_.clock.Now();
  const absl::Time deadline_;
  const RequestOrigin origin_;  // of every request of the stream
  const bool errors_end_the_stream_;
  inference::ModelInferRequest request_;  // of the read under way
  Message writing_message_;               // of the write under way

  Mutex mu_;
  // A job stays until its last response has been written: its ticket holds the drain back.
  std::map<JobId, std::shared_ptr<InferJob>> jobs_ ABSL_GUARDED_BY(mu_);
  JobId next_job_ ABSL_GUARDED_BY(mu_) = 1;
  size_t live_ ABSL_GUARDED_BY(mu_) = 0;  // jobs that have not had their last event
  std::deque<Message> queue_ ABSL_GUARDED_BY(mu_);
  grpc::Status end_ ABSL_GUARDED_BY(mu_);
  bool reading_ ABSL_GUARDED_BY(mu_) = false;   // or starting what was read
  bool starting_ ABSL_GUARDED_BY(mu_) = false;  // request_ is in use; the reactor must stay
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool no_more_reads_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;  // nothing can be written any more
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace assay
