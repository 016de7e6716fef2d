#include "engine/lifecycle/drift_monitor.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <deque>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/cpu_info.h"
#include "base/thread_pool.h"

namespace assay {
namespace {

// Below these, differences are rounding: a limit is never less.
constexpr double kLeastKl = 1e-3, kLeastCosineLoss = 1e-4, kLeastFlip = 0.01;

// The scheduler runs this thread only where nothing else wants the core.
void BecomeIdle() {
  const sched_param none{};
  if (sched_setscheduler(0, SCHED_IDLE, &none) != 0)
    (void)setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), 19);
}

// `thread`, once idle, competes with all others again.
void BecomeOrdinary(pthread_t thread) {
  const sched_param none{};
  (void)pthread_setschedparam(thread, SCHED_OTHER, &none);
}

double ThreadCpuSeconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

uint64_t RandomKey() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

const char* StatisticOf(ModelTask task) {
  switch (task) {
    case ModelTask::kGenerate:
      return "mean_kl";
    case ModelTask::kEmbed:
      return "cosine_loss";
    case ModelTask::kClassify:
      return "label_flip";
  }
  return "mean_kl";
}

// What admission measured, as loss: the upper end of the farther interval; and what it allowed.
struct Bounds {
  double certificate = 0, budget = 0, least = 0;
};
Bounds BoundsOf(const AdmissionReport& report, ModelTask task) {
  const VerificationResult& v = report.verification;
  const Budget& budget = report.decision.budget;
  switch (task) {
    case ModelTask::kGenerate:
      return {Wider(v.mean_kl, v.mean_kl_bootstrap).high, budget.max_mean_kl, kLeastKl};
    case ModelTask::kEmbed:
      return {1 - Wider(v.cosine, v.cosine_bootstrap).low, 1 - budget.min_mean_cosine,
              kLeastCosineLoss};
    case ModelTask::kClassify:
      return {1 - v.label_agreement, 1 - budget.min_label_agreement, kLeastFlip};
  }
  return {};
}

// What an answer makes of a prompt is the model's doing. Encoders: all of it.
std::span<const int32_t> PromptOf(const ServedRequest& request) {
  const std::span<const int32_t> tokens = request.tokens;
  return request.num_prompt > 0 ? tokens.first(static_cast<size_t>(request.num_prompt)) : tokens;
}

InputGauges GaugesOf(const InputDriftStatus& input) {
  return {.shifted = input.shifted,
          .saturation = input.saturation.value_or(0),
          .range = input.range.value_or(0),
          .outlier_overlap = input.outlier_overlap.value_or(1),
          .length_psi = input.length_psi.value_or(0),
          .token_psi = input.token_psi.value_or(0)};
}

double LimitOf(const Bounds& bounds, double tolerance) {
  return std::max(std::min(bounds.budget, std::max(tolerance * bounds.certificate, bounds.least)),
                  1e-9);
}

}  // namespace

// Outlives the monitor where an engine does.
struct DriftMonitor::Shared {
  Mutex mu;
  CondVar changed;
  bool stop ABSL_GUARDED_BY(mu) = false;
  bool busy ABSL_GUARDED_BY(mu) = false;
  bool hurried ABSL_GUARDED_BY(mu) = false;  // its thread is not idle for the moment
  int64_t arrivals ABSL_GUARDED_BY(mu) = 0;  // not yet taken

  void Arrived() ABSL_LOCKS_EXCLUDED(mu) {
    MutexLock lock(mu);
    ++arrivals;
    changed.NotifyAll();
  }
  bool stopped() ABSL_LOCKS_EXCLUDED(mu) {
    MutexLock lock(mu);
    return stop;
  }
};

// One version. `test`, `status`, `metrics` and `gone` are guarded by the monitor's lock; the rest
// belongs to its thread or is set once.
struct DriftMonitor::Subject {
  DriftStatus status;
  KvFormat kv_format;
  std::shared_ptr<const Checkpoint> checkpoint;
  double clip = 1, flip_limit = 1;
  bool gone = false;
  double flips = 0, logprob_differences = 0;  // sums over requests
  std::unique_ptr<DriftTest> test;
  std::shared_ptr<DriftMetrics> metrics;
  std::shared_ptr<TrafficSampler> sampler;
  std::unique_ptr<ShadowEvaluator> evaluator;  // made with the first request
  AdmissionReport report;                      // what `input` starts from
  std::unique_ptr<InputDrift> input;           // likewise
  std::deque<std::vector<int32_t>> prompts;    // under the monitor's lock

  ~Subject() {
    for (std::vector<int32_t>& prompt : prompts) WipeTokens(prompt);
  }
  uint64_t seed = 0;
  // Sampled requests that never came to the ring: counted by the engine's thread.
  const std::shared_ptr<std::atomic<int64_t>> dropped = std::make_shared<std::atomic<int64_t>>(0);
};

