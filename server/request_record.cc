#include "server/request_record.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/status_convert.h"
#include "server/trace_context.h"

namespace assay {
namespace {

Outcome OutcomeOf(const absl::Status& status, Progress progress) {
  if (status.ok()) return Outcome::kSuccess;
  if (absl::IsDeadlineExceeded(status)) return Outcome::kTimeout;
  if (absl::IsCancelled(status)) return Outcome::kCancelled;
  // Also what waited in the queue for too long: it was refused late.
  if (absl::IsResourceExhausted(status)) return Outcome::kRejected;
  return progress == Progress::kAccepted ? Outcome::kError : Outcome::kRejected;
}

absl::Status AskEngine(const Servable& servable, absl::Time deadline) {
  if (servable.generate != nullptr) return servable.generate->Ask(deadline);
  if (servable.encode != nullptr) return servable.encode->Ask(deadline);
  return absl::OkStatus();
}

}  // namespace

RequestOrigin OriginOf(const ServiceContext& context, const grpc::CallbackServerContext& rpc,
                       const std::string& client) {
  RequestOrigin origin{
      .trace = TraceOf(rpc), .client = {}, .deadline = DeadlineOf(rpc, context.clock)};
  if (!context.quotas.bounds()) return origin;
  origin.client = client.empty() ? absl::StrCat("address ", CountedAs(context.peers.Of(rpc.peer())))
                                 : absl::StrCat("token ", client);
  return origin;
}

absl::StatusOr<VersionSelector> ParseVersion(const std::string& version) {
  if (version.empty()) return VersionSelector();
  int64_t number = 0;
  if (absl::SimpleAtoi(version, &number) && number > 0) return VersionSelector(number);
  if (VersionLabels().VersionOf(version).status().code() != absl::StatusCode::kInvalidArgument) {
    return VersionSelector::Create(0, version);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("model version '", version,
                   "' is not a positive whole number, nor stable, canary or previous"));
}

absl::StatusOr<std::shared_ptr<Servable>> AcquireModel(ServiceContext& context,
                                                       const std::string& model,
                                                       const VersionSelector& wanted) {
  absl::StatusOr<std::shared_ptr<Servable>> servable = context.registry.Acquire(model, wanted);
  if (servable.ok()) return servable;
  const auto known = context.registry.Find(model, wanted.number);
  if (!known.ok()) {
    context.metrics.UnknownModel();
    const std::string of_version =
        wanted.number == 0 ? "" : absl::StrCat(" version ", wanted.number);
    return absl::NotFoundError(
        absl::StrCat("Request for unknown model: '", model, "'", of_version, " is not found"));
  }
  const bool bad = absl::IsInvalidArgument(servable.status());
  context.metrics.ForModel(known->name, known->version)
      ->Rejected(bad ? RejectReason::kInvalid : RejectReason::kNotReady);
  return servable;
}

absl::StatusOr<std::unique_ptr<RequestRecord>> RequestRecord::Open(ServiceContext& context,
                                                                   const std::string& model,
                                                                   const VersionSelector& wanted,
                                                                   const RequestOrigin& origin) {
  absl::StatusOr<WorkGate::Ticket> ticket = context.gate.Enter();
  if (!ticket.ok()) {
    if (const auto servable = context.registry.Acquire(model, wanted); servable.ok()) {
      (*servable)->metrics->Rejected(absl::IsUnavailable(ticket.status())
                                         ? RejectReason::kDraining
                                         : RejectReason::kQueueFull);
    }
    return ticket.status();
  }
  ASSIGN_OR_RETURN(Quotas::Ticket quota, context.quotas.Enter(origin.client));
  VersionSelector shared = wanted;
  shared.shared = true;
  ASSIGN_OR_RETURN(std::shared_ptr<Servable> servable, AcquireModel(context, model, shared));
  std::unique_ptr<RequestRecord> record(new RequestRecord(
      context, {*std::move(ticket), std::move(quota)}, std::move(servable), origin.trace));
  if (absl::Status status = AskEngine(*record->servable(), origin.deadline); !status.ok()) {
    record->Done(status, Progress::kSubmitted, {});
    return status;
  }
  return record;
}

absl::Status RequestRecord::RunOnText(size_t text_bytes, std::function<void()> work) {
  absl::Status taken = context_.texts.Run(text_bytes, std::move(work));
  if (!taken.ok()) {
    servable_->metrics->Rejected(RejectReason::kQueueFull);
    Done(taken, Progress::kSubmitted, {});
  }
  return taken;
}

void RequestRecord::Done(const absl::Status& status, Progress progress, RequestTimes times) {
  if (std::exchange(counted_, true)) return;
  const absl::Time now = context_.clock.Now();
  times.total = now - arrival_;
  const Outcome outcome = OutcomeOf(status, progress);
  if (progress == Progress::kChecked && outcome == Outcome::kRejected) {
    servable_->metrics->Rejected(RejectReason::kInvalid);
  }
  servable_->metrics->RequestDone(outcome, times.total, trace_);
  context_.traffic.Add(servable_->name, servable_->version,
                       {.total = times.total, .ok = status.ok(), .tokens = times.tokens}, now);
  if (status.ok()) {
    context_.statistics.Succeeded(servable_->name, servable_->version, times,
                                  context_.calendar.Now());
  } else {
    context_.statistics.Failed(servable_->name, servable_->version, times);
  }
}

}  // namespace assay
