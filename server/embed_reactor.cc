#include "server/embed_reactor.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/model_description.h"
#include "server/prompts.h"

namespace assay {
namespace {

constexpr int kMaxInputs = 1024;  // of one request

}  // namespace

EmbedReactor::EmbedReactor(ServiceContext& context, const assay::v1::EmbedRequest& request,
                           assay::v1::EmbedResponse* response, Caller caller)
    : clock_(context.clock),
      caller_(std::move(caller)),
      response_(response),
      window_(RowsInEngine(context.config.engine)) {
  const absl::Status opened = Open(context, request);
  if (!opened.ok()) {
    AllEnded(opened);
    return;
  }
  // The request lives as long as the RPC.
  const absl::Status taken = record_->RunOnText(request.ByteSizeLong(), [this, &request] {
    const absl::Status prepared = Prepare(request);
    prepared.ok() ? Submit() : AllEnded(prepared);
  });
  if (!taken.ok()) AllEnded(taken);
}

void EmbedReactor::OnCancel() {
  if (!IsExpiry(arrival_, deadline_, clock_.Now())) group_.Cancel();
}

absl::Status EmbedReactor::Open(ServiceContext& context, const assay::v1::EmbedRequest& request) {
  ASSIGN_OR_RETURN(const VersionSelector version,
                   VersionSelector::Create(request.version(), request.version_label()));
  ASSIGN_OR_RETURN(record_, RequestRecord::Open(context, request.model(), version, caller_.origin));
  return absl::OkStatus();
}

absl::Status EmbedReactor::Prepare(const assay::v1::EmbedRequest& request) {
  RETURN_IF_ERROR(CheckWanted(group_.cancelled(), deadline_, clock_.Now()));
  const Servable& servable = *record_->servable();
  if (servable.encode == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("model '", servable.name, "' makes no embeddings; use Generate"));
  }
  const int inputs = request.texts_size() + request.tokens_size();
  if (inputs == 0 || inputs > kMaxInputs ||
      (request.texts_size() > 0 && request.tokens_size() > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected 1 to ", kMaxInputs, " texts or token sequences (not both), got ",
        request.texts_size(), " texts and ", request.tokens_size(), " token sequences"));
  }
  size_t bytes = 0;
  for (const std::string& text : request.texts()) bytes += text.size();
  if (request.texts_size() > 1) RETURN_IF_ERROR(CheckTotalBytes(bytes));
  for (const std::string& text : request.texts()) {
    ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                     EncodeForEncoder(servable, text, request.truncate()));
    tokens_.push_back(std::move(ids));
  }
  for (const auto& ids : request.tokens()) {
    tokens_.emplace_back(ids.ids().begin(), ids.ids().end());
  }
  results_.resize(tokens_.size());
  for (const auto& ids : tokens_) {
    response_->add_embeddings()->set_tokens(static_cast<int>(ids.size()));
  }
  return absl::OkStatus();
}

void EmbedReactor::Submit() {
  EncodeEngine* engine = record_->servable()->encode.get();
  group_.SubmitAll(
      {tokens_.size(), window_},
      [this, engine](size_t row) {
        absl::StatusOr<SequenceId> id = engine->Submit({tokens_[row], {}, deadline_, row > 0},
                                                       [this, row](EncodeResult&& result) {
                                                         const absl::Status status = result.status;
                                                         results_[row] = std::move(result);
                                                         record_->Charge(tokens_[row].size());
                                                         group_.Ended(status);
                                                       });
        // No sink reads this before SubmitAll lets go of the group.
        progress_ = id.ok() ? Progress::kAccepted : std::max(progress_, Progress::kSubmitted);
        return id;
      },
      [engine](SequenceId id) { engine->Cancel(id); },
      [this](const absl::Status& status) { AllEnded(status); });
}

void EmbedReactor::AllEnded(const absl::Status& status) {
  RequestTimes times;
  for (const EncodeResult& result : results_) {
    times.queued = std::max(times.queued, result.queued);
    times.compute = std::max(times.compute, result.compute);
    times.batch_requests = std::max(times.batch_requests, result.batch_requests);
  }
  if (record_ != nullptr) record_->Done(status, progress_, times);
  if (status.ok()) {
    const Servable& servable = *record_->servable();
    response_->set_model(servable.name);
    response_->set_version(servable.version);
    for (size_t row = 0; row < results_.size(); ++row) {
      assay::v1::Embedding& out = *response_->mutable_embeddings(static_cast<int>(row));
      out.mutable_values()->Add(results_[row].values.begin(), results_[row].values.end());
      out.set_label(LabelOf(servable.spec, results_[row].values));
    }
  } else {
    response_->Clear();
  }
  Finish(ToGrpc(status, rpc_));
}

}  // namespace assay
