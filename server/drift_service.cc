// The RPCs of assay.v1 about what happens while models serve.
#include "absl/strings/str_cat.h"
#include "server/assay_service.h"
#include "server/reactors.h"

namespace assay {
namespace {

std::string TimeText(absl::Time time) {
  return time == absl::UnixEpoch() || time == absl::Time()
             ? std::string()
             : absl::FormatTime(absl::RFC3339_sec, time, absl::UTCTimeZone());
}

void Fill(const InputDriftStatus& from, assay::v1::InputDrift& to) {
  to.set_shifted(from.shifted);
  to.set_cause(from.cause);
  to.set_requests(from.requests);
  to.set_saturation_admitted(from.saturation_admitted);
  to.set_saturated_layer(from.saturated_layer);
  to.set_range_layer(from.range_layer);
  if (from.saturation.has_value()) to.set_saturation(*from.saturation);
  if (from.range.has_value()) to.set_range(*from.range);
  if (from.outlier_overlap.has_value()) to.set_outlier_overlap(*from.outlier_overlap);
  if (from.length_psi.has_value()) to.set_length_psi(*from.length_psi);
  if (from.token_psi.has_value()) to.set_token_psi(*from.token_psi);
}

void Fill(const DriftStatus& from, assay::v1::DriftSummary& to) {
  to.set_model(from.model);
  to.set_version(from.version);
  to.set_state(std::string(Name(from.state)));
  to.set_cause(from.cause);
  to.set_statistic(from.statistic);
  to.set_score(from.score);
  to.set_low(from.low);
  to.set_high(from.high);
  to.set_limit(from.limit);
  to.set_certificate(from.certificate);
  to.set_budget(from.budget);
  to.set_top1_flip(from.top1_flip);
  to.set_logprob_difference(from.logprob_difference);
  to.set_replay_difference(from.replay_difference);
  to.set_e_value(from.e_value);
  to.set_change_evidence(from.change_evidence);
  to.set_samples(from.samples);
  to.set_mismatches(from.mismatches);
  to.set_skipped(from.skipped);
  to.set_tokens(from.tokens);
  to.set_cpu_seconds(from.cpu_seconds);
  to.set_waiting(static_cast<int32_t>(from.waiting));
  to.set_last(TimeText(from.last));
  to.set_violated_at(TimeText(from.violated_at));
  to.set_error(from.error);
  Fill(from.input, *to.mutable_input());
}

const char* SeverityName(LogLevel level) {
  switch (level) {
    case LogLevel::kError:
      return "error";
    case LogLevel::kWarning:
      return "warning";
    default:
      return "info";
  }
}

}  // namespace

AssayServiceImpl::Unary* AssayServiceImpl::GetDrift(Context* context,
                                                    const assay::v1::GetDriftRequest* request,
                                                    assay::v1::GetDriftResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kObserve)) return refused;
  response->set_rate(context_.config.drift.sampler.rate);
  response->set_action(std::string(Name(context_.config.drift_action)));
  if (!request->model().empty()) {
    const absl::Status known = context_.registry.Find(request->model(), 0).status();
    if (!known.ok()) return Reply(context, known);
  }
  for (const DriftStatus& status : context_.drift.List()) {
    if (request->model().empty() || request->model() == status.model)
      Fill(status, *response->add_models());
  }
  return Reply(context, absl::OkStatus());
}

AssayServiceImpl::Unary* AssayServiceImpl::ListEvents(Context* context,
                                                      const assay::v1::ListEventsRequest* request,
                                                      assay::v1::ListEventsResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kObserve)) return refused;
  // What was unloaded still has a history.
  if (!request->model().empty() && context_.events.Since(0, request->model()).empty()) {
    const absl::Status known = context_.registry.Find(request->model(), 0).status();
    if (!known.ok()) return Reply(context, known);
  }
  for (const Event& event : context_.events.Since(request->since_id(), request->model())) {
    assay::v1::EventEntry& entry = *response->add_events();
    entry.set_id(event.id);
    entry.set_at(TimeText(event.at));
    entry.set_severity(SeverityName(event.level));
    entry.set_model(event.model);
    entry.set_version(event.version);
    entry.set_kind(event.kind);
    entry.set_reason(event.reason);
  }
  return Reply(context, absl::OkStatus());
}

}  // namespace assay
