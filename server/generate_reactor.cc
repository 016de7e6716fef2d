#include "server/generate_reactor.h"

#include "absl/strings/str_cat.h"
#include "server/infer_job.h"
#include "server/prompts.h"

namespace assay {
namespace {

absl::StatusOr<std::vector<int32_t>> PromptOf(const Servable& servable,
                                              const assay::v1::GenerateRequest& request) {
  switch (request.input_case()) {
    case assay::v1::GenerateRequest::kPrompt:
      return EncodePrompt(servable, request.prompt());
    case assay::v1::GenerateRequest::kChat: {
      std::vector<ChatMessage> messages;
      for (const auto& message : request.chat().messages()) {
        messages.push_back({message.role(), message.content()});
      }
      return EncodeChat(servable, messages);
    }
    case assay::v1::GenerateRequest::kPromptIds:
      return std::vector<int32_t>(request.prompt_ids().ids().begin(),
                                  request.prompt_ids().ids().end());
    case assay::v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("one of prompt, chat and prompt_ids is needed");
}

}  // namespace

absl::StatusOr<SamplingParams> ToSampling(const assay::v1::SamplingParams& proto) {
  SamplingParams out;
  if (proto.has_max_tokens()) out.max_tokens = proto.max_tokens();
  if (proto.has_temperature()) out.temperature = proto.temperature();
  if (proto.has_top_k()) out.top_k = proto.top_k();
  if (proto.has_top_p()) out.top_p = proto.top_p();
  if (proto.has_min_p()) out.min_p = proto.min_p();
  if (proto.has_repetition_penalty()) out.repetition_penalty = proto.repetition_penalty();
  if (proto.has_presence_penalty()) out.presence_penalty = proto.presence_penalty();
  if (proto.has_frequency_penalty()) out.frequency_penalty = proto.frequency_penalty();
  if (proto.has_seed()) out.seed = proto.seed();
  out.stop.assign(proto.stop().begin(), proto.stop().end());
  out.stop_token_ids.assign(proto.stop_token_ids().begin(), proto.stop_token_ids().end());
  if (proto.has_logprobs() && proto.logprobs() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("logprobs must not be negative: ", proto.logprobs()));
  }
  out.logprobs = proto.has_logprobs() ? proto.logprobs() : -1;
  if (proto.has_ignore_eos()) out.ignore_eos = proto.ignore_eos();
  RETURN_IF_ERROR(Validate(out));
  return out;
}

GenerateReactor::GenerateReactor(ServiceContext& context, const assay::v1::GenerateRequest& request,
                                 Caller caller)
    : clock_(context.clock), caller_(std::move(caller)) {
  const absl::Status opened = Open(context, request);
  if (!opened.ok()) {
    Refuse(opened);
    return;
  }
  // The request lives as long as the RPC.
  const absl::Status taken = record_->RunOnText(request.ByteSizeLong(), [this, &request] {
    Progress progress = Progress::kChecked;
    const absl::Status status = Submit(request, progress);
    if (status.ok()) return;  // the reactor may be gone
    record_->Done(status, progress, {});
    Refuse(status);
  });
  if (!taken.ok()) Refuse(taken);
}

void GenerateReactor::Refuse(const absl::Status& status) {
  {
    MutexLock lock(mu_);
    finished_ = true;
  }
  Finish(ToGrpc(status, rpc_));
}

absl::Status GenerateReactor::Open(ServiceContext& context,
                                   const assay::v1::GenerateRequest& request) {
  ASSIGN_OR_RETURN(const VersionSelector version,
                   VersionSelector::Create(request.version(), request.version_label()));
  ASSIGN_OR_RETURN(record_, RequestRecord::Open(context, request.model(), version, caller_.origin));
  return absl::OkStatus();
}

absl::Status GenerateReactor::Submit(const assay::v1::GenerateRequest& request,
                                     Progress& progress) {
  {
    MutexLock lock(mu_);
    RETURN_IF_ERROR(CheckWanted(cancelled_, deadline_, clock_.Now()));
  }
  // The engine's end may destroy the reactor, and its record, before this returns.
  const std::shared_ptr<Servable> servable = record_->servable();
  if (servable->generate == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("model '", servable->name, "' does not generate text; use Embed"));
  }
  ASSIGN_OR_RETURN(SamplingParams sampling, ToSampling(request.sampling()));
  wants_logprobs_ = sampling.logprobs >= 0;
  ASSIGN_OR_RETURN(std::vector<int32_t> prompt, PromptOf(*servable, request));
  uncharged_ = prompt.size();
  progress = Progress::kSubmitted;
  {
    MutexLock lock(mu_);
    submitting_ = true;
  }
  const absl::StatusOr<SequenceId> id = servable->generate->Submit(
      {std::move(prompt), std::move(sampling), deadline_, record_->trace()},
      [this](TokenEvent&& event) { OnToken(std::move(event)); });
  RETURN_IF_ERROR(id.status());
  Next next;
  bool cancel = false;
  {
    MutexLock lock(mu_);
    submitting_ = false;
    id_ = *id;
    cancel = cancelled_ && !ended_;  // while it was on its way
    next = DecideLocked();
  }
  if (cancel) servable->generate->Cancel(*id);
  Act(next);
  return absl::OkStatus();
}

