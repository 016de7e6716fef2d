#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <atomic>

#include "absl/strings/str_cat.h"
#include "base/cpu_info.h"
#include "base/thread_pool.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/lifecycle/progress_display.h"
#include "server/admin.h"
#include "server/assay_service.h"
#include "server/audit_log.h"
#include "server/banner.h"
#include "server/drift_responder.h"
#include "server/http_endpoint.h"
#include "server/listeners.h"
#include "server/memory_watermark.h"
#include "server/model_paths.h"
#include "server/model_repository.h"
#include "server/open_inference_service.h"
#include "server/revision.h"
#include "server/rpc_metrics.h"
#include "server/status_page.h"

namespace assay {
namespace {

absl::StatusOr<Policy> ReadPolicy(const std::string& path) {
  if (path.empty()) return Policy::Default();
  const absl::StatusOr<std::string> text = ReadConfigFile(path);
  if (!text.ok()) {
    return absl::NotFoundError(
        absl::StrCat("cannot read the policy: ", std::string(text.status().message())));
  }
  return Policy::Parse(*text, path);
}

AdmissionOptions OptionsFor(const ServerConfig& config, const Policy& policy, const Gpus& gpus,
                            size_t num_models, DriftMonitor& drift) {
  AdmissionOptions options;
  options.gpus = &gpus;
  options.gpu_kv_bytes = config.gpu_kv_bytes;
  options.drift = &drift;
  options.policy = policy;
  options.engine = config.engine;
  options.cache_dir = config.cache_dir == "none" ? "" : config.cache_dir;
  options.evaluation_path = config.evaluation_text;
  options.calibration_path = config.calibration;
  options.memory_limit_bytes = config.memory_limit_bytes;
  options.max_queue = std::max(options.max_queue, static_cast<int>(num_models) + 4);
  return options;
}

std::string LtDirectory(const ServerConfig& config) {
  return config.cache_dir.empty() || config.cache_dir == "none" ? ""
                                                                : config.cache_dir + "/cublaslt";
}

std::vector<DeviceReading> ReadDevices(const Gpus& gpus) {
  std::vector<DeviceReading> readings;
  for (const Gpus::Found& found : gpus.all()) {
    if (found.backend == nullptr) continue;
    readings.push_back(
        {.name = found.name,
         .total_bytes = static_cast<double>(found.properties.memory_bytes),
         .available_bytes = static_cast<double>(found.backend->device().free_bytes()),
         .healthy = found.backend->health().ok()});
  }
  return readings;
}

void SetChannelArguments(const GrpcLimits& limits, grpc::ServerBuilder& builder) {
  const auto ms = [](absl::Duration d) { return static_cast<int>(absl::ToInt64Milliseconds(d)); };
  builder.SetMaxReceiveMessageSize(static_cast<int>(limits.max_message_bytes));
  builder.SetMaxSendMessageSize(-1);  // ours; bounded by the request's limits
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, ms(limits.keepalive_time));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, ms(limits.keepalive_timeout));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             ms(limits.min_ping_interval));
  if (limits.max_connection_idle > absl::ZeroDuration()) {
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, ms(limits.max_connection_idle));
  }
  if (limits.max_connection_age > absl::ZeroDuration()) {
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, ms(limits.max_connection_age));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                               ms(limits.max_connection_age_grace));
  }
  grpc::ResourceQuota quota("assay");
  quota.Resize(QuotaWithin(HostCpu().memory_bytes, limits.memory_quota_bytes));
  builder.SetResourceQuota(quota);
}

}  // namespace

