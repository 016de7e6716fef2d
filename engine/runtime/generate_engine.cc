// The loop of text generation: take in news, ask the scheduler, run the model, sample, tell the
// sinks. After warm-up a step allocates nothing, apart from what events carry that does not fit
// into small strings (text longer than 15 bytes, top alternatives).
#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/arena.h"
#include "base/thread_pool.h"
#include "engine/runtime/generate_sizes.h"
#include "engine/runtime/inbox.h"
#include "engine/runtime/sampler_candidates.h"
#include "engine/runtime/scheduler.h"
#include "engine/runtime/weigher.h"

namespace assay {
namespace {

bool DependsOnPhase(const Model& model) {
  return std::ranges::any_of(model.linears(), [](const auto& linear) {
    return linear.second->problem().activation == ActivationMode::kA8Mix;
  });
}

class GenerateLoop final : public GenerateEngine {
 public:
  struct Parts {
    std::shared_ptr<const Model> model;
    std::shared_ptr<const Tokenizer> tokenizer;
    GenerateSizes sizes;
    KvPool kv_pool;
    Arena scratch;
    Tensor logits;  // [max_sequences, vocab]
  };

  GenerateLoop(Parts parts, const EngineOptions& options, EngineHost host);
  ~GenerateLoop() override;
  absl::Status StartThread();

  absl::StatusOr<SequenceId> Submit(GenerateRequest request, TokenSink sink) override;
  absl::Status Ask(absl::Time deadline) const override;
  void Cancel(SequenceId id) override { inbox_.Cancel(id); }
  void Drain() override { inbox_.Drain(); }
  EngineLoad load() const override { return inbox_.load(); }
  size_t kv_bytes() const override { return kv_pool_.bytes(); }
  size_t scratch_bytes() const override { return scratch_.capacity() + logits_.bytes(); }

 private:
  absl::Status Check(const GenerateRequest& request) const;
  absl::Status CheckLength(const GenerateRequest& request) const;
  absl::Status Reject(absl::Status status, RejectReason reason) const;
  absl::Status Refuse(absl::Status status) const;
  std::unique_ptr<Sequence> NewSequence(GenerateRequest request, TokenSink sink) const;

  void Loop();
  void Step();
  void Expire(std::unique_ptr<Sequence> s, absl::Time now);
  void BuildBatch(const StepPlan& plan);
  absl::Status Forward();
  void SampleAll();
  void SampleRows(bool undecided);
  void SampleRow(size_t row, SamplerScratch& scratch);
  MutableView LogitRows();
  void Deliver(Sequence& s, absl::StatusOr<SampledToken>& sampled, absl::Time now);
  void End(std::unique_ptr<Sequence> s, FinishReason reason, absl::Status status);
  void FailStep(const StepPlan& plan, const absl::Status& why);
  void CountPrompt(Sequence& s);
  bool EndsGeneration(const Sequence& s, int32_t token) const;
  void Publish();

  const std::shared_ptr<const Model> model_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const GenerateSizes sizes_;
  const EngineHost host_;
  const QueueLimits limits_;
  Inbox<Sequence> inbox_;  // meets all threads; everything below belongs to the loop thread

