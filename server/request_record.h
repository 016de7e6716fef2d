// One inference request in the books: acquires the model, holds the work ticket, and counts the
// outcome once, in the metrics and in the statistics. Not thread-safe; belongs to its request.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "server/service_context.h"

namespace assay {

// How far a request came before it ended.
enum class Progress {
  kChecked,    // refused by the server's own checks
  kSubmitted,  // refused by the engine, which counts its refusals itself
  kAccepted,   // ran, or waited to
};

// Where a request comes from.
struct RequestOrigin {
  TraceId trace;
  std::string client;  // whose quota it counts against; empty: there are none
  absl::Time deadline = absl::InfiniteFuture();
};
// `client`: the name of its token, empty: none (AccessControl::Check).
RequestOrigin OriginOf(const ServiceContext& context, const grpc::CallbackServerContext& rpc,
                       const std::string& client);
// An RPC that asks for inference.
struct Caller {
  grpc::CallbackServerContext* rpc = nullptr;
  RequestOrigin origin = {};
};

class RequestRecord {
 public:
  // Unavailable: draining, or the model does not serve; NotFound; ResourceExhausted: the client's
  // quota, or the model's queue. Each refusal is counted. Where `wanted` is open, this is a request
  // that the canary has its share of.
  static absl::StatusOr<std::unique_ptr<RequestRecord>> Open(ServiceContext& context,
                                                             const std::string& model,
                                                             const VersionSelector& wanted,
                                                             const RequestOrigin& origin);
  // Counts the outcome; later calls do nothing.
  void Done(const absl::Status& status, Progress progress, RequestTimes times);

  // Calls `work` where its text belongs (TextWorkers::Run), after which this may be gone.
  // ResourceExhausted: it is never called; counted as a refusal.
  absl::Status RunOnText(size_t text_bytes, std::function<void()> work);

  // Against the client's quota: tokens of the prompt, and as they are generated.
  void Charge(size_t tokens) { quota_.Charge(tokens); }

  const std::shared_ptr<Servable>& servable() const { return servable_; }
  absl::Time arrival() const { return arrival_; }
  TraceId trace() const { return trace_; }

 private:
  struct Tickets {
    WorkGate::Ticket work;
    Quotas::Ticket quota;
  };
  RequestRecord(ServiceContext& context, Tickets tickets, std::shared_ptr<Servable> servable,
                TraceId trace)
      : context_(context),
        arrival_(context.clock.Now()),
        trace_(trace),
        servable_(std::move(servable)),
        work_(std::move(tickets.work)),
        quota_(std::move(tickets.quota)) {}

  ServiceContext& context_;
  const absl::Time arrival_;
  const TraceId trace_;
  const std::shared_ptr<Servable> servable_;
  WorkGate::Ticket work_;
  Quotas::Ticket quota_;
  bool counted_ = false;
};

// The version of a request as the protocol has it: a number or a label as text, empty = open.
// InvalidArgument.
absl::StatusOr<VersionSelector> ParseVersion(const std::string& version);

// Registry lookup with Triton's words for an unknown model.
absl::StatusOr<std::shared_ptr<Servable>> AcquireModel(ServiceContext& context,
                                                       const std::string& model,
                                                       const VersionSelector& wanted);

}  // namespace assay