namespace {

// What took a version out of OK, for its event.
std::string CauseText(const DriftStatus& status, const DriftTest& test, double clip) {
  if (status.cause == "mean") return "; seen as a mean above the limit";
  if (status.cause != "change") return "";
  return absl::StrFormat("; seen as a change: %.5f over the last %d", test.change().mean() * clip,
                         test.change().count());
}

}  // namespace

DriftMonitor::DriftMonitor(const DriftOptions& options, const ModelRegistry& registry,
                           Metrics& metrics, EventLog& events, const Clock& clock)
    : options_(options),
      registry_(registry),
      metrics_(metrics),
      events_(events),
      clock_(clock),
      shared_(std::make_shared<Shared>()),
      worker_([this] { Work(); }) {}

DriftMonitor::~DriftMonitor() {
  {
    MutexLock lock(shared_->mu);
    shared_->stop = true;
    shared_->changed.NotifyAll();
  }
  Hurry();
  worker_.join();
  MutexLock lock(mu_);
  for (auto& [key, subject] : subjects_) subject->sampler->Close();
}

std::shared_ptr<TrafficWatch> DriftMonitor::Watch(const AdmissionReport& report, ModelTask task,
                                                  std::shared_ptr<const Checkpoint> checkpoint) {
  if (options_.sampler.rate <= 0) return nullptr;
  auto subject = std::make_shared<Subject>();
  DriftStatus& status = subject->status;
  status.model = report.model;
  status.version = report.version;
  status.statistic = StatisticOf(task);
  status.last = status.violated_at = absl::UnixEpoch();
  const Bounds bounds = BoundsOf(report, task);
  status.certificate = bounds.certificate;
  status.budget = bounds.budget;
  status.limit = LimitOf(bounds, options_.tolerance);
  const Recipe& recipe = report.decision.recipe;
  subject->kv_format = {recipe.kv_dtype, recipe.kv_window, recipe.kv_sinks};
  subject->checkpoint = std::move(checkpoint);
  subject->report.layers = report.layers;
  subject->clip = kClip * status.limit;
  subject->flip_limit = 1 - report.decision.budget.min_top1;
  subject->test = std::make_unique<DriftTest>(DriftTest::Options{
      .limit = 1 / kClip, .alpha = options_.alpha, .change_numbers = options_.change_requests});
  subject->metrics = metrics_.ForDrift(report.model, report.version, status.statistic);
  // The engine keeps its watch; the series must not live as long.
  const auto skipped = [weak = std::weak_ptr(subject->metrics),
                        count = subject->dropped](TrafficSampler::Skip why) {
    count->fetch_add(1, std::memory_order_relaxed);
    if (const auto series = weak.lock())
      series->Skipped(why == TrafficSampler::Skip::kTooLong ? DriftSkip::kTooLong
                                                            : DriftSkip::kRingFull);
  };
  subject->sampler = std::make_shared<TrafficSampler>(
      options_.sampler, RandomKey(), clock_, [shared = shared_] { shared->Arrived(); }, skipped);
  std::shared_ptr<TrafficWatch> watch = subject->sampler;
  MutexLock lock(mu_);
  Publish(*subject);
  subjects_[{report.model, report.version}] = std::move(subject);
  return watch;
}

void DriftMonitor::Forget(std::string_view model, int64_t version) {
  std::shared_ptr<Subject> subject;
  {
    MutexLock lock(mu_);
    const auto found = subjects_.find({std::string(model), version});
    if (found == subjects_.end()) return;
    subject = found->second;
    subject->gone = true;
    subjects_.erase(found);
  }
  subject->sampler->Close();
  Hurry();
}

// At idle priority on a busy host a pass that is to be given up would go on for many seconds, and
// hold the version that it looks at.
void DriftMonitor::Hurry() {
  MutexLock lock(shared_->mu);
  if (!shared_->busy || shared_->hurried) return;
  shared_->hurried = true;
  BecomeOrdinary(worker_.native_handle());
}

std::vector<DriftStatus> DriftMonitor::List() const {
  std::vector<DriftStatus> all;
  MutexLock lock(mu_);
  for (const auto& [key, subject] : subjects_) {
    all.push_back(subject->status);
    all.back().waiting = subject->sampler->waiting();
    all.back().skipped += subject->dropped->load(std::memory_order_relaxed);
  }
  return all;
}

void DriftMonitor::WaitUntilIdle() {
  MutexLock lock(shared_->mu);
  while (shared_->arrivals > 0 || shared_->busy) shared_->changed.Wait(shared_->mu);
}

