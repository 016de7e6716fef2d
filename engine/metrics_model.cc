// The series of one model version.
#include <atomic>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/metrics_series.h"

namespace assay {
namespace {

// Upper bounds, seconds unless said otherwise (docs/operations.md, "Metrics").
const Buckets& Latency() {
  static const auto& b = *new Buckets{.0001, .00025, .0005, .001, .0025, .005, .01, .025,
                                      .05,   .1,     .25,   .5,   1,     2.5,  5,   10};
  return b;
}
const Buckets& QueueTime() {
  static const auto& b =
      *new Buckets{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5};
  return b;
}
const Buckets& ComputeTime() {
  static const auto& b =
      *new Buckets{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5};
  return b;
}
const Buckets& FirstTokenTime() {
  static const auto& b = *new Buckets{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1,
                                      .2,     .35,   .5,   .75,   1,    2,   5,    10,  30};
  return b;
}
const Buckets& TokenGap() {
  static const auto& b = *new Buckets{.0001, .00025, .0005, .001, .0025, .005, .01, .015, .02,
                                      .03,   .04,    .05,   .075, .1,    .2,   .5,  1};
  return b;
}
const Buckets& GenerationTime() {
  static const auto& b = *new Buckets{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600};
  return b;
}
const Buckets& AdmissionTime() {
  static const auto& b = *new Buckets{.1, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800};
  return b;
}
const Buckets& StageTime() {  // of 16 stages: few edges
  static const auto& b = *new Buckets{.1, 1, 10, 100, 1000};
  return b;
}
const Buckets& TokenCount() {
  static const auto& b = *new Buckets{1, 4, 16, 64, 256, 1024, 4096, 16384, 65536};
  return b;
}
const Buckets& BatchSize() {
  static const auto& b = *new Buckets{1, 2, 4, 8, 16, 32, 64, 128};
  return b;
}

constexpr const char* kOutcomes[] = {"success", "error", "rejected", "timeout", "cancelled"};
constexpr const char* kRejectReasons[] = {"queue_full", "too_large", "invalid", "draining",
                                          "not_ready"};
constexpr const char* kWorkStages[] = {"queue", "compute", "send"};
constexpr const char* kFinishReasons[] = {"stop", "length", "cancelled", "error", "deadline"};
constexpr const char* kSampledFrom[] = {"candidates", "row"};
constexpr const char* kMemoryKinds[] = {"weights", "kv", "workspace", "reference"};
constexpr const char* kStates[] = {"queued",   "admitting", "warming",  "serving",
                                   "draining", "retired",   "rejected", "failed"};
constexpr const char* kAdmissionStages[] = {
    "open",      "profile",        "look_up",   "load",     "disable_level", "search",
    "transform", "calibrate_keys", "reference", "quantize", "verify",        "fall_back",
    "tasks",     "store",          "warm",      "publish"};
constexpr const char* kAdmissionOutcomes[] = {"admitted", "rejected_accuracy", "rejected_size",
                                              "failed"};

// What only text generation has; made when a model shows that it generates.
struct GenerationSeries {
  GenerationSeries(SeriesFactory& factory, const Labels& m)
      : group(factory),
        first_token(factory, group, "assay_llm_time_to_first_token_seconds",
                    "Time from arrival to the first token", m, FirstTokenTime()) {
    inter_token = group.NewHistogram("assay_llm_inter_token_latency_seconds",
                                     "Time between two tokens of one request", m, TokenGap());
    duration = group.NewHistogram("assay_llm_request_duration_seconds",
                                  "Time from arrival to the last token", m, GenerationTime());
    generated_tokens = group.NewCounter("assay_llm_generated_tokens_total", "Tokens generated", m);
    cache_hits = group.NewCounter("assay_llm_prefix_cache_hit_tokens_total",
                                  "Prompt tokens taken from the prefix cache", m);
    prompt_length = group.NewHistogram("assay_llm_request_prompt_tokens",
                                       "Prompt tokens of one request", m, TokenCount());
    generated_length = group.NewHistogram("assay_llm_request_generated_tokens",
                                          "Generated tokens of one request", m, TokenCount());
    group.NewCounters(finished, "assay_llm_requests_total", "Finished generations by reason", m,
                      Label("finish_reason", kFinishReasons));
    group.NewCounters(sampled, "assay_llm_sampled_rows_total",
                      "Tokens by what they were chosen from: a device's candidates, or whole rows",
                      m, Label("from", kSampledFrom));
    running = group.NewGauge("assay_llm_sequences_running", "Sequences being generated", m);
    waiting = group.NewGauge("assay_llm_sequences_waiting", "Sequences waiting for a slot", m);
    preemptions = group.NewCounter("assay_llm_preemptions_total",
                                   "Sequences evicted to be computed again", m);
    const char* blocks = "assay_llm_kv_cache_blocks";
    const char* help = "KV cache blocks by state";
    kv_used = group.NewGauge(blocks, help, With(m, "state", "used"));
    kv_cached = group.NewGauge(blocks, help, With(m, "state", "cached"));
    kv_free = group.NewGauge(blocks, help, With(m, "state", "free"));
    kv_usage = group.NewGauge("assay_llm_kv_cache_usage_ratio",
                              "Share of the KV cache in use by live sequences, 0..1", m);
    kv_block_tokens =
        group.NewGauge("assay_llm_kv_block_tokens", "Positions in one KV cache block", m);
    kv_block_tokens->Set(kKvBlockTokens);
  }

