#include "engine/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <atomic>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "engine/process_metrics.h"

namespace assay {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;
using Buckets = Histogram::BucketBoundaries;

// Upper bounds, seconds unless said otherwise (docs/operations.md, "Metrics").
const Buckets& Latency() {
  static const auto& b =
      *new Buckets{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10};
  return b;
}
const Buckets& QueueTime() {
  static const auto& b =
      *new Buckets{.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5};
  return b;
}
const Buckets& FirstTokenTime() {
  static const auto& b = *new Buckets{.01, .025, .05, .1, .2, .35, .5, .75, 1, 2, 5, 10, 30};
  return b;
}
const Buckets& TokenGap() {
  static const auto& b =
      *new Buckets{.0025, .005, .01, .015, .02, .03, .04, .05, .075, .1, .2, .5, 1};
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
constexpr const char* kFinishReasons[] = {"stop", "length", "cancelled", "error"};
constexpr const char* kMemoryKinds[] = {"weights", "kv", "workspace", "reference"};
constexpr const char* kStates[] = {"queued",   "admitting", "warming",  "serving",
                                   "draining", "retired",   "rejected", "failed"};
constexpr const char* kAdmissionOutcomes[] = {"admitted", "rejected_accuracy", "rejected_size",
                                              "failed"};

Labels With(Labels labels, const char* key, std::string_view value) {
  labels[key] = std::string(value);
  return labels;
}

// The families of one registry, and what it takes to remove a series again.
class SeriesFactory {
 public:
  Counter& AddCounter(const char* name, const char* help, const Labels& labels) {
    return FamilyOf(counters_, prometheus::BuildCounter(), name, help).Add(labels);
  }
  Gauge& AddGauge(const char* name, const char* help, const Labels& labels) {
    return FamilyOf(gauges_, prometheus::BuildGauge(), name, help).Add(labels);
  }
  Histogram& AddHistogram(const char* name, const char* help, const Labels& labels,
                          const Buckets& buckets) {
    return FamilyOf(histograms_, prometheus::BuildHistogram(), name, help).Add(labels, buckets);
  }
  void Remove(const char* name, Counter* series) { Find(counters_, name).Remove(series); }
  void Remove(const char* name, Gauge* series) { Find(gauges_, name).Remove(series); }
  void Remove(const char* name, Histogram* series) { Find(histograms_, name).Remove(series); }
  std::vector<prometheus::MetricFamily> Collect() const { return registry_.Collect(); }

 private:
  template <typename T>
  using Families = std::map<std::string, prometheus::Family<T>*, std::less<>>;

  template <typename T, typename Builder>
  prometheus::Family<T>& FamilyOf(Families<T>& known, Builder builder, const char* name,
                                  const char* help) {
    MutexLock lock(mu_);
    prometheus::Family<T>*& family = known[name];
    if (family == nullptr) family = &builder.Name(name).Help(help).Register(registry_);
    return *family;
  }
  template <typename T>
  prometheus::Family<T>& Find(Families<T>& known, const char* name) {
    MutexLock lock(mu_);
    return *known.find(name)->second;
  }

  prometheus::Registry registry_;  // has its own lock
  Mutex mu_;                       // guards the three maps; FamilyOf is their only writer
  Families<Counter> counters_;
  Families<Gauge> gauges_;
  Families<Histogram> histograms_;
};

// Series that belong together and are removed together.
class SeriesGroup {
 public:
  explicit SeriesGroup(SeriesFactory& factory) : factory_(factory) {}
  ~SeriesGroup() {
    for (auto& [name, s] : counters_) factory_.Remove(name, s);
    for (auto& [name, s] : gauges_) factory_.Remove(name, s);
    for (auto& [name, s] : histograms_) factory_.Remove(name, s);
  }
  SeriesGroup(const SeriesGroup&) = delete;
  SeriesGroup& operator=(const SeriesGroup&) = delete;

  Counter* NewCounter(const char* name, const char* help, const Labels& labels) {
    return Remember(counters_, name, factory_.AddCounter(name, help, labels));
  }
  Gauge* NewGauge(const char* name, const char* help, const Labels& labels) {
    return Remember(gauges_, name, factory_.AddGauge(name, help, labels));
  }
  Histogram* NewHistogram(const char* name, const char* help, const Labels& labels,
                          const Buckets& buckets) {
    return Remember(histograms_, name, factory_.AddHistogram(name, help, labels, buckets));
  }
  template <size_t N>
  void NewCounters(Counter* (&out)[N], const char* name, const char* help, const Labels& labels,
                   std::pair<const char*, const char* const (&)[N]> values) {
    for (size_t i = 0; i < N; ++i) {
      out[i] = NewCounter(name, help, With(labels, values.first, values.second[i]));
    }
  }
  template <size_t N>
  void NewGauges(Gauge* (&out)[N], const char* name, const char* help, const Labels& labels,
                 std::pair<const char*, const char* const (&)[N]> values) {
    for (size_t i = 0; i < N; ++i) {
      out[i] = NewGauge(name, help, With(labels, values.first, values.second[i]));
    }
  }

 private:
  // The library gives the same series for the same labels: it is remembered, and removed, once.
  template <typename T>
  static T* Remember(std::vector<std::pair<const char*, T*>>& known, const char* name, T& series) {
    for (const auto& entry : known) {
      if (entry.second == &series) return &series;
    }
    return known.emplace_back(name, &series).second;
  }

  SeriesFactory& factory_;
  std::vector<std::pair<const char*, Counter*>> counters_;
  std::vector<std::pair<const char*, Gauge*>> gauges_;
  std::vector<std::pair<const char*, Histogram*>> histograms_;
};

template <size_t N>
std::pair<const char*, const char* const (&)[N]> Label(const char* key,
                                                       const char* const (&values)[N]) {
  return {key, values};
}

// What only text generation has; made when a model shows that it generates.
struct GenerationSeries {
  GenerationSeries(SeriesFactory& factory, const Labels& m) : group(factory) {
    first_token = group.NewHistogram("assay_llm_time_to_first_token_seconds",
                                     "Time from arrival to the first token", m, FirstTokenTime());
    inter_token = group.NewHistogram("assay_llm_inter_token_latency_seconds",
                                     "Time between two tokens of one request", m, TokenGap());
    duration = group.NewHistogram("assay_llm_request_duration_seconds",
                                  "Time from arrival to the last token", m, GenerationTime());
    prompt_tokens = group.NewCounter("assay_llm_prompt_tokens_total", "Prompt tokens computed", m);
    generated_tokens = group.NewCounter("assay_llm_generated_tokens_total", "Tokens generated", m);
    cache_hits = group.NewCounter("assay_llm_prefix_cache_hit_tokens_total",
                                  "Prompt tokens taken from the prefix cache", m);
    prompt_length = group.NewHistogram("assay_llm_request_prompt_tokens",
                                       "Prompt tokens of one request", m, TokenCount());
    generated_length = group.NewHistogram("assay_llm_request_generated_tokens",
                                          "Generated tokens of one request", m, TokenCount());
    group.NewCounters(finished, "assay_llm_requests_total", "Finished generations by reason", m,
                      Label("finish_reason", kFinishReasons));
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
  Histogram *first_token, *inter_token, *duration, *prompt_length, *generated_length;
  Counter *prompt_tokens, *generated_tokens, *cache_hits, *preemptions;
  Counter* finished[4];
  Gauge *running, *waiting, *kv_used, *kv_cached, *kv_free, *kv_usage, *kv_block_tokens;
};

class PrometheusModelMetrics final : public ModelMetrics {
 public:
  PrometheusModelMetrics(SeriesFactory& factory, std::string_view model, int64_t version)
      : factory_(factory),
        m_{{"model", std::string(model)}, {"version", absl::StrCat(version)}},
        group_(factory) {
    MakeRequestSeries();
    MakeLifecycleSeries();
  }
  ~PrometheusModelMetrics() override { delete generation_.load(); }

  void RequestDone(Outcome outcome, absl::Duration latency) override {
    requests_[static_cast<int>(outcome)]->Increment();
    if (outcome != Outcome::kRejected) request_time_->Observe(absl::ToDoubleSeconds(latency));
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

  void FirstToken(absl::Duration since_arrival) override {
    Generation().first_token->Observe(absl::ToDoubleSeconds(since_arrival));
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
    GenerationSeries& g = Generation();
    g.prompt_tokens->Increment(prompt_tokens);
    g.generated_tokens->Increment(generated_tokens);
    g.cache_hits->Increment(prefix_cache_hits);
  }
  void Preempted() override { Generation().preemptions->Increment(); }
  void SetKvBlocks(int used, int cached, int total) override {
    GenerationSeries& g = Generation();
    g.kv_used->Set(used);
    g.kv_cached->Set(cached);
    g.kv_free->Set(total - used - cached);
    g.kv_usage->Set(total > 0 ? static_cast<double>(used) / total : 0);
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
    for (const auto& [precision, layers] : layers_by_precision) {
      series.push_back({"assay_quantization_layers", "Linear layers by chosen precision",
                        With(m_, "precision", precision), static_cast<double>(layers)});
    }
    series.push_back({"assay_quantization_compression_ratio",
                      "Bytes of the weights at f32 over bytes as served", m_, compression_ratio});
    Replace(quantization_, series);
  }
  void AdmissionStageDone(std::string_view stage, absl::Duration elapsed) override {
    const Labels labels = With(m_, "stage", stage);
    const double seconds = absl::ToDoubleSeconds(elapsed);
    MutexLock lock(mu_);
    group_
        .NewHistogram("assay_admission_duration_seconds", "Time of one stage of an admission",
                      labels, AdmissionTime())
        ->Observe(seconds);
    group_
        .NewGauge("assay_admission_last_duration_seconds",
                  "Time of one stage of the latest admission", labels)
        ->Set(seconds);
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
    MutexLock lock(mu_);
    group_
        .NewHistogram("assay_model_load_duration_seconds", "Load time by source of the weights",
                      With(m_, "source", source), AdmissionTime())
        ->Observe(absl::ToDoubleSeconds(elapsed));
  }

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
    request_time_ = group_.NewHistogram("assay_inference_request_duration_seconds",
                                        "End-to-end time of one inference request in the server",
                                        m_, Latency());
    queue_time_ =
        group_.NewHistogram("assay_inference_queue_duration_seconds",
                            "Time an inference request waited for a batch slot", m_, QueueTime());
    compute_time_ = group_.NewHistogram("assay_inference_compute_duration_seconds",
                                        "Time of one batch execution", m_, Latency());
    batch_size_ = group_.NewHistogram("assay_inference_batch_size",
                                      "Requests merged in one executed batch", m_, BatchSize());
    pending_ = group_.NewGauge("assay_inference_pending_requests", "Requests waiting", m_);
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
    group_.NewGauges(memory_, "assay_model_memory_bytes", "Memory of a model version by kind", m_,
                     Label("kind", kMemoryKinds));
    group_.NewCounters(admissions_, "assay_admission_total", "Admissions by outcome", m_,
                       Label("outcome", kAdmissionOutcomes));
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
  std::unique_ptr<SeriesGroup> info_, quantization_;
  std::atomic<GenerationSeries*> generation_{nullptr};  // owned; set once
  Counter *requests_[5], *rejected_[5], *expired_[3], *cancelled_[3], *admissions_[4];
  Histogram *request_time_, *queue_time_, *compute_time_, *batch_size_;
  Gauge *pending_, *running_, *ready_, *last_swap_, *states_[8], *memory_[4];
};

constexpr const char* kCacheResults[] = {"hit", "miss", "corrupt"};

// The grpc_server_* series of one method.
struct RpcSeries {
  RpcSeries(SeriesFactory& f, std::string_view service, std::string_view method,
            std::string_view type)
      : factory(f),
        labels{{"grpc_service", std::string(service)},
               {"grpc_method", std::string(method)},
               {"grpc_type", std::string(type)}} {
    started = &f.AddCounter("grpc_server_started_total", "RPCs started", labels);
    received = &f.AddCounter("grpc_server_msg_received_total", "Messages received", labels);
    sent = &f.AddCounter("grpc_server_msg_sent_total", "Messages sent", labels);
    seconds =
        &f.AddHistogram("grpc_server_handling_seconds", "Wall time of RPCs", labels, Latency());
    in_flight = &f.AddGauge("assay_grpc_rpcs_in_flight", "RPCs being handled",
                            {{"method", std::string(method)}});
    Handled("OK");
  }
  Counter& Handled(std::string_view code) {
    return factory.AddCounter("grpc_server_handled_total", "RPCs completed, by code",
                              With(labels, "grpc_code", code));
  }

  SeriesFactory& factory;
  const Labels labels;
  Counter *started, *received, *sent;
  Histogram* seconds;
  Gauge* in_flight;
};

}  // namespace

struct Metrics::Impl {
  struct Versioned {
    std::unique_ptr<PrometheusModelMetrics> series;
    int users = 0;  // live shared_ptrs given out by ForModel
  };
  struct State {
    SeriesFactory factory;
    Mutex mu;
    std::map<std::pair<std::string, int64_t>, Versioned> models ABSL_GUARDED_BY(mu);
    std::map<std::pair<std::string, std::string>, RpcSeries> rpcs ABSL_GUARDED_BY(mu);

    void Release(const std::pair<std::string, int64_t>& key) ABSL_LOCKS_EXCLUDED(mu) {
      MutexLock lock(mu);  // held while the series go: ForModel must not find half of them
      const auto it = models.find(key);
      if (--it->second.users == 0) models.erase(it);
    }
  };

  // The methods are those that the server registered: a closed set.
  RpcSeries& Rpc(std::string_view service, std::string_view method, std::string_view type) {
    std::pair<std::string, std::string> key(service, method);
    MutexLock lock(state->mu);
    return state->rpcs.try_emplace(std::move(key), state->factory, service, method, type)
        .first->second;
  }

  // Outlives Metrics for as long as any ModelMetrics lives.
  std::shared_ptr<State> state = std::make_shared<State>();
  Counter *unknown_requests, *unknown_rejected;
  Counter* cache_results[3];
  Gauge *cache_bytes, *admissions_in_progress;
};

Metrics::Metrics(std::string_view version, std::string_view backend)
    : impl_(std::make_unique<Impl>()) {
  SeriesFactory& f = impl_->state->factory;
  const size_t plus = version.find('+');
  const std::string_view revision =
      plus == std::string_view::npos ? "unknown" : version.substr(plus + 1);
  f.AddGauge("assay_build_info", "Version of the server",
             {{"version", std::string(version.substr(0, plus))},
              {"revision", std::string(revision)},
              {"backend", std::string(backend)}})
      .Set(1);
  const Labels unknown{{"model", "_unknown"}, {"version", "0"}};
  impl_->unknown_requests =
      &f.AddCounter("assay_inference_requests_total", "Inference requests completed, by outcome",
                    With(unknown, "outcome", "rejected"));
  impl_->unknown_rejected =
      &f.AddCounter("assay_inference_rejected_total", "Requests refused before execution",
                    With(unknown, "reason", "invalid"));
  for (size_t i = 0; i < std::size(kCacheResults); ++i) {
    impl_->cache_results[i] =
        &f.AddCounter("assay_artifact_cache_requests_total",
                      "Look-ups in the artifact cache, by result", {{"result", kCacheResults[i]}});
  }
  impl_->cache_bytes =
      &f.AddGauge("assay_artifact_cache_bytes", "Size of the artifact cache on disk", {});
  impl_->admissions_in_progress =
      &f.AddGauge("assay_admission_in_progress", "Admissions queued or running", {});
}

Metrics::~Metrics() = default;

std::shared_ptr<ModelMetrics> Metrics::ForModel(std::string_view model, int64_t version) {
  const std::pair<std::string, int64_t> key(std::string(model), version);
  std::shared_ptr<Impl::State> state = impl_->state;
  MutexLock lock(state->mu);
  Impl::Versioned& entry = state->models[key];
  if (entry.series == nullptr) {
    entry.series = std::make_unique<PrometheusModelMetrics>(state->factory, model, version);
  }
  ++entry.users;
  return std::shared_ptr<ModelMetrics>(entry.series.get(),
                                       [state, key](ModelMetrics*) { state->Release(key); });
}

void Metrics::DeclareRpc(std::string_view service, std::string_view method, std::string_view type) {
  impl_->Rpc(service, method, type);
}

void Metrics::RpcStarted(std::string_view service, std::string_view method, std::string_view type) {
  RpcSeries& rpc = impl_->Rpc(service, method, type);
  rpc.started->Increment();
  rpc.in_flight->Increment();
}

void Metrics::RpcDone(std::string_view service, std::string_view method, std::string_view type,
                      std::string_view code, absl::Duration wall) {
  RpcSeries& rpc = impl_->Rpc(service, method, type);
  rpc.Handled(code).Increment();
  rpc.seconds->Observe(absl::ToDoubleSeconds(wall));
  rpc.in_flight->Decrement();
}

void Metrics::RpcMessages(std::string_view service, std::string_view method, std::string_view type,
                          int received, int sent) {
  RpcSeries& rpc = impl_->Rpc(service, method, type);
  rpc.received->Increment(received);
  rpc.sent->Increment(sent);
}

void Metrics::UnknownModel() {
  impl_->unknown_requests->Increment();
  impl_->unknown_rejected->Increment();
}

void Metrics::ArtifactCache(std::string_view result) {
  for (size_t i = 0; i < std::size(kCacheResults); ++i) {
    if (result == kCacheResults[i]) impl_->cache_results[i]->Increment();
  }
}

void Metrics::SetArtifactCacheBytes(double bytes) { impl_->cache_bytes->Set(bytes); }

void Metrics::SetAdmissionsInProgress(int count) { impl_->admissions_in_progress->Set(count); }

std::string Metrics::Scrape() const {
  std::vector<prometheus::MetricFamily> families = impl_->state->factory.Collect();
  const ProcessMetrics process = ReadProcessMetrics();
  const auto add = [&families](const char* name, const char* help, double value,
                               prometheus::MetricType type) {
    prometheus::ClientMetric metric;
    (type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
    families.push_back({name, help, type, {std::move(metric)}});
  };
  constexpr auto kGauge = prometheus::MetricType::Gauge;
  add("process_cpu_seconds_total", "CPU time, user and system", process.cpu_seconds,
      prometheus::MetricType::Counter);
  add("process_resident_memory_bytes", "Resident memory", process.resident_bytes, kGauge);
  add("process_virtual_memory_bytes", "Virtual memory", process.virtual_bytes, kGauge);
  add("process_start_time_seconds", "Start of the process, Unix time", process.start_time_seconds,
      kGauge);
  add("process_open_fds", "Open file descriptors", process.open_fds, kGauge);
  add("process_max_fds", "Limit of open file descriptors", process.max_fds, kGauge);
  add("process_threads", "Threads", process.threads, kGauge);
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace assay
