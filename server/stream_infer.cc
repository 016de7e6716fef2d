#include "server/stream_infer.h"

#include <cstring>
#include <utility>

#include "server/open_inference_service.h"

namespace assay {
namespace {

// Waiting messages above which pieces of text are merged.
constexpr size_t kMergeAbove = 16;

bool HeaderIsTrue(const grpc::CallbackServerContext& rpc, const char* name) {
  const auto it = rpc.client_metadata().find(name);
  return it != rpc.client_metadata().end() && it->second == "true";
}

// Appends the text of one single-element BYTES output to another.
void AppendText(const std::string& from, std::string& to) {
  constexpr size_t kPrefix = sizeof(uint32_t);
  to.append(from, kPrefix, std::string::npos);
  const uint32_t length = static_cast<uint32_t>(to.size() - kPrefix);
  std::memcpy(to.data(), &length, kPrefix);
}

}  // namespace

StreamInferReactor::StreamInferReactor(ServiceContext& context, OpenInferenceService& service,
                                       Caller caller)
    : context_(context),
      service_(service),
      rpc_(caller.rpc),
      deadline_(DeadlineOf(*caller.rpc, context.clock)),
      origin_(std::move(caller.origin)),
      errors_end_the_stream_(HeaderIsTrue(*caller.rpc, "triton_grpc_error")) {
  {
    MutexLock lock(mu_);
    reading_ = true;
  }
  StartRead(&request_);
}

void StreamInferReactor::OnReadDone(bool ok) {
  std::shared_ptr<InferJob> job;
  {
    MutexLock lock(mu_);
    if (!ok) no_more_reads_ = true;
    if (!no_more_reads_) {
      const JobId id = next_job_++;
      job = std::make_shared<InferJob>(context_,
                                       InferOptions{deadline_, /*can_stream=*/true, origin_},
                                       [this, id, request_id = request_.id()](InferEvent&& event) {
                                         OnEvent(id, request_id, std::move(event));
                                       });
      jobs_.emplace(id, job);
      starting_ = true;
      ++live_;
    }
  }
  if (job == nullptr) return ReadIsOver();
  // Only when the job has it all may the next message be read into request_.
  job->Start(request_, [this] { ReadIsOver(); });
}

void StreamInferReactor::ReadIsOver() {
  Next next;
  {
    MutexLock lock(mu_);
    reading_ = starting_ = false;
    next = DecideLocked();
  }
  Act(next);
}

void StreamInferReactor::OnEvent(JobId job, const std::string& request_id, InferEvent&& event) {
  Next next;
  {
    MutexLock lock(mu_);
    if (MergeLocked(job, event)) return;
    if (event.last) --live_;
    Message message{job, event.last, {}};
    inference::ModelInferResponse& response = *message.response.mutable_infer_response();
    response = std::move(event.response);
    if (!event.status.ok()) {
      response.set_id(request_id);
      message.response.set_error_message(std::string(event.status.message()));
      if (errors_end_the_stream_ && end_.ok()) {
        end_ = ToGrpc(event.status, rpc_);
        no_more_reads_ = true;
      }
    }
    (*response.mutable_parameters())["triton_final_response"].set_bool_param(event.last);
    queue_.push_back(std::move(message));
    next = DecideLocked();
  }
  Act(next);
}

bool StreamInferReactor::MergeLocked(JobId job, const InferEvent& event) {
  if (event.last || queue_.size() < kMergeAbove) return false;
  for (auto it = queue_.rbegin(); it != queue_.rend(); ++it) {
    if (it->job != job) continue;
    AppendText(event.response.raw_output_contents(0),
               *it->response.mutable_infer_response()->mutable_raw_output_contents(0));
    return true;
  }
  return false;
}

void StreamInferReactor::OnWriteDone(bool ok) {
  std::shared_ptr<InferJob> done;  // destroyed here, on gRPC's thread and outside the lock
  Next next;
  {
    MutexLock lock(mu_);
    writing_ = false;
    if (writing_message_.last) {
      const auto it = jobs_.find(writing_message_.job);
      done = std::move(it->second);
      jobs_.erase(it);
    }
    if (!ok) broken_ = no_more_reads_ = true;
    next = DecideLocked();
  }
  if (!ok && !next.finish) CancelJobs();
  Act(next);
}

void StreamInferReactor::OnCancel() {
  {
    MutexLock lock(mu_);
    broken_ = no_more_reads_ = true;
    const bool expired = IsExpiry(arrival_, deadline_, context_.clock.Now());
    if (end_.ok())
      end_ = expired ? grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "the deadline passed")
                     : grpc::Status(grpc::StatusCode::CANCELLED, "cancelled");
  }
  CancelJobs();
  Next next;
  {
    MutexLock lock(mu_);
    next = DecideLocked();
  }
  Act(next);
}

void StreamInferReactor::Drain() {
  Next next;
  {
    MutexLock lock(mu_);
    // A client that has sent all it wanted loses nothing.
    const bool cut = !std::exchange(no_more_reads_, true);
    if (cut && end_.ok()) end_ = ToGrpc(absl::UnavailableError("the server is draining"), rpc_);
    next = DecideLocked();
  }
  Act(next);
}

bool StreamInferReactor::open() {
  MutexLock lock(mu_);
  return !no_more_reads_;
}

void StreamInferReactor::OnDone() {
  service_.Forget(this);
  delete this;
}

StreamInferReactor::Next StreamInferReactor::DecideLocked() {
  Next next;
  if (finished_) return next;
  if (broken_) queue_.clear();  // nobody reads; the jobs are destroyed with the reactor
  if (!writing_ && !queue_.empty()) {
    writing_message_ = std::move(queue_.front());
    queue_.pop_front();
    next.write = writing_ = true;
  }
  const bool all_answered = !writing_ && (broken_ ? live_ == 0 : jobs_.empty());
  if (no_more_reads_ && all_answered && !starting_) {
    next.finish = finished_ = true;
  } else if (!no_more_reads_ && !reading_ &&
             jobs_.size() < static_cast<size_t>(context_.config.grpc.max_requests_per_stream)) {
    next.read = reading_ = true;
  }
  return next;
}

void StreamInferReactor::Act(Next next) {
  // Whoever was given the write, the read or the end is the only one: no lock is needed. After
  // Finish the reactor may be gone.
  if (next.write) StartWrite(&writing_message_.response);
  if (next.read) StartRead(&request_);
  if (next.finish) {
    grpc::Status end;
    {
      MutexLock lock(mu_);
      end = end_;
    }
    Finish(end);
  }
}

void StreamInferReactor::CancelJobs() {
  std::vector<std::shared_ptr<InferJob>> jobs;
  {
    MutexLock lock(mu_);
    for (const auto& [id, job] : jobs_) jobs.push_back(job);
  }
  for (const auto& job : jobs) job->Cancel();
}

}  // namespace assay