// In order of construction; destroyed in reverse.
struct Server::Parts {
  // What is read before anything is made.
  struct Given {
    ServerConfig config;
    Policy policy;
    Gpus gpus;
    std::vector<RepositoryEntry> models;
    TokenTable tokens;
  };
  Parts(Given given, const AdmissionHooks* hooks)
      : config(std::move(given.config)),
        policy(std::move(given.policy)),
        gpus(std::move(given.gpus)),
        models(std::move(given.models)),
        pool({.num_threads = config.threads}),
        metrics(absl::StrCat(std::string(kServerVersion), "+", kRevision), "cpu"),
        registry(RealClock(), config.versions.rollback_window),
        readiness(config.strict_readiness),
        drift(config.drift, registry, metrics, events, RealClock()),
        versions(config.versions, registry, drift, metrics, events),
        admissions(StartAdmissionPipeline(registry, pool, metrics, SteadyClock(),
                                          OptionsFor(config, policy, gpus, models.size(), drift),
                                          hooks == nullptr ? AdmissionHooks() : *hooks)),
        responder({config.drift_action, config.drift_action_interval},
                  {registry, *admissions, drift, events, versions, metrics, RealClock()}),
        texts(std::max(1, pool.num_threads() / 4)),
        access({.tokens_path = config.auth.tokens,
                .admin_on_data = config.admin_on_data_port(),
                .admin_from_fd = admin_from_fd},
               std::move(given.tokens), metrics),
        quotas({config.auth.max_concurrent, config.auth.tokens_per_minute}, SteadyClock(), metrics),
        context{config,  policy,   gpus,      SteadyClock(), RealClock(), registry, *admissions,
                metrics, gate,     readiness, statistics,    traffic,     texts,    drift,
                events,  versions, access,    quotas,        peers},
        status_page(context, absl::StrCat(std::string(kServerVersion), "+", kRevision), started),
        admin(std::make_unique<Admin>(context)),
        open_inference(context, *admin),
        assay(context, *admin) {}

  ServerPorts ports() const {
    return {listeners->data_port(), http->port(), listeners->health_port(),
            listeners->admin_port()};
  }
  void WatchDevices() {
    metrics.WatchDevices([this] { return ReadDevices(gpus); });
    for (const Gpus::Found& found : gpus.all()) {
      if (found.backend == nullptr) continue;
      found.backend->device().OnFailure([this, name = found.name](const absl::Status& status) {
        readiness.Broken(name, std::string(status.message()));
        events.Add({.level = LogLevel::kError,
                    .kind = "device",
                    .reason = absl::StrCat(name, " is lost: ", status.message())});
      });
    }
  }
  void WatchRegistry() {
    versions.Watch();
    drift.OnCompared([this](const DriftStatus& status) {
      versions.Compared(status);
      responder.Compared(status);
    });
    drift.OnViolated([this](const DriftStatus& status) { responder.Act(status); });
    registry.OnChange([this](const VersionInfo& version) {
      RecordState(version);
      MutexLock lock(watching);  // versions change on several threads: the last word is up to date
      readiness.Changed(version, registry.Acquire(version.name).ok());
    });
  }
  void RecordState(const VersionInfo& version) ABSL_LOCKS_EXCLUDED(mu);
  void RenewTokens();
  absl::Status StartHttp();
  absl::Status StartGrpc();
  void AdmitModels();
  void OnStartupProgress(const AdmissionProgress& progress) ABSL_LOCKS_EXCLUDED(mu);
  void OneStartupModelIsOver() ABSL_LOCKS_EXCLUDED(mu);

  const absl::Time started = absl::Now();
  Mutex mu;
  Mutex watching;
  CondVar startup_over;
  size_t startup_left ABSL_GUARDED_BY(mu) = 0;
  ProgressDisplay display ABSL_GUARDED_BY(mu){stderr};
  const ServerConfig config;
  const Policy policy;
  const Gpus gpus;  // what serves lives there
  const std::vector<RepositoryEntry> models;
  ThreadPool pool;
  Metrics metrics;
  ModelRegistry registry;
  MemoryWatermark memory{config.memory_watermark, SteadyClock()};
  WorkGate gate;
  Readiness readiness;
  Statistics statistics;
  TrafficHistory traffic;
  EventLog events{RealClock()};
  std::map<std::pair<std::string, int64_t>, VersionState> states ABSL_GUARDED_BY(mu);
  DriftMonitor drift;
  VersionControl versions;
  std::unique_ptr<AdmissionPipeline> admissions;
  DriftResponder responder;
  TextWorkers texts;
  const int admin_from_fd = ReserveAdminDescriptors(config.limits);
  PeerAddresses peers;
  AccessControl access;
  Quotas quotas;
  std::string tokens_failure;  // said already; of the thread that renews them
  ServiceContext context;
  UnreadWatch unread{config.max_unread_time, SteadyClock(), metrics};
  StatusPage status_page;
  std::unique_ptr<Admin> admin;
  OpenInferenceService open_inference;
  AssayServiceImpl assay;
  std::unique_ptr<HttpEndpoint> http;
  std::atomic<const HttpEndpoint*> http_started{nullptr};  // it may be asked before `http` is set
  std::unique_ptr<grpc::Server> grpc, health;  // health: of a port for probes; null: none
  std::unique_ptr<Listeners> listeners;
  bool drained = false;
};