  static constexpr int kKvBlockTokens = 16;  // KvPool::kBlockTokens, checked by a test

  SeriesGroup group;
  std::unique_ptr<SeriesGroup> kv_info;
  std::atomic<int> kv_total{-1};  // what kv_info says
  TracedHistogram first_token;
  Histogram *inter_token, *duration, *prompt_length, *generated_length;
  Counter *generated_tokens, *cache_hits, *preemptions;
  Counter *finished[5], *sampled[2];
  Gauge *running, *waiting, *kv_used, *kv_cached, *kv_free, *kv_usage, *kv_block_tokens;
};

class PrometheusModelMetrics final : public ModelMetrics {
 public:
  PrometheusModelMetrics(SeriesFactory& factory, std::string_view model, int64_t version)
      : factory_(factory),
        m_{{"model", std::string(model)}, {"version", absl::StrCat(version)}},
        group_(factory),
        request_time_(factory, group_, "assay_inference_request_duration_seconds",
                      "End-to-end time of one inference request in the server", m_, Latency()) {
    MakeRequestSeries();
    MakeLifecycleSeries();
  }
  ~PrometheusModelMetrics() override { delete generation_.load(); }

  void RequestDone(Outcome outcome, absl::Duration latency, TraceId trace) override {
    requests_[static_cast<int>(outcome)]->Increment();
    if (outcome != Outcome::kRejected) request_time_.Observe(latency, trace);
  }
  void Rejected(RejectReason reason) override { rejected_[static_cast<int>(reason)]->Increment(); }
  void DeadlineExceeded(WorkStage stage) override {
    expired_[static_cast<int>(stage)]->Increment();
  }
  void Cancelled(WorkStage stage) override { cancelled_[static_cast<int>(stage)]->Increment(); }
  void Queued(absl::Duration wait) override { queue_time_->Observe(absl::ToDoubleSeconds(wait)); }
  void StepDone(int requests, absl::Duration compute) override {
    batch_size_->Observe(requests);
    compute_time_->Observe(absl::ToDoubleSeconds(compute));
  }
  void SetLoad(int waiting, int running) override {
    pending_->Set(waiting);
    running_->Set(running);
    if (GenerationSeries* g = generation_.load(std::memory_order_acquire)) {
      g->waiting->Set(waiting);
      g->running->Set(running);
    }
  }