  KvPool kv_pool_;
  Arena scratch_;
  Tensor logits_;
  KvCache kv_;
  Scheduler scheduler_;
  std::vector<int32_t> tokens_, logit_rows_;
  std::vector<SequenceSpan> spans_;
  std::vector<Sequence*> sampling_;                    // one per row of logits
  std::vector<RowCandidates> candidates_;              // likewise
  std::vector<RankedLogit> ranked_;                    // [max_sequences, kMostCandidates]
  std::vector<absl::StatusOr<SampledToken>> sampled_;  // likewise
  std::vector<SamplerScratch> sampler_scratch_;        // one per pool thread
  int num_started_ = 0, num_ended_ = 0;                // since the last Publish
  int step_prompt_tokens_ = 0;
  std::thread loop_;  // last member: started last
};

GenerateLoop::GenerateLoop(Parts parts, const EngineOptions& options, EngineHost host)
    : model_(std::move(parts.model)),
      tokenizer_(std::move(parts.tokenizer)),
      sizes_(parts.sizes),
      host_(std::move(host)),
      limits_(QueueLimitsOf(options)),
      inbox_(limits_),
      kv_pool_(std::move(parts.kv_pool)),
      scratch_(std::move(parts.scratch)),
      logits_(std::move(parts.logits)),
      kv_(sizes_.num_blocks, options.prefix_cache, sizes_.num_slots),
      scheduler_({sizes_.max_sequences, sizes_.max_step_tokens, DependsOnPhase(*model_)}, kv_) {
  tokens_.reserve(sizes_.max_step_tokens);
  logit_rows_.reserve(sizes_.max_sequences);
  spans_.reserve(sizes_.max_sequences);
  sampling_.reserve(sizes_.max_sequences);
  candidates_.reserve(sizes_.max_sequences);
  ranked_.resize(static_cast<size_t>(sizes_.max_sequences) * kMostCandidates);
  sampled_.resize(sizes_.max_sequences);
  // Here and not when a thread first samples: that may be long after the warm-up (Share).
  sampler_scratch_.resize(host_.pool.num_threads());
  const auto vocab = static_cast<size_t>(model_->spec().vocab);
  for (SamplerScratch& scratch : sampler_scratch_) {
    scratch.row.reserve(vocab);
    scratch.ranked.reserve(std::min<size_t>(vocab, 4 * kMostCandidates));
    scratch.block_mass.reserve(vocab / kSumBlock + 1);
  }
}

GenerateLoop::~GenerateLoop() {
  inbox_.Stop();
  if (loop_.joinable()) loop_.join();
}

absl::Status GenerateLoop::StartThread() {
  Publish();  // the gauges exist before the first request
  try {
    loop_ = std::thread([this] { Loop(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot start a thread: ", error.what()));
  }
  return absl::OkStatus();
}

absl::Status GenerateLoop::CheckLength(const GenerateRequest& request) const {
  const int64_t wanted =
      static_cast<int64_t>(request.prompt.size()) + int64_t{request.sampling.max_tokens};
  if (wanted > sizes_.max_context)
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt and max_tokens do not fit into the context: prompt=", request.prompt.size(),
        " max_tokens=", request.sampling.max_tokens, " context=", sizes_.max_context));
  return absl::OkStatus();
}

absl::Status GenerateLoop::Check(const GenerateRequest& request) const {
  if (request.prompt.empty()) return absl::InvalidArgumentError("the prompt is empty");
  RETURN_IF_ERROR(Validate(request.sampling));
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= model_->spec().vocab)
      return absl::InvalidArgumentError(
          absl::StrCat("unknown token id ", request.prompt[i], " at position ", i,
                       " of the prompt: vocabulary of ", model_->spec().vocab));
  }
  return absl::OkStatus();
}

absl::Status GenerateLoop::Reject(absl::Status status, RejectReason reason) const {
  host_.metrics->Rejected(reason);
  return status;
}

std::unique_ptr<Sequence> GenerateLoop::NewSequence(GenerateRequest request, TokenSink sink) const {
  auto s = std::make_unique<Sequence>();
  const size_t most = request.prompt.size() + static_cast<size_t>(request.sampling.max_tokens);
  s->sampling = std::move(request.sampling);
  s->arrival = host_.clock.Now();
  s->deadline = request.deadline;
  s->trace = request.trace;
  s->num_prompt = static_cast<int>(request.prompt.size());
  s->tokens = std::move(request.prompt);
  s->tokens.reserve(most);
  s->kv.blocks.reserve(KvCache::BlocksFor(static_cast<int64_t>(most)));
  s->sink = std::move(sink);
  s->text.emplace(tokenizer_->NewStreamDecoder(), s->sampling.stop);
  if (UsesPenalties(s->sampling)) s->counts.Reset(s->tokens, s->sampling.max_tokens);
  s->usage.prompt_tokens = s->num_prompt;
  s->watched = host_.watch != nullptr && host_.watch->Sample();
  if (s->watched) {
    s->logprobs.reserve(static_cast<size_t>(s->sampling.max_tokens));
    s->hides_logprob = s->sampling.logprobs < 0;
    s->sampling.logprobs = std::max(0, s->sampling.logprobs);
  }
  return s;
}

absl::StatusOr<SequenceId> GenerateLoop::Submit(GenerateRequest request, TokenSink sink) {
  if (absl::Status status = CheckLength(request); !status.ok())
    return Reject(std::move(status), RejectReason::kTooLarge);
  if (absl::Status status = Check(request); !status.ok())
    return Reject(std::move(status), RejectReason::kInvalid);
  if (request.deadline <= host_.clock.Now()) {
    host_.metrics->DeadlineExceeded(WorkStage::kQueue);
    return absl::DeadlineExceededError("the deadline had passed when the request arrived");
  }
  const Newcomer newcomer{host_.clock.Now(), request.deadline, request.follows};
  std::unique_ptr<Sequence> s = NewSequence(std::move(request), std::move(sink));
  s->start_by = StartBy(limits_, newcomer);
  absl::StatusOr<SequenceId> id = inbox_.Push(std::move(s), newcomer);
  return id.ok() ? std::move(id) : Refuse(id.status());
}

absl::Status GenerateLoop::Refuse(absl::Status status) const {
  const bool draining = absl::IsUnavailable(status);
  return Reject(std::move(status), draining ? RejectReason::kDraining : RejectReason::kQueueFull);
}

absl::Status GenerateLoop::Ask(absl::Time deadline) const {
  absl::Status status = inbox_.Check({.arrival = host_.clock.Now(), .deadline = deadline});
  return status.ok() ? status : Refuse(std::move(status));
}

void GenerateLoop::Loop() {
  Inbox<Sequence>::Delivery news;
  while (!news.stopped) {
    inbox_.Take(scheduler_.empty() ? absl::InfiniteDuration() : absl::ZeroDuration(), news);
    for (std::unique_ptr<Sequence>& s : news.arrivals) scheduler_.Add(std::move(s));
    for (SequenceId id : news.cancelled) {
      if (std::unique_ptr<Sequence> s = scheduler_.Remove(id))
        End(std::move(s), FinishReason::kCancelled, absl::CancelledError("cancelled"));
    }
    news.arrivals.clear();
    news.cancelled.clear();
    if (!news.stopped) Step();
    Publish();
  }
  while (std::unique_ptr<Sequence> s = scheduler_.RemoveAny())
    End(std::move(s), FinishReason::kError, absl::UnavailableError("the engine was shut down"));
  Publish();
}

void GenerateLoop::Step() {
  const absl::Time begin = host_.clock.Now();
  StepPlan& plan = scheduler_.Next(begin);
  for (std::unique_ptr<Sequence>& s : plan.expired) Expire(std::move(s), begin);
  for (int i = 0; i < plan.num_preempted; ++i) host_.metrics->Preempted();
  step_prompt_tokens_ = 0;
  int hits = 0;
  num_started_ += static_cast<int>(plan.started.size());
  for (Sequence* s : plan.started) {
    s->usage.queued = begin - s->arrival;
    host_.metrics->Queued(s->usage.queued);
    hits += s->usage.cached_tokens;
  }
  if (plan.rows.empty()) return;

  BuildBatch(plan);
  if (const absl::Status status = Forward(); !status.ok()) return FailStep(plan, status);
  host_.metrics->StepDone(static_cast<int>(plan.rows.size()), host_.clock.Now() - begin);
  for (const StepPlan::Rows& rows : plan.rows) {
    scheduler_.Advance(rows);
    CountPrompt(*rows.sequence);
  }
  SampleAll();
  host_.metrics->TokensProcessed(step_prompt_tokens_ + hits, static_cast<int>(sampling_.size()),
                                 hits);
  const absl::Time now = host_.clock.Now();
  for (size_t i = 0; i < sampling_.size(); ++i) Deliver(*sampling_[i], sampled_[i], now);
}

void GenerateLoop::Expire(std::unique_ptr<Sequence> s, absl::Time now) {
  if (s->deadline <= now) {
    return End(std::move(s), FinishReason::kDeadline,
               absl::DeadlineExceededError("the deadline passed"));
  }
  const absl::Duration waited = now - s->arrival;
  End(std::move(s), FinishReason::kError, Refuse(WaitedTooLong(waited)));
}

void GenerateLoop::BuildBatch(const StepPlan& plan) {
  tokens_.clear();
  logit_rows_.clear();
  spans_.clear();
  sampling_.clear();
  candidates_.clear();
  for (const StepPlan::Rows& rows : plan.rows) {
    const Sequence& s = *rows.sequence;
    const int end = s.num_computed + rows.num_rows;
    spans_.push_back({.first_row = static_cast<int32_t>(tokens_.size()),
                      .num_rows = rows.num_rows,
                      .start_position = s.num_computed,
                      .first_decode_position = s.num_prompt,
                      .blocks = std::span(s.kv.blocks).first(KvCache::BlocksFor(end)),
                      .slot = s.kv.slot});
    tokens_.insert(tokens_.end(), s.tokens.begin() + s.num_computed, s.tokens.begin() + end);
    if (!rows.sample) continue;
    logit_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
    sampling_.push_back(rows.sequence);
    const std::span<RankedLogit> room(ranked_.data() + candidates_.size() * kMostCandidates,
                                      static_cast<size_t>(NumCandidates(s.sampling)));
    candidates_.push_back({.room = room, .scale = CandidateScale(s.sampling)});
  }
}

absl::Status GenerateLoop::Forward() {
  const ForwardBatch batch{.tokens = tokens_, .sequences = spans_, .logit_rows = logit_rows_};
  const Arena::Scope scope(scratch_);
  ComputeContext context{host_.pool, scratch_};
  return model_->Forward(
      {.batch = batch, .kv = &kv_pool_, .out = LogitRows(), .candidates = candidates_}, context);
}

MutableView GenerateLoop::LogitRows() {
  MutableView rows = logits_.mutable_view();
  rows.shape = Shape{static_cast<int64_t>(logit_rows_.size()), model_->spec().vocab};
  return rows;
}

// From candidates where there are some; what they leave undecided, from its row of logits.
void GenerateLoop::SampleAll() {
  SampleRows(/*undecided=*/false);
  int decided = 0, undecided = 0;
  for (const RowCandidates& c : candidates_) {
    if (c.undecided) ++undecided;
    if (c.count > 0 && !c.undecided) ++decided;
  }
  host_.metrics->RowsSampled(decided, static_cast<int>(candidates_.size()) - decided);
  if (undecided == 0) return;
  const absl::Status fetched = model_->FetchLogits(candidates_, LogitRows());
  if (fetched.ok()) return SampleRows(/*undecided=*/true);
  for (size_t i = 0; i < candidates_.size(); ++i)
    if (candidates_[i].undecided) sampled_[i] = fetched;
}

// All rows, or those alone that candidates did not decide.
void GenerateLoop::SampleRows(bool undecided) {
  const size_t count = sampling_.size();
  std::atomic<size_t> next{0};
  const auto sample = [&](int worker) {
    for (size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1))
      if (candidates_[i].undecided == undecided) SampleRow(i, sampler_scratch_[worker]);
  };
  count > 1 ? host_.pool.Share(sample) : sample(0);
}