// Changes of state are events; what ends is no longer watched. The admission's stages, which are
// many, are told by its progress, and its states are set in the metrics by the admission itself.
void Server::Parts::RecordState(const VersionInfo& version) {
  const bool ends =
      version.state == VersionState::kDraining || version.state == VersionState::kRetired ||
      version.state == VersionState::kRejected || version.state == VersionState::kFailed;
  if (ends) drift.Forget(version.name, version.version);
  if (version.state == VersionState::kDraining) {
    metrics.ForModel(version.name, version.version)->SetState("draining");
  }
  {
    MutexLock lock(mu);
    const auto [known, first] =
        states.try_emplace({version.name, version.version}, VersionState::kQueued);
    if (!first && known->second == version.state) return;
    known->second = version.state;
  }
  const bool bad =
      version.state == VersionState::kRejected || version.state == VersionState::kFailed;
  events.Add({.level = bad ? LogLevel::kWarning : LogLevel::kInfo,
              .model = version.name,
              .version = version.version,
              .kind = "state",
              .reason = absl::StrCat(std::string(Name(version.state)),
                                     version.reason.empty() ? "" : ": ", version.reason)});
}

void Server::Parts::RenewTokens() {
  const absl::StatusOr<bool> changed = access.Reload();
  if (!changed.ok()) {
    if (std::string now(changed.status().message()); now != tokens_failure)
      Log(LogLevel::kError, "the tokens are not renewed; the old ones stay",
          {{"reason", tokens_failure = now}});
    return;
  }
  tokens_failure.clear();
  if (*changed)
    Log(LogLevel::kInfo, "tokens renewed", {{"tokens", absl::StrCat(access.num_tokens())}});
}

absl::Status Server::Parts::StartHttp() {
  HttpEndpoint::Sources sources{[this](ExpositionFormat format) { return metrics.Scrape(format); },
                                [this] { return readiness.Obstacles(); },
                                [this](std::string_view path) { return status_page.Get(path); }};
  if (access.asks_tokens())
    sources.allowed = [this](const std::string& authorization) {
      return access.Check(authorization, Role::kObserve);
    };
  ASSIGN_OR_RETURN(http, HttpEndpoint::Start({.address = config.listen,
                                              .port = config.http_port,
                                              .tls = listeners->http_tls(),
                                              .limits = config.limits},
                                             std::move(sources)));
  http_started = http.get();
  return absl::OkStatus();
}