void DriftMonitor::Work() {
  BecomeIdle();
  while (true) {
    {
      MutexLock lock(shared_->mu);
      shared_->busy = false;
      if (std::exchange(shared_->hurried, false)) BecomeIdle();
      shared_->changed.NotifyAll();
      while (shared_->arrivals == 0 && !shared_->stop) shared_->changed.Wait(shared_->mu);
      if (shared_->stop) return;
      --shared_->arrivals;
      shared_->busy = true;
    }
    ServedRequest request;
    std::shared_ptr<Subject> subject = Next(request);
    if (subject == nullptr) continue;  // it went with its version
    const absl::Duration rest = Look(subject, request);
    Wipe(request);
    subject
        .reset();  // a version that ends while this thread rests is not kept, its prompts neither
    const auto until = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(rest);
    MutexLock lock(shared_->mu);
    while (!shared_->stop && shared_->changed.WaitUntil(shared_->mu, until)) {
    }
  }
}

std::shared_ptr<DriftMonitor::Subject> DriftMonitor::Next(ServedRequest& request) {
  MutexLock lock(mu_);
  // The version that was looked at the longest ago, of those with a request.
  std::shared_ptr<Subject> next;
  for (const auto& [key, subject] : subjects_) {
    if (subject->sampler->waiting() == 0) continue;
    if (next == nullptr || subject->status.last < next->status.last) next = subject;
  }
  if (next == nullptr) return nullptr;
  std::optional<ServedRequest> taken = next->sampler->Take();
  if (!taken.has_value()) return nullptr;
  request = *std::move(taken);
  return next;
}

absl::Duration DriftMonitor::Look(const std::shared_ptr<Subject>& subject,
                                  const ServedRequest& request) {
  const double began = ThreadCpuSeconds();
  const absl::StatusOr<ShadowScore> score = Score(*subject, request);
  const double cpu = ThreadCpuSeconds() - began;
  if (score.ok()) {
    Record(*subject, request, *score, cpu);
  } else {
    Failed(*subject, score.status());
  }
  const double tokens = score.ok() ? score->tokens : 0;
  const double share = std::max(options_.cpu_share, 1e-6) * std::max(1, HostCpu().cores);
  return absl::Seconds(std::max(cpu / share - cpu, tokens / options_.tokens_per_second - cpu));
}

absl::StatusOr<ShadowScore> DriftMonitor::Score(Subject& subject, const ServedRequest& request) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Servable> servable,
                   registry_.Acquire(subject.status.model, subject.status.version));
  if (subject.evaluator == nullptr) {
    ASSIGN_OR_RETURN(subject.evaluator, ShadowEvaluator::Create(subject.checkpoint));
    subject.input = std::make_unique<InputDrift>(subject.report, *servable->model);
  }
  ThreadPool alone({.num_threads = 1});  // the calling thread
  const auto pause = [&] {
    const bool over = shared_->stopped();
    MutexLock lock(mu_);
    return over || subject.gone ? absl::UnavailableError("the version no longer serves")
                                : absl::OkStatus();
  };
  ASSIGN_OR_RETURN(const ShadowScore score,
                   subject.evaluator->Score(*servable->model, subject.kv_format, request,
                                            {.max_positions = options_.max_positions,
                                             .clip = subject.clip,
                                             .seed = subject.seed++,
                                             .inputs = &subject.input->profile()},
                                            alone, pause));
  subject.input->Add(PromptOf(request));
  return score;
}

void DriftMonitor::RecordInput(Subject& subject, const ServedRequest& request,
                               std::vector<Event>& news) {
  const bool shifted = subject.input->status().shifted;
  if (shifted != subject.status.input.shifted) {
    const std::string back = "the input is again what the version was admitted for";
    news.push_back({.level = shifted ? LogLevel::kWarning : LogLevel::kInfo,
                    .model = subject.status.model,
                    .version = subject.status.version,
                    .kind = "input",
                    .reason = shifted ? subject.input->status().cause : back});
  }
  subject.status.input = subject.input->status();
  subject.metrics->SetInput(GaugesOf(subject.status.input));
  const auto most = static_cast<size_t>(options_.calibration_requests);
  if (most == 0) return;
  if (subject.prompts.size() == most) {
    WipeTokens(subject.prompts.front());
    subject.prompts.pop_front();
  }
  const std::span<const int32_t> prompt = PromptOf(request);
  subject.prompts.emplace_back(prompt.begin(), prompt.end());
}

std::string DriftMonitor::Prompts(std::string_view model, int64_t version) const {
  std::string lines;
  MutexLock lock(mu_);
  const auto found = subjects_.find({std::string(model), version});
  if (found == subjects_.end()) return lines;
  size_t tokens = 0;
  for (const std::vector<int32_t>& prompt : found->second->prompts) tokens += prompt.size();
  lines.reserve(tokens * 12 + found->second->prompts.size() * 4);  // no copy is left behind
  for (const std::vector<int32_t>& prompt : found->second->prompts)
    absl::StrAppend(&lines, "[", absl::StrJoin(prompt, ","), "]\n");
  return lines;
}