void GenerateLoop::SampleRow(size_t row, SamplerScratch& scratch) {
  const Sequence& s = *sampling_[row];
  RowCandidates& candidates = candidates_[row];
  const auto position = static_cast<int64_t>(s.tokens.size());
  if (candidates.count > 0 && !candidates.undecided) {
    std::optional<SampledToken> sampled = SampleCandidates({.ranked = candidates.ranked(),
                                                            .vocab = model_->spec().vocab,
                                                            .sums = candidates.sums,
                                                            .params = s.sampling,
                                                            .counts = s.counts,
                                                            .position = position},
                                                           scratch);
    candidates.undecided = !sampled.has_value();
    if (sampled) sampled_[row] = *std::move(sampled);
    return;
  }
  const auto vocab = static_cast<size_t>(model_->spec().vocab);
  sampled_[row] = SampleToken({.logits = {logits_.data<float>() + row * vocab, vocab},
                               .params = s.sampling,
                               .counts = s.counts,
                               .position = position},
                              scratch);
}

void GenerateLoop::Deliver(Sequence& s, absl::StatusOr<SampledToken>& sampled, absl::Time now) {
  if (!sampled.ok()) return End(scheduler_.Remove(s.id), FinishReason::kError, sampled.status());
  TokenEvent event{
      .token = sampled->token, .logprob = sampled->logprob, .top = std::move(sampled->top)};
  s.tokens.push_back(event.token);
  if (s.watched) s.logprobs.push_back(event.logprob);
  if (s.hides_logprob) event.logprob = 0;  // nobody but the watch asked
  if (UsesPenalties(s.sampling)) s.counts.Add(event.token);
  if (s.num_generated() == 1) {
    s.usage.time_to_first_token = now - s.arrival;
    host_.metrics->FirstToken(s.usage.time_to_first_token, s.trace);
  } else {
    host_.metrics->InterToken(now - s.last_token);
  }
  s.last_token = now;

  const bool stop = EndsGeneration(s, event.token);
  const bool full = s.num_generated() == s.sampling.max_tokens;
  if (!stop) event.text = s.text->Push(event.token);
  if (stop || full) event.text += s.text->Flush();
  s.sink(std::move(event));
  if (stop || s.text->stopped()) {
    End(scheduler_.Remove(s.id), FinishReason::kStop, absl::OkStatus());
  } else if (full) {
    End(scheduler_.Remove(s.id), FinishReason::kLength, absl::OkStatus());
  }
}

