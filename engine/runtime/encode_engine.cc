// The loop of embeddings and classification: whole sequences, most urgent first, packed without
// padding up to max_batch_tokens. A batch leaves when the next request would not fit, when the
// first in it has waited max_delay (or half of what its deadline left it), or when the engine
// drains.
#include <algorithm>
#include <system_error>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/arena.h"
#include "base/thread_pool.h"
#include "engine/runtime/inbox.h"
#include "engine/runtime/urgency.h"

namespace assay {
namespace {

struct EncodeJob {
  SequenceId id = 0;
  EncodeRequest request;
  EncodeSink sink;
  absl::Time arrival;
  absl::Time leave;      // no longer waits for company
  absl::Time start_by;   // may not wait any longer at all
  bool watched = false;  // the traffic's watch wants it

  int64_t num_tokens() const { return static_cast<int64_t>(request.tokens.size()); }
};
using Jobs = std::vector<std::unique_ptr<EncodeJob>>;

absl::Status CheckOptions(const ModelSpec& spec, const EngineOptions& options) {
  if (spec.task == ModelTask::kGenerate)
    return absl::InvalidArgumentError(
        absl::StrCat("not an encoder: architecture=", spec.architecture));
  if (options.max_sequences < 1 || options.max_queue < 1)
    return absl::InvalidArgumentError(absl::StrCat(
        "max_sequences and max_queue must be at least 1: max_sequences=", options.max_sequences,
        " max_queue=", options.max_queue));
  if (options.max_delay < absl::ZeroDuration() || options.max_delay > absl::Minutes(1))
    return absl::InvalidArgumentError(absl::StrCat("max_delay must be within [0, 1m]: max_delay=",
                                                   absl::FormatDuration(options.max_delay)));
  if (options.max_context < 0)
    return absl::InvalidArgumentError(
        absl::StrCat("max_context must not be negative: max_context=", options.max_context));
  const int context =
      options.max_context > 0 ? std::min(options.max_context, spec.max_context) : spec.max_context;
  if (options.max_batch_tokens < context)
    return absl::InvalidArgumentError(
        absl::StrCat("max_batch_tokens is too small for one sequence: max_batch_tokens=",
                     options.max_batch_tokens, " max_context=", context));
  return absl::OkStatus();
}

int64_t OutputWidth(const ModelSpec& spec) {
  return spec.task == ModelTask::kClassify ? spec.num_labels : spec.hidden;
}

class EncodeLoop final : public EncodeEngine {
 public:
  struct Parts {
    std::shared_ptr<const Model> model;
    EngineOptions options;
    int max_context = 0;
    Arena scratch;
    Tensor out;  // [max_sequences, width]
  };

  EncodeLoop(Parts parts, EngineHost host);
  ~EncodeLoop() override;
  absl::Status StartThread();

  absl::StatusOr<SequenceId> Submit(EncodeRequest request, EncodeSink sink) override;
  absl::Status Ask(absl::Time deadline) const override;
  void Cancel(SequenceId id) override { inbox_.Cancel(id); }
  void Drain() override { inbox_.Drain(); }
  EngineLoad load() const override { return inbox_.load(); }
  size_t scratch_bytes() const override { return scratch_.capacity() + out_.bytes(); }

 private:
  absl::Status Check(const EncodeRequest& request) const;
  absl::Status CheckLength(const EncodeRequest& request) const;
  absl::Status Reject(absl::Status status, RejectReason reason) const;
  absl::Status Refuse(absl::Status status) const;

  void Loop();
  void Accept(std::unique_ptr<EncodeJob> job);
  void Cancelled(SequenceId id);
  void Expire(absl::Time now);
  bool FormBatch();  // true: nothing more would fit
  absl::Duration Patience(absl::Time now, bool draining);
  void RunBatch();
  absl::Status Forward();
  void End(EncodeJob& job, EncodeResult result);
  void Fail(EncodeJob& job, absl::Status status, absl::Time now);
  void Publish(int num_running);

  const std::shared_ptr<const Model> model_;
  const EngineOptions options_;
  const int max_context_;
  const EngineHost host_;
  const QueueLimits limits_;
  Inbox<EncodeJob> inbox_;  // meets all threads; everything below belongs to the loop thread

