#include "engine/metrics.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <iterator>

#include "base/cpu_info.h"
#include "engine/metrics_series.h"
#include "engine/open_metrics.h"
#include "engine/process_metrics.h"

namespace assay {
namespace {

constexpr const char* kCacheResults[] = {"hit", "miss", "corrupt"};
// In the order of their enums.
constexpr const char* kAuthRefusals[] = {"no_token", "unknown_token", "role", "port"};
constexpr const char* kQuotas[] = {"concurrency", "tokens"};
constexpr VersionChange kVersionChanges[] = {VersionChange::kPublish, VersionChange::kCanary,
                                             VersionChange::kPromote, VersionChange::kRollBack,
                                             VersionChange::kDrop};

// Load of the whole process in one series each: a router that reads one series per pod (the Gateway
// API's endpoint picker) cannot add up models.
struct ProcessLoad {
  double waiting = 0, running = 0, blocks_used = 0, blocks = 0;
};

ProcessLoad AddUp(const std::vector<prometheus::MetricFamily>& families) {
  ProcessLoad load;
  for (const prometheus::MetricFamily& family : families) {
    for (const prometheus::ClientMetric& metric : family.metric) {
      if (family.name == "assay_inference_pending_requests") load.waiting += metric.gauge.value;
      if (family.name == "assay_inference_running_requests") load.running += metric.gauge.value;
      if (family.name != "assay_llm_kv_cache_blocks") continue;
      load.blocks += metric.gauge.value;
      for (const auto& label : metric.label) {
        if (label.name == "state" && label.value == "used") load.blocks_used += metric.gauge.value;
      }
    }
  }
  return load;
}

prometheus::ClientMetric OfDevice(const std::string& device, double value, const char* state) {
  prometheus::ClientMetric metric;
  metric.label.push_back({"device", device});
  if (state != nullptr) metric.label.push_back({"state", state});
  metric.gauge.value = value;
  return metric;
}

// Devices that models run on: the host's processor, and GPUs.
void AddDevices(const std::vector<DeviceReading>& gpus,
                std::vector<prometheus::MetricFamily>& families) {
  constexpr auto kGauge = prometheus::MetricType::Gauge;
  const auto total = static_cast<double>(HostCpu().memory_bytes);
  const double available = std::min(static_cast<double>(AvailableMemoryBytes()), total);
  prometheus::MetricFamily memory = {
      "assay_device_memory_bytes",
      "Memory of a device; cpu: of the host, or what the cgroup allows if less",
      kGauge,
      {OfDevice("cpu", available, "available"), OfDevice("cpu", total - available, "used")}};
  prometheus::MetricFamily healthy = {"assay_device_healthy",
                                      "0: an error ended the use of this device",
                                      kGauge,
                                      {OfDevice("cpu", 1, nullptr)}};
  for (const DeviceReading& gpu : gpus) {
    memory.metric.push_back(OfDevice(gpu.name, gpu.available_bytes, "available"));
    memory.metric.push_back(OfDevice(gpu.name, gpu.total_bytes - gpu.available_bytes, "used"));
    healthy.metric.push_back(OfDevice(gpu.name, gpu.healthy ? 1 : 0, nullptr));
  }
  families.push_back(std::move(memory));
  families.push_back(std::move(healthy));
  families.push_back({"assay_device_cores",
                      "Cores that the process may use",
                      kGauge,
                      {OfDevice("cpu", HostCpu().cores, nullptr)}});
}

void AddConnections(const ConnectionReading& reading,
                    std::vector<prometheus::MetricFamily>& families) {
  constexpr auto kGauge = prometheus::MetricType::Gauge;
  prometheus::ClientMetric open, open_http;
  open.gauge.value = reading.open;
  open_http.gauge.value = reading.open_http;
  families.push_back({"assay_grpc_connections", "Open connections", kGauge, {std::move(open)}});
  families.push_back({"assay_http_connections",
                      "Open connections to the HTTP port, that of the scrape included",
                      kGauge,
                      {std::move(open_http)}});
  prometheus::MetricFamily refused = {"assay_connections_refused_total",
                                      "Connections turned away or cut, by reason",
                                      prometheus::MetricType::Counter,
                                      {}};
  for (const auto& [reason, count] : reading.refused) {
    prometheus::ClientMetric& metric = refused.metric.emplace_back();
    metric.label.push_back({"reason", reason});
    metric.counter.value = static_cast<double>(count);
  }
  if (!refused.metric.empty()) families.push_back(std::move(refused));
  prometheus::MetricFamily expiry = {"assay_tls_certificate_expiry_timestamp_seconds",
                                     "End of a certificate's validity, Unix time",
                                     kGauge,
                                     {}};
  for (const auto& [certificate, until] : reading.certificate_expiry) {
    prometheus::ClientMetric& metric = expiry.metric.emplace_back();
    metric.label.push_back({"certificate", certificate});
    metric.gauge.value = absl::ToDoubleSeconds(until - absl::UnixEpoch());
  }
  if (!expiry.metric.empty()) families.push_back(std::move(expiry));
}

// What nobody counts: it is read when it is asked for.
void AddReadNow(const std::vector<DeviceReading>& gpus,
                std::vector<prometheus::MetricFamily>& families) {
  const auto add = [&families](const char* name, const char* help, double value,
                               prometheus::MetricType type) {
    prometheus::ClientMetric metric;
    (type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
    families.push_back({name, help, type, {std::move(metric)}});
  };
  constexpr auto kGauge = prometheus::MetricType::Gauge;
  const ProcessLoad load = AddUp(families);
  add("assay_process_pending_requests", "Requests waiting, all models", load.waiting, kGauge);
  add("assay_process_running_requests", "Requests executing, all models", load.running, kGauge);
  add("assay_process_kv_cache_usage_ratio",
      "Share of the KV cache blocks of all models in use by live sequences, 0..1",
      load.blocks > 0 ? load.blocks_used / load.blocks : 0, kGauge);
  const ProcessMetrics process = ReadProcessMetrics();
  add("process_cpu_seconds_total", "CPU time, user and system", process.cpu_seconds,
      prometheus::MetricType::Counter);
  add("process_resident_memory_bytes", "Resident memory", process.resident_bytes, kGauge);
  add("process_virtual_memory_bytes", "Virtual memory", process.virtual_bytes, kGauge);
  add("process_start_time_seconds", "Start of the process, Unix time", process.start_time_seconds,
      kGauge);
  add("process_open_fds", "Open file descriptors", process.open_fds, kGauge);
  add("process_max_fds", "Limit of open file descriptors", process.max_fds, kGauge);
  add("process_threads", "Threads", process.threads, kGauge);
  AddDevices(gpus, families);
}

}  // namespace

struct Metrics::Impl {
  struct Versioned {
    std::unique_ptr<ModelMetrics> series;
    int users = 0;  // live shared_ptrs given out by ForModel
  };
  struct State {
    explicit State(const Clock& clock) : factory(clock) {}