  void FirstToken(absl::Duration since_arrival, TraceId trace) override {
    Generation().first_token.Observe(since_arrival, trace);
  }
  void InterToken(absl::Duration gap) override {
    Generation().inter_token->Observe(absl::ToDoubleSeconds(gap));
  }
  void TokensDone(int prompt_tokens, int generated_tokens, FinishReason reason,
                  absl::Duration latency) override {
    GenerationSeries& g = Generation();
    g.prompt_length->Observe(prompt_tokens);
    g.generated_length->Observe(generated_tokens);
    g.finished[static_cast<int>(reason)]->Increment();
    g.duration->Observe(absl::ToDoubleSeconds(latency));
  }
  void TokensProcessed(int prompt_tokens, int generated_tokens, int prefix_cache_hits) override {
    prompt_tokens_->Increment(prompt_tokens);
    if (generated_tokens == 0 && prefix_cache_hits == 0) return;  // encoders never come further
    GenerationSeries& g = Generation();
    g.generated_tokens->Increment(generated_tokens);
    g.cache_hits->Increment(prefix_cache_hits);
  }
  void RowsSampled(int from_candidates, int from_rows) override {
    GenerationSeries& g = Generation();
    g.sampled[0]->Increment(from_candidates);
    g.sampled[1]->Increment(from_rows);
  }
  void Preempted() override { Generation().preemptions->Increment(); }
  void SetKvBlocks(int used, int cached, int total) override {
    GenerationSeries& g = Generation();
    g.kv_used->Set(used);
    g.kv_cached->Set(cached);
    g.kv_free->Set(total - used - cached);
    g.kv_usage->Set(total > 0 ? static_cast<double>(used) / total : 0);
    if (g.kv_total.exchange(total) != total) {
      Labels labels = With(m_, "block_size", std::to_string(GenerationSeries::kKvBlockTokens));
      labels["num_gpu_blocks"] = std::to_string(total);
      Replace(g.kv_info, {{"assay_llm_cache_config_info",
                           "Size of the KV cache as labels, which are named as routers want them",
                           std::move(labels), 1}});
    }
  }

  void SetInfo(std::string_view format, std::string_view precision,
               std::string_view device) override {
    Labels labels = With(With(m_, "format", format), "precision", precision);
    labels["device"] = std::string(device);
    Replace(info_, {{"assay_model_info", "Identity of a model version", labels, 1}});
  }
  void SetState(std::string_view state) override {
    const std::string lower = absl::AsciiStrToLower(std::string(state));
    for (size_t i = 0; i < std::size(kStates); ++i) states_[i]->Set(lower == kStates[i] ? 1 : 0);
    ready_->Set(lower == "serving" ? 1 : 0);
    if (lower == "serving") last_swap_->SetToCurrentTime();
  }
  void SetMemory(MemoryKind kind, double bytes) override {
    memory_[static_cast<int>(kind)]->Set(bytes);
  }
  void SetQuantization(const std::vector<std::pair<std::string, int>>& layers_by_precision,
                       double compression_ratio) override {
    std::vector<NewSeries> series;
    series.reserve(layers_by_precision.size() + 1);
    for (const auto& [precision, layers] : layers_by_precision) {
      series.push_back({"assay_quantization_layers", "Linear layers by chosen precision",
                        With(m_, "precision", precision), static_cast<double>(layers)});
    }
    series.push_back({"assay_quantization_compression_ratio",
                      "Bytes of the weights at f32 over bytes as served", m_, compression_ratio});
    Replace(quantization_, series);
  }
  void AdmissionStageDone(std::string_view stage, absl::Duration elapsed) override {
    const double seconds = absl::ToDoubleSeconds(elapsed);
    for (size_t i = 0; i < std::size(kAdmissionStages); ++i) {
      if (stage != kAdmissionStages[i]) continue;
      stage_times_[i]->Set(seconds);
      AdmissionStageTime(factory_, stage).Observe(seconds);
    }
  }
  void AdmissionDone(std::string_view outcome) override {
    for (size_t i = 0; i < std::size(kAdmissionOutcomes); ++i) {
      if (outcome == kAdmissionOutcomes[i]) admissions_[i]->Increment();
    }
  }
  void SetAccuracyLoss(std::string_view metric, double value) override {
    MutexLock lock(mu_);
    group_
        .NewGauge("assay_admission_accuracy_loss_ratio",
                  "Loss against the f32 reference, measured at admission",
                  With(m_, "metric", metric))
        ->Set(value);
  }
  void Loaded(std::string_view source, absl::Duration elapsed) override {
    for (const char* known : kLoadSources) {
      if (source == known) LoadTime(factory_, source).Observe(absl::ToDoubleSeconds(elapsed));
    }
  }
  void SetTrafficShare(double share) override { traffic_share_->Set(share); }

 private:
  struct NewSeries {
    const char* name;
    const char* help;
    Labels labels;
    double value;
  };