void GenerateLoop::End(std::unique_ptr<Sequence> s, FinishReason reason, absl::Status status) {
  const WorkStage stage = s->started ? WorkStage::kCompute : WorkStage::kQueue;
  s->usage.generated_tokens = s->num_generated();
  s->usage.total = host_.clock.Now() - s->arrival;
  if (!s->started) s->usage.queued = s->usage.total;
  if (absl::IsCancelled(status)) host_.metrics->Cancelled(stage);
  if (absl::IsDeadlineExceeded(status)) host_.metrics->DeadlineExceeded(stage);
  host_.metrics->TokensDone(s->usage.prompt_tokens, s->usage.generated_tokens, reason,
                            s->usage.total);
  if (s->watched && (reason == FinishReason::kStop || reason == FinishReason::kLength))
    host_.watch->Served({.tokens = std::move(s->tokens),
                         .num_prompt = s->num_prompt,
                         .logprobs = std::move(s->logprobs),
                         .token_types = {}});
  s->sink({.kind = TokenEvent::Kind::kEnd,
           .reason = reason,
           .status = std::move(status),
           .usage = s->usage});
  ++num_ended_;
}

void GenerateLoop::FailStep(const StepPlan& plan, const absl::Status& why) {
  const absl::Status status =
      absl::InternalError(absl::StrCat("the model's forward pass failed: ", why.ToString()));
  for (const StepPlan::Rows& rows : plan.rows)
    End(scheduler_.Remove(rows.sequence->id), FinishReason::kError, status);
}