void DriftMonitor::Record(Subject& subject, const ServedRequest& request, const ShadowScore& score,
                          double cpu_seconds) {
  const bool on_gpu = subject.report.decision.device.rfind("cuda", 0) == 0;
  const double tolerance = on_gpu ? kReplayToleranceOnGpu : kReplayTolerance;
  const bool replayed = score.replay_difference <= tolerance;
  std::vector<Event> news;
  std::optional<DriftStatus> violated;
  DriftStatus compared;
  {
    MutexLock lock(mu_);
    DriftStatus& status = subject.status;
    const bool replayed_before = status.replay_difference <= tolerance;
    const DriftState before = subject.test->state();
    const DriftState after = subject.test->Add(replayed ? score.clipped : 1);
    const bool match = replayed && score.loss <= kMismatch * status.limit;
    ++status.samples;
    status.mismatches += match ? 0 : 1;
    status.tokens += score.tokens;
    status.cpu_seconds += cpu_seconds;
    status.replay_difference = std::max(status.replay_difference, score.replay_difference);
    status.last = clock_.Now();
    status.error.clear();
    subject.flips += score.top1_flip;
    subject.logprob_differences += score.logprob_difference;
    subject.metrics->ShadowDone(match, score.tokens, cpu_seconds);
    RecordInput(subject, request, news);
    if (after == DriftState::kViolated && before != after) status.violated_at = status.last;
    Publish(subject);
    const auto tell = [&](LogLevel level, std::string reason) {
      news.push_back({.level = level,
                      .model = status.model,
                      .version = status.version,
                      .kind = "drift",
                      .reason = std::move(reason)});
    };
    if (replayed_before && !replayed) {
      tell(LogLevel::kWarning,
           absl::StrFormat("an answer is not what the model computes now: log probabilities differ "
                           "by up to %.3g, at most %.3g expected",
                           score.replay_difference, tolerance));
    }
    if (after != before) {
      tell(after == DriftState::kOk ? LogLevel::kInfo : LogLevel::kWarning,
           absl::StrFormat("%s -> %s after %d requests: %s %.5f [%.5f, %.5f], limit %.5f%s",
                           std::string(Name(before)), std::string(Name(after)), status.samples,
                           status.statistic, status.score, status.low, status.high, status.limit,
                           CauseText(status, *subject.test, subject.clip)));
      if (after == DriftState::kViolated) violated = status;
    }
    compared = status;
  }
  for (Event& event : news) events_.Add(std::move(event));
  if (violated.has_value() && on_violated_) on_violated_(*violated);
  if (on_compared_) on_compared_(compared);
}

// A reference that is not what was admitted is no reference: nothing more is compared with it.
void DriftMonitor::Failed(Subject& subject, const absl::Status& status) {
  const bool lost = absl::IsDataLoss(status);
  std::optional<Event> news;
  {
    MutexLock lock(mu_);
    const bool unserved = absl::IsUnavailable(status);
    ++subject.status.skipped;
    subject.metrics->Skipped(unserved ? DriftSkip::kNotServing : DriftSkip::kFailed);
    if (unserved) return;
    subject.status.error = std::string(status.message());
    if (lost) {
      news = {.level = LogLevel::kError,
              .model = subject.status.model,
              .version = subject.status.version,
              .kind = "drift",
              .reason = absl::StrCat("nothing can be compared any more: ", subject.status.error,
                                     "; what serves is not touched, admit the model again")};
    }
  }
  if (!lost) return;
  subject.sampler->Close();
  events_.Add(*std::move(news));
}

void DriftMonitor::Publish(Subject& subject) {
  DriftStatus& status = subject.status;
  const DriftTest& test = *subject.test;
  const auto count = static_cast<double>(std::max<int64_t>(1, status.samples));
  status.state = test.state();
  status.cause = std::string(test.cause());
  status.since = test.count();
  status.score = test.mean() * subject.clip;
  status.standard_error = test.standard_error() * subject.clip;
  status.low = test.band().low() * subject.clip;
  status.high = test.band().high() * subject.clip;
  status.top1_flip = subject.flips / count;
  status.logprob_difference = subject.logprob_differences / count;
  status.e_value = test.e_value();
  status.change_evidence = test.change_evidence();
  subject.metrics->Set({.state = static_cast<int>(status.state),
                        .score = status.score,
                        .low = status.low,
                        .high = status.high,
                        .threshold = status.limit,
                        .flip = status.top1_flip,
                        .flip_threshold = subject.flip_limit,
                        .e_value = status.e_value,
                        .change_evidence = status.change_evidence,
                        .last = status.samples > 0 ? status.last : absl::Time()});
}

}  // namespace assay