  Arena scratch_;
  Tensor out_;
  Jobs waiting_;  // most urgent first; a batch is a prefix
  Jobs batch_;
  size_t batch_size_ = 0;  // of the prefix
  std::vector<int32_t> tokens_, token_types_;
  std::vector<SequenceSpan> spans_;
  int num_started_ = 0, num_ended_ = 0;  // since the last Publish
  std::thread loop_;                     // last member: started last
};

EncodeLoop::EncodeLoop(Parts parts, EngineHost host)
    : model_(std::move(parts.model)),
      options_(parts.options),
      max_context_(parts.max_context),
      host_(std::move(host)),
      limits_(QueueLimitsOf(parts.options, parts.options.max_delay)),
      inbox_(limits_),
      scratch_(std::move(parts.scratch)),
      out_(std::move(parts.out)) {
  tokens_.reserve(options_.max_batch_tokens);
  token_types_.reserve(options_.max_batch_tokens);
  spans_.reserve(options_.max_sequences);
  batch_.reserve(options_.max_sequences);
}

EncodeLoop::~EncodeLoop() {
  inbox_.Stop();
  if (loop_.joinable()) loop_.join();
}

absl::Status EncodeLoop::StartThread() {
  try {
    loop_ = std::thread([this] { Loop(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot start a thread: ", error.what()));
  }
  return absl::OkStatus();
}

absl::Status EncodeLoop::CheckLength(const EncodeRequest& request) const {
  if (request.tokens.size() > static_cast<size_t>(max_context_))
    return absl::InvalidArgumentError(
        absl::StrCat("the sequence does not fit into the context: "
                     "tokens=",
                     request.tokens.size(), " context=", max_context_));
  return absl::OkStatus();
}

absl::Status EncodeLoop::Check(const EncodeRequest& request) const {
  const ModelSpec& spec = model_->spec();
  if (request.tokens.empty()) return absl::InvalidArgumentError("there are no tokens");
  for (size_t i = 0; i < request.tokens.size(); ++i) {
    if (request.tokens[i] < 0 || request.tokens[i] >= spec.vocab)
      return absl::InvalidArgumentError(absl::StrCat("unknown token id ", request.tokens[i],
                                                     " at position ", i, ": vocabulary of ",
                                                     spec.vocab));
  }
  if (!request.token_types.empty() && request.token_types.size() != request.tokens.size())
    return absl::InvalidArgumentError(absl::StrCat(
        "token_types must be empty or one per token: token_types=", request.token_types.size(),
        " tokens=", request.tokens.size()));
  for (int32_t type : request.token_types) {
    if (type < 0 || type >= std::max(1, spec.type_vocab))
      return absl::InvalidArgumentError(absl::StrCat(
          "unknown token type ", type, ": the model has ", std::max(1, spec.type_vocab)));
  }
  return absl::OkStatus();
}

absl::Status EncodeLoop::Reject(absl::Status status, RejectReason reason) const {
  host_.metrics->Rejected(reason);
  return status;
}

absl::StatusOr<SequenceId> EncodeLoop::Submit(EncodeRequest request, EncodeSink sink) {
  if (absl::Status status = CheckLength(request); !status.ok())
    return Reject(std::move(status), RejectReason::kTooLarge);
  if (absl::Status status = Check(request); !status.ok())
    return Reject(std::move(status), RejectReason::kInvalid);
  auto job = std::make_unique<EncodeJob>();
  job->arrival = host_.clock.Now();
  if (request.deadline <= job->arrival) {
    host_.metrics->DeadlineExceeded(WorkStage::kQueue);
    return absl::DeadlineExceededError("the deadline had passed when the request arrived");
  }
  const absl::Duration half = (request.deadline - job->arrival) / 2;
  job->leave = job->arrival + std::min(options_.max_delay, half);
  job->request = std::move(request);
  job->sink = std::move(sink);
  job->watched = host_.watch != nullptr && host_.watch->Sample();
  const Newcomer newcomer{job->arrival, job->request.deadline, job->request.follows};
  job->start_by = StartBy(limits_, newcomer);
  absl::StatusOr<SequenceId> id = inbox_.Push(std::move(job), newcomer);
  return id.ok() ? std::move(id) : Refuse(id.status());
}

absl::Status EncodeLoop::Refuse(absl::Status status) const {
  const bool draining = absl::IsUnavailable(status);
  return Reject(std::move(status), draining ? RejectReason::kDraining : RejectReason::kQueueFull);
}

absl::Status EncodeLoop::Ask(absl::Time deadline) const {
  absl::Status status = inbox_.Check({.arrival = host_.clock.Now(), .deadline = deadline});
  return status.ok() ? status : Refuse(std::move(status));
}

void EncodeLoop::Loop() {
  Inbox<EncodeJob>::Delivery news;
  absl::Duration patience = absl::InfiniteDuration();
  while (!news.stopped) {
    inbox_.Take(patience, news);
    for (std::unique_ptr<EncodeJob>& job : news.arrivals) Accept(std::move(job));
    for (SequenceId id : news.cancelled) Cancelled(id);
    news.arrivals.clear();
    news.cancelled.clear();
    if (news.stopped) break;
    Expire(host_.clock.Now());
    patience = Patience(host_.clock.Now(), news.draining);
    if (patience <= absl::ZeroDuration()) {
      RunBatch();
      patience = absl::ZeroDuration();  // look at the rest at once
      if (waiting_.empty()) patience = absl::InfiniteDuration();
    }
    Publish(0);
  }
  for (std::unique_ptr<EncodeJob>& job : waiting_)
    Fail(*job, absl::UnavailableError("the engine was shut down"), host_.clock.Now());
  waiting_.clear();
  Publish(0);
}

void EncodeLoop::Accept(std::unique_ptr<EncodeJob> job) {
  const auto urgency = [](const std::unique_ptr<EncodeJob>& j) {
    return std::pair(Urgency(j->arrival, j->request.deadline), j->id);
  };
  const auto place = std::ranges::upper_bound(waiting_, urgency(job), {}, urgency);
  waiting_.insert(place, std::move(job));
}

void EncodeLoop::Cancelled(SequenceId id) {
  const auto at = std::ranges::find(waiting_, id, [](const auto& job) { return job->id; });
  if (at == waiting_.end()) return;
  host_.metrics->Cancelled(WorkStage::kQueue);
  Fail(**at, absl::CancelledError("cancelled"), host_.clock.Now());
  waiting_.erase(at);
}

void EncodeLoop::Expire(absl::Time now) {
  std::erase_if(waiting_, [&](const std::unique_ptr<EncodeJob>& job) {
    if (job->request.deadline <= now) {
      host_.metrics->DeadlineExceeded(WorkStage::kQueue);
      Fail(*job, absl::DeadlineExceededError("the deadline passed"), now);
      return true;
    }
    if (job->start_by > now) return false;
    Fail(*job, Refuse(WaitedTooLong(now - job->arrival)), now);
    return true;
  });
}

bool EncodeLoop::FormBatch() {
  int64_t num_tokens = 0;
  batch_size_ = 0;
  for (const std::unique_ptr<EncodeJob>& job : waiting_) {
    num_tokens += job->num_tokens();
    if (num_tokens > options_.max_batch_tokens) return true;
    if (++batch_size_ == static_cast<size_t>(options_.max_sequences)) return true;
  }
  return num_tokens == options_.max_batch_tokens;
}

// How long the batch may still wait for company; zero or less: run it.
absl::Duration EncodeLoop::Patience(absl::Time now, bool draining) {
  if (waiting_.empty()) return absl::InfiniteDuration();
  if (FormBatch() || draining) return absl::ZeroDuration();
  absl::Time leave = absl::InfiniteFuture();
  for (const std::unique_ptr<EncodeJob>& job : waiting_) leave = std::min(leave, job->leave);
  return leave - now;
}

void EncodeLoop::RunBatch() {
  const auto end = waiting_.begin() + static_cast<std::ptrdiff_t>(batch_size_);
  batch_.assign(std::move_iterator(waiting_.begin()), std::move_iterator(end));
  waiting_.erase(waiting_.begin(), end);
  num_started_ += static_cast<int>(batch_.size());
  Publish(static_cast<int>(batch_.size()));

  const absl::Time begin = host_.clock.Now();
  for (const std::unique_ptr<EncodeJob>& job : batch_) host_.metrics->Queued(begin - job->arrival);
  absl::Status status = Forward();
  const absl::Duration compute = host_.clock.Now() - begin;
  if (status.ok()) {
    host_.metrics->StepDone(static_cast<int>(batch_.size()), compute);
    host_.metrics->TokensProcessed(static_cast<int>(tokens_.size()), 0, 0);
  } else {
    status =
        absl::InternalError(absl::StrCat("the model's forward pass failed: ", status.ToString()));
  }
  const int64_t width = OutputWidth(model_->spec());
  for (size_t i = 0; i < batch_.size(); ++i) {
    EncodeResult result{.status = status,
                        .queued = begin - batch_[i]->arrival,
                        .compute = compute,
                        .batch_requests = static_cast<int>(batch_.size())};
    if (status.ok()) {
      const float* values = out_.data<float>() + static_cast<int64_t>(i) * width;
      result.values.assign(values, values + width);
    }
    if (status.ok() && batch_[i]->watched) {
      const auto length = static_cast<int>(batch_[i]->num_tokens());
      host_.watch->Served({.tokens = std::move(batch_[i]->request.tokens),
                           .num_prompt = length,
                           .logprobs = {},
                           .token_types = std::move(batch_[i]->request.token_types)});
    }
    End(*batch_[i], std::move(result));
  }
  batch_.clear();
}

absl::Status EncodeLoop::Forward() {
  tokens_.clear();
  token_types_.clear();
  spans_.clear();
  bool typed = false;
  for (const std::unique_ptr<EncodeJob>& job : batch_) {
    const EncodeRequest& request = job->request;
    spans_.push_back({.first_row = static_cast<int32_t>(tokens_.size()),
                      .num_rows = static_cast<int32_t>(request.tokens.size())});
    tokens_.insert(tokens_.end(), request.tokens.begin(), request.tokens.end());
    token_types_.insert(token_types_.end(), request.token_types.begin(), request.token_types.end());
    token_types_.resize(tokens_.size(), 0);
    typed = typed || !request.token_types.empty();
  }
  const ForwardBatch batch{
      .tokens = tokens_,
      .sequences = spans_,
      .token_types = typed ? std::span<const int32_t>(token_types_) : std::span<const int32_t>()};
  MutableView out = out_.mutable_view();
  out.shape = Shape{static_cast<int64_t>(batch_.size()), OutputWidth(model_->spec())};
  const Arena::Scope scope(scratch_);
  ComputeContext context{host_.pool, scratch_};
  return model_->Forward({.batch = batch, .out = out}, context);
}

void EncodeLoop::End(EncodeJob& job, EncodeResult result) {
  job.sink(std::move(result));
  ++num_ended_;
}

void EncodeLoop::Fail(EncodeJob& job, absl::Status status, absl::Time now) {
  End(job, {.status = std::move(status), .queued = now - job.arrival});
}

void EncodeLoop::Publish(int num_running) {
  const EngineLoad load{.waiting = static_cast<int>(waiting_.size()), .running = num_running};
  host_.metrics->SetLoad(load.waiting, load.running);
  inbox_.Publish(load, {.now = host_.clock.Now(),
                        .started = std::exchange(num_started_, 0),
                        .ended = std::exchange(num_ended_, 0)});
}

}  // namespace

absl::StatusOr<std::unique_ptr<EncodeEngine>> EncodeEngine::Start(
    std::shared_ptr<const Model> model, const EngineOptions& options, EngineHost host) {
  const ModelSpec& spec = model->spec();
  RETURN_IF_ERROR(CheckOptions(spec, options));
  const int context =
      options.max_context > 0 ? std::min(options.max_context, spec.max_context) : spec.max_context;
  ASSIGN_OR_RETURN(
      Arena scratch,
      Arena::Create(model->device(), model->scratch_bytes(options.max_batch_tokens,
                                                          options.max_sequences, context)));
  ASSIGN_OR_RETURN(
      Tensor out,
      Tensor::Create(CpuDevice(), Shape{options.max_sequences, OutputWidth(spec)}, DType::kF32));
  auto engine = std::make_unique<EncodeLoop>(EncodeLoop::Parts{.model = std::move(model),
                                                               .options = options,
                                                               .max_context = context,
                                                               .scratch = std::move(scratch),
                                                               .out = std::move(out)},
                                             std::move(host));
  RETURN_IF_ERROR(engine->StartThread());
  return engine;
}

}  // namespace assay