void GenerateReactor::OnToken(TokenEvent&& event) {
  const bool end = event.kind == TokenEvent::Kind::kEnd;
  record_->Charge(std::exchange(uncharged_, 0) + (end ? 0 : 1));
  if (end) Record(event);
  Next next;
  {
    MutexLock lock(mu_);
    end ? AddEnd(event) : AddToken(event);
    next = DecideLocked();
  }
  Act(next);
}

void GenerateReactor::AddToken(const TokenEvent& event) {
  pending_.mutable_text()->append(event.text);
  assay::v1::GeneratedToken& token = *pending_.add_tokens();
  token.set_token(event.token);
  if (wants_logprobs_) {
    token.set_logprob(event.logprob);
    const Tokenizer* tokenizer = record_->servable()->tokenizer.get();
    for (const auto& [id, logprob] : event.top) {
      assay::v1::TokenLogprob& top = *token.add_top();
      top.set_token(id);
      top.set_logprob(logprob);
      if (tokenizer != nullptr) top.set_text(std::string(tokenizer->TokenText(id)));
    }
  }
  has_pending_ = true;
}

void GenerateReactor::AddEnd(const TokenEvent& event) {
  const Usage& usage = event.usage;
  ended_ = true;
  end_ = event.status;
  pending_.mutable_text()->append(event.text);
  if (event.status.ok()) {
    pending_.set_done(true);
    pending_.set_finish_reason(std::string(Name(event.reason)));
    pending_.set_model(record_->servable()->name);
    pending_.set_version(record_->servable()->version);
    assay::v1::Usage& out = *pending_.mutable_usage();
    out.set_prompt_tokens(usage.prompt_tokens);
    out.set_generated_tokens(usage.generated_tokens);
    out.set_cached_tokens(usage.cached_tokens);
    out.set_queued_seconds(absl::ToDoubleSeconds(usage.queued));
    out.set_time_to_first_token_seconds(absl::ToDoubleSeconds(usage.time_to_first_token));
    out.set_total_seconds(absl::ToDoubleSeconds(usage.total));
    has_pending_ = true;
  }
}

void GenerateReactor::Record(const TokenEvent& end) {
  RequestTimes times;
  times.queued = end.usage.queued;
  times.compute = end.usage.total - end.usage.queued;
  times.decoupled = true;
  times.responses = end.usage.generated_tokens;
  times.tokens = end.usage.generated_tokens;
  record_->Done(end.status, Progress::kAccepted, times);
}

GenerateReactor::Next GenerateReactor::DecideLocked() {
  Next next;
  if (writing_ || finished_) return next;
  if (broken_) {
    pending_.Clear();
    has_pending_ = false;
  }
  if (has_pending_) {
    writing_message_ = std::move(pending_);
    pending_.Clear();
    has_pending_ = false;
    next.write = writing_ = true;
  } else if (ended_ && !submitting_) {
    next.finish = finished_ = true;
    next.end = end_;
  }
  return next;
}

void GenerateReactor::Act(const Next& next) {
  if (next.write) StartWrite(&writing_message_);
  if (next.finish) Finish(ToGrpc(next.end, rpc_));
}

void GenerateReactor::OnWriteDone(bool ok) {
  if (!ok) OnCancel();
  Next next;
  {
    MutexLock lock(mu_);
    writing_ = false;
    next = DecideLocked();
  }
  Act(next);
}

void GenerateReactor::OnCancel() {
  std::optional<SequenceId> id;
  {
    MutexLock lock(mu_);
    broken_ = true;
    // A deadline is left to the engine.
    if (IsExpiry(arrival_, deadline_, clock_.Now())) return;
    if (!ended_ && !cancelled_) id = id_;
    cancelled_ = true;
  }
  // The engine still ends the sequence with an event, which finishes the RPC.
  if (id) record_->servable()->generate->Cancel(*id);
}

}  // namespace assay