    SeriesFactory factory;
    Mutex mu;
    std::map<std::pair<std::string, int64_t>, Versioned> models ABSL_GUARDED_BY(mu);
    std::map<std::pair<std::string, std::string>, std::unique_ptr<RpcMetrics>> rpcs
        ABSL_GUARDED_BY(mu);

    void Release(const std::pair<std::string, int64_t>& key) ABSL_LOCKS_EXCLUDED(mu) {
      MutexLock lock(mu);  // held while the series go: ForModel must not find half of them
      const auto it = models.find(key);
      if (--it->second.users == 0) models.erase(it);
    }
  };

  explicit Impl(const Clock& clock) : state(std::make_shared<State>(clock)) {}

  // Outlives Metrics for as long as any ModelMetrics lives.
  std::shared_ptr<State> state;
  std::function<std::vector<DeviceReading>()> gpus;  // empty: none
  std::function<ConnectionReading()> connections;    // likewise
  Counter *unknown_requests, *unknown_rejected;
  Counter* cache_results[3];
  Counter* version_changes[std::size(kVersionChanges)];
  Counter* auth_refused[std::size(kAuthRefusals)];
  Counter* quota_rejected[std::size(kQuotas)];
  Counter* unread;
  Gauge *cache_bytes, *admissions_in_progress;
};

Metrics::Metrics(std::string_view version, std::string_view backend, const Clock& clock)
    : impl_(std::make_unique<Impl>(clock)) {
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
  for (size_t i = 0; i < std::size(kVersionChanges); ++i) {
    impl_->version_changes[i] = &f.AddCounter("assay_model_version_changes_total",
                                              "Moves of the labels of versions, by what moved them",
                                              {{"action", std::string(Name(kVersionChanges[i]))}});
  }
  for (size_t i = 0; i < std::size(kAuthRefusals); ++i) {
    impl_->auth_refused[i] =
        &f.AddCounter("assay_auth_refused_total", "Calls refused for who made them, by why",
                      {{"reason", kAuthRefusals[i]}});
  }
  for (size_t i = 0; i < std::size(kQuotas); ++i) {
    impl_->quota_rejected[i] =
        &f.AddCounter("assay_quota_rejected_total", "Requests beyond their client's quota",
                      {{"quota", kQuotas[i]}});
  }
  impl_->unread = &f.AddCounter("assay_grpc_unread_rpcs_total",
                                "RPCs cut because their client did not read", {});
  impl_->cache_bytes =
      &f.AddGauge("assay_artifact_cache_bytes", "Size of the artifact cache on disk", {});
  impl_->admissions_in_progress =
      &f.AddGauge("assay_admission_in_progress", "Admissions queued or running", {});
  for (const char* stage : AdmissionStageNames()) AdmissionStageTime(f, stage);
  for (const char* source : kLoadSources) LoadTime(f, source);
}

Metrics::~Metrics() = default;

std::string_view Name(VersionChange change) {
  switch (change) {
    case VersionChange::kPublish:
      return "publish";
    case VersionChange::kCanary:
      return "canary";
    case VersionChange::kPromote:
      return "promote";
    case VersionChange::kRollBack:
      return "roll_back";
    case VersionChange::kDrop:
      return "drop";
  }
  return "unknown";
}

std::shared_ptr<ModelMetrics> Metrics::ForModel(std::string_view model, int64_t version) {
  const std::pair<std::string, int64_t> key(std::string(model), version);
  std::shared_ptr<Impl::State> state = impl_->state;
  MutexLock lock(state->mu);
  Impl::Versioned& entry = state->models[key];
  if (entry.series == nullptr) {
    entry.series = NewModelMetrics(state->factory, model, version);
  }
  ++entry.users;
  return std::shared_ptr<ModelMetrics>(entry.series.get(),
                                       [state, key](ModelMetrics*) { state->Release(key); });
}

std::unique_ptr<DriftMetrics> Metrics::ForDrift(std::string_view model, int64_t version,
                                                std::string_view statistic) {
  for (const DriftAction action : kAllDriftActions)
    DriftActionCounter(impl_->state->factory, model, action);
  return NewDriftMetrics(impl_->state->factory, model, version, statistic);
}

void Metrics::DriftActed(std::string_view model, DriftAction action) {
  DriftActionCounter(impl_->state->factory, model, action).Increment();
}

// The methods are those that the server registered: a closed set.
RpcMetrics& Metrics::ForRpc(std::string_view service, std::string_view method,
                            std::string_view type) {
  Impl::State& state = *impl_->state;
  MutexLock lock(state.mu);
  std::unique_ptr<RpcMetrics>& rpc = state.rpcs[{std::string(service), std::string(method)}];
  if (rpc == nullptr) rpc = NewRpcSeries(state.factory, service, method, type);
  return *rpc;
}

void Metrics::WatchConnections(std::function<ConnectionReading()> read) {
  impl_->connections = std::move(read);
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

void Metrics::VersionChanged(VersionChange change) {
  impl_->version_changes[static_cast<size_t>(change)]->Increment();
}

void Metrics::AuthRefused(AuthRefusal why) {
  impl_->auth_refused[static_cast<size_t>(why)]->Increment();
}

void Metrics::QuotaRejected(Quota quota) {
  impl_->quota_rejected[static_cast<size_t>(quota)]->Increment();
}

void Metrics::Unread() { impl_->unread->Increment(); }

void Metrics::WatchDevices(std::function<std::vector<DeviceReading>()> read) {
  impl_->gpus = std::move(read);
}

void Metrics::SetAdmissionsInProgress(int count) { impl_->admissions_in_progress->Set(count); }

std::string Metrics::Scrape(ExpositionFormat format) const {
  const SeriesFactory& factory = impl_->state->factory;
  // Before the counts: an exemplar is of an observation that they hold.
  const ExemplarsOfSeries exemplars =
      format == ExpositionFormat::kOpenMetrics ? factory.CollectExemplars() : ExemplarsOfSeries();
  std::vector<prometheus::MetricFamily> families = factory.Collect();
  AddReadNow(impl_->gpus ? impl_->gpus() : std::vector<DeviceReading>(), families);
  AddConnections(impl_->connections ? impl_->connections() : ConnectionReading(), families);
  if (format == ExpositionFormat::kOpenMetrics) return OpenMetricsText(families, exemplars);
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace assay