absl::Status Server::Parts::StartGrpc() {
  grpc::EnableDefaultHealthCheckService(true);
  if (config.grpc.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetChannelArguments(config.grpc, builder);
  builder.RegisterService(&open_inference);
  builder.RegisterService(&assay);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> observers;
  observers.push_back(NewRpcMetrics(metrics, SteadyClock(), unread));
  observers.push_back(NewAuditLog(access, peers));
  builder.experimental().SetInterceptorCreators(std::move(observers));
  grpc = builder.BuildAndStart();
  if (config.health_port >= 0) {
    grpc::ServerBuilder health_builder;
    SetChannelArguments(config.grpc, health_builder);
    health = health_builder.BuildAndStart();
  }
  if (grpc == nullptr || (config.health_port >= 0 && health == nullptr))
    return absl::InternalError("gRPC does not start");
  std::function<void()> refresh;
  if (access.asks_tokens()) refresh = [this] { RenewTokens(); };
  ASSIGN_OR_RETURN(listeners, Listeners::Start(config, {.data = *grpc,
                                                        .health = health.get(),
                                                        .admin_from_fd = admin_from_fd,
                                                        .addresses = &peers,
                                                        .tick = [this] { unread.Look(); },
                                                        .refresh = std::move(refresh)}));
  metrics.WatchConnections([this] {
    const HttpEndpoint* const started = http_started;
    return listeners->Read(started == nullptr ? FrontCounts() : started->counts());
  });
  readiness.SetHealthSink([this](const std::string& service, bool serving) {
    grpc->GetHealthCheckService()->SetServingStatus(service, serving);
    if (health != nullptr) health->GetHealthCheckService()->SetServingStatus(service, serving);
  });
  return absl::OkStatus();
}

void Server::Parts::AdmitModels() {
  {
    MutexLock lock(mu);
    startup_left = models.size();
  }
  const ModelPaths paths(config);
  for (const RepositoryEntry& model : models) readiness.Require(model.name);
  for (const RepositoryEntry& model : SmallestFirst(models)) {
    AdmissionRequest request;
    request.name = model.name;
    request.version = model.version;
    absl::StatusOr<std::string> path = paths.ResolveEntry(model.path);
    absl::Status begun = path.status();
    if (begun.ok()) {
      request.path = *std::move(path);
      const auto sink = [this](const AdmissionProgress& at) { OnStartupProgress(at); };
      begun = admissions->Enqueue(std::move(request), sink).status();
    }
    if (begun.ok()) continue;
    Log(LogLevel::kError, "model cannot be admitted",
        {{"model", model.name}, {"error", std::string(begun.message())}});
    readiness.Failed(model.name, std::string(begun.message()));
    OneStartupModelIsOver();
  }
  readiness.StartupDeclared();
}

void Server::Parts::OnStartupProgress(const AdmissionProgress& progress) {
  if (!progress.done) {
    if (config.log_format == LogFormat::kJson) return;  // versions log their states
    MutexLock lock(mu);
    display.Show({absl::StrCat(progress.name, ":", progress.version), progress.stage,
                  progress.fraction, progress.message},
                 absl::Now());
    return;
  }
  absl::Duration elapsed = absl::ZeroDuration();
  if (progress.report != nullptr) {
    for (const StageReport& stage : progress.report->stages) elapsed += stage.elapsed;
  } else {
    elapsed = absl::Now() - started;
  }
  {
    MutexLock lock(mu);
    display.Clear();
  }
  Announce(ModelLine(progress, elapsed));
  OneStartupModelIsOver();
}

void Server::Parts::OneStartupModelIsOver() {
  MutexLock lock(mu);
  if (--startup_left == 0) startup_over.NotifyAll();
}

Server::Server(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

absl::Status Server::CheckFiles(const ServerConfig& config) {
  RETURN_IF_ERROR(ReadPolicy(config.policy).status());
  RETURN_IF_ERROR(TokenTable::Read(config.auth.tokens).status());
  if (!config.evaluation_text.empty()) {
    const absl::StatusOr<std::string> text = ReadConfigFile(config.evaluation_text);
    if (!text.ok()) {
      return absl::NotFoundError(
          absl::StrCat("cannot read the evaluation text: ", std::string(text.status().message())));
    }
  }
  if (!config.calibration.empty()) {
    const absl::StatusOr<std::string> data = ReadConfigFile(config.calibration);
    if (!data.ok()) {
      return absl::NotFoundError(
          absl::StrCat("cannot read the calibration data: ", std::string(data.status().message())));
    }
  }
  if (config.model_repository.empty()) return absl::OkStatus();
  return ScanRepository(config.model_repository).status();
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(ServerConfig config,
                                                      const AdmissionHooks* hooks) {
  ASSIGN_OR_RETURN(Policy policy, ReadPolicy(config.policy));
  std::vector<RepositoryEntry> models;
  if (!config.model_repository.empty()) {
    ASSIGN_OR_RETURN(models, ScanRepository(config.model_repository));
  }
  const CudaWorld* const world =
      hooks == nullptr || hooks->cuda == nullptr ? DriverWorld() : hooks->cuda;
  ASSIGN_OR_RETURN(Gpus gpus, Gpus::Open(world, {.devices = config.gpu_devices,
                                                 .profile = config.gpu_profile,
                                                 .lt_directory = LtDirectory(config)}));
  ASSIGN_OR_RETURN(TokenTable tokens, TokenTable::Read(config.auth.tokens));
  auto parts =
      std::make_unique<Parts>(Parts::Given{std::move(config), std::move(policy), std::move(gpus),
                                           std::move(models), std::move(tokens)},
                              hooks);
  Announce(StartBanner(parts->config, parts->policy, DescribeHardware(parts->gpus),
                       parts->pool.num_threads()));
  parts->gate.AskFirst([&memory = parts->memory] { return memory.Check(); });
  parts->WatchDevices();
  parts->WatchRegistry();
  RETURN_IF_ERROR(parts->StartGrpc());
  RETURN_IF_ERROR(parts->StartHttp());  // its metrics read the ports
  Announce(AddressLine(parts->config, parts->ports()));
  for (const std::string& warning : ExposureWarnings(parts->config))
    Log(LogLevel::kWarning, warning);
  parts->AdmitModels();
  return std::unique_ptr<Server>(new Server(std::move(parts)));
}

Server::~Server() { Drain(); }

int Server::grpc_port() const { return parts_->listeners->data_port(); }
int Server::http_port() const { return parts_->http->port(); }

bool Server::WaitForStartup(absl::Time until) {
  MutexLock lock(parts_->mu);
  while (parts_->startup_left > 0) {
    const auto deadline =
        std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(until - absl::Now());
    if (!parts_->startup_over.WaitUntil(parts_->mu, deadline) && parts_->startup_left > 0) {
      return false;
    }
  }
  return true;
}

void Server::PrintReady() const {
  StartupOutcome outcome{.obstacles = parts_->readiness.Obstacles(),
                         .elapsed = absl::Now() - parts_->started};
  for (const VersionInfo& version : parts_->registry.List()) {
    const auto servable = parts_->registry.Acquire(version.name, version.version);
    if (servable.ok()) {
      outcome.serving.push_back({version.name, (*servable)->spec.task});
    } else {
      outcome.not_serving.push_back(version.name);
    }
  }
  // Text generation first: it is what people try first.
  std::stable_sort(outcome.serving.begin(), outcome.serving.end(),
                   [](const auto& a, const auto& b) {
                     return a.task == ModelTask::kGenerate && b.task != ModelTask::kGenerate;
                   });
  Announce(ReadyBanner(parts_->config, parts_->ports(), outcome));
}

bool Server::Drain() {
  Parts& parts = *parts_;
  if (parts.drained) return true;
  parts.drained = true;
  const auto deadline =
      std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(parts.config.drain_timeout);
  parts.readiness.Drain();
  for (grpc::Server* const server : {parts.grpc.get(), parts.health.get()}) {
    if (server != nullptr) server->GetHealthCheckService()->Shutdown();
  }
  parts.gate.Close();
  const int streams = parts.open_inference.open_streams();
  parts.open_inference.Drain();
  Log(LogLevel::kInfo, "draining",
      {{"requests", absl::StrCat(parts.gate.active())}, {"open_streams", absl::StrCat(streams)}});
  const bool idle = parts.gate.WaitIdle(deadline);
  if (!idle) {
    Log(LogLevel::kWarning, "drain timeout: cutting what still runs",
        {{"requests", absl::StrCat(parts.gate.active())}});
  }
  // Waiting clients of Watch and Admit, and messages on their way out, get a moment; then all
  // RPCs are cancelled, and their reactors end.
  if (parts.listeners != nullptr) parts.listeners->StopAccepting();
  for (grpc::Server* const server : {parts.grpc.get(), parts.health.get()}) {
    if (server == nullptr) continue;
    server->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
    server->Wait();
  }
  parts.registry.DrainAll();
  parts.http = nullptr;
  Log(LogLevel::kInfo, "stopped", {{"clean", idle ? "true" : "false"}});
  return idle;
}

}  // namespace assay