  void MakeRequestSeries() {
    group_.NewCounters(requests_, "assay_inference_requests_total",
                       "Inference requests completed, by outcome", m_, Label("outcome", kOutcomes));
    queue_time_ =
        group_.NewHistogram("assay_inference_queue_duration_seconds",
                            "Time an inference request waited for a batch slot", m_, QueueTime());
    compute_time_ = group_.NewHistogram("assay_inference_compute_duration_seconds",
                                        "Time of one batch execution", m_, ComputeTime());
    batch_size_ = group_.NewHistogram("assay_inference_batch_size",
                                      "Requests merged in one executed batch", m_, BatchSize());
    pending_ = group_.NewGauge("assay_inference_pending_requests", "Requests waiting", m_);
    prompt_tokens_ =
        group_.NewCounter("assay_llm_prompt_tokens_total", "Prompt tokens computed", m_);
    running_ = group_.NewGauge("assay_inference_running_requests", "Requests executing", m_);
    group_.NewCounters(rejected_, "assay_inference_rejected_total",
                       "Requests refused before execution", m_, Label("reason", kRejectReasons));
    group_.NewCounters(expired_, "assay_inference_deadline_exceeded_total",
                       "Requests dropped because their deadline passed", m_,
                       Label("stage", kWorkStages));
    group_.NewCounters(cancelled_, "assay_inference_cancelled_total",
                       "Requests that the client cancelled", m_, Label("stage", kWorkStages));
  }
  void MakeLifecycleSeries() {
    group_.NewGauges(states_, "assay_model_state", "1 for the state of a model version, else 0", m_,
                     Label("state", kStates));
    ready_ = group_.NewGauge("assay_model_ready", "1 when the version serves", m_);
    last_swap_ = group_.NewGauge("assay_model_last_swap_timestamp_seconds",
                                 "When the version began to serve, Unix time", m_);
    traffic_share_ =
        group_.NewGauge("assay_model_traffic_share_ratio",
                        "Share of the unversioned inference requests of the model", m_);
    group_.NewGauges(memory_, "assay_model_memory_bytes", "Memory of a model version by kind", m_,
                     Label("kind", kMemoryKinds));
    group_.NewCounters(admissions_, "assay_admission_total", "Admissions by outcome", m_,
                       Label("outcome", kAdmissionOutcomes));
    group_.NewGauges(stage_times_, "assay_admission_last_duration_seconds",
                     "Time of one stage of the latest admission", m_,
                     Label("stage", kAdmissionStages));
  }
  GenerationSeries& Generation() {
    GenerationSeries* series = generation_.load(std::memory_order_acquire);
    if (series != nullptr) return *series;
    MutexLock lock(mu_);
    series = generation_.load(std::memory_order_relaxed);
    if (series == nullptr) {
      series = new GenerationSeries(factory_, m_);
      generation_.store(series, std::memory_order_release);
    }
    return *series;
  }
  // Gauges whose label values change with the model: the old ones go, the new ones come.
  void Replace(std::unique_ptr<SeriesGroup>& group, const std::vector<NewSeries>& series) {
    MutexLock lock(mu_);
    group = nullptr;
    group = std::make_unique<SeriesGroup>(factory_);
    for (const NewSeries& s : series) group->NewGauge(s.name, s.help, s.labels)->Set(s.value);
  }

  SeriesFactory& factory_;
  const Labels m_;
  Mutex mu_;           // for series that appear after construction
  SeriesGroup group_;  // pointers below are set once, by the constructor
  TracedHistogram request_time_;
  std::unique_ptr<SeriesGroup> info_, quantization_;
  std::atomic<GenerationSeries*> generation_{nullptr};  // owned; set once
  Counter *requests_[5], *rejected_[5], *expired_[3], *cancelled_[3], *admissions_[4],
      *prompt_tokens_;
  Histogram *queue_time_, *compute_time_, *batch_size_;
  Gauge *pending_, *running_, *ready_, *last_swap_, *states_[8], *memory_[4], *stage_times_[16];
  Gauge* traffic_share_;
};

}  // namespace

std::span<const char* const> AdmissionStageNames() { return kAdmissionStages; }

Histogram& AdmissionStageTime(SeriesFactory& factory, std::string_view stage) {
  return factory.AddHistogram("assay_admission_duration_seconds",
                              "Time of one stage of an admission, all models",
                              {{"stage", std::string(stage)}}, StageTime());
}

Histogram& LoadTime(SeriesFactory& factory, std::string_view source) {
  return factory.AddHistogram(
      "assay_model_load_duration_seconds",
      "Time from the start of an admission until the version serves, by source of the weights",
      {{"source", std::string(source)}}, AdmissionTime());
}

std::unique_ptr<ModelMetrics> NewModelMetrics(SeriesFactory& factory, std::string_view model,
                                              int64_t version) {
  return std::make_unique<PrometheusModelMetrics>(factory, model, version);
}

}  // namespace assay