void GenerateLoop::CountPrompt(Sequence& s) {
  if (s.num_computed <= s.num_first_seen) return;
  step_prompt_tokens_ +=
      std::min(s.num_computed, s.num_prompt) - std::min(s.num_first_seen, s.num_prompt);
  s.num_first_seen = s.num_computed;
}

bool GenerateLoop::EndsGeneration(const Sequence& s, int32_t token) const {
  const auto is_token = [token](int32_t other) { return other == token; };
  return std::ranges::any_of(s.sampling.stop_token_ids, is_token) ||
         (!s.sampling.ignore_eos && std::ranges::any_of(tokenizer_->end_tokens(), is_token));
}

void GenerateLoop::Publish() {
  const EngineLoad load{.waiting = scheduler_.num_waiting(),
                        .running = scheduler_.num_running(),
                        .kv_blocks_used = kv_.used_blocks(),
                        .kv_blocks_cached = kv_.cached_blocks(),
                        .kv_blocks_total = kv_.num_blocks()};
  host_.metrics->SetLoad(load.waiting, load.running);
  host_.metrics->SetKvBlocks(load.kv_blocks_used, load.kv_blocks_cached, load.kv_blocks_total);
  inbox_.Publish(load, {.now = host_.clock.Now(),
                        .started = std::exchange(num_started_, 0),
                        .ended = std::exchange(num_ended_, 0)});
}

}  // namespace

absl::StatusOr<std::unique_ptr<GenerateEngine>> GenerateEngine::Start(
    std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
    const EngineOptions& options, EngineHost host) {
  ASSIGN_OR_RETURN(const GenerateSizes sizes, WorkOutSizes(*model, options));
  Device& device = model->device();
  ASSIGN_OR_RETURN(KvPool kv_pool, KvPool::Create(device, model->kv_layout(options.kv_format),
                                                  sizes.num_blocks, sizes.num_slots));
  ASSIGN_OR_RETURN(Arena scratch, Arena::Create(device, model->scratch_bytes(sizes.max_step_tokens,
                                                                             sizes.max_sequences,
                                                                             sizes.max_context)));
  ASSIGN_OR_RETURN(
      Tensor logits,
      Tensor::Create(CpuDevice(), Shape{sizes.max_sequences, model->spec().vocab}, DType::kF32));
  auto engine =
      std::make_unique<GenerateLoop>(GenerateLoop::Parts{.model = std::move(model),
                                                         .tokenizer = std::move(tokenizer),
                                                         .sizes = sizes,
                                                         .kv_pool = std::move(kv_pool),
                                                         .scratch = std::move(scratch),
                                                         .logits = std::move(logits)},
                                     options, std::move(host));
  RETURN_IF_ERROR(engine->StartThread());
  return engine;
}

}  // namespace assay
