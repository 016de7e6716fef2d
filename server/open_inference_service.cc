#include "server/open_inference_service.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/admin_reactors.h"
#include "server/infer_job.h"
#include "server/model_description.h"
#include "server/model_repository.h"
#include "server/reactors.h"
#include "server/stream_infer.h"

namespace assay {
namespace {

using Context = OpenInferenceService::Context;
using Unary = OpenInferenceService::Unary;

class InferReactor final : public SelfOwned<grpc::ServerUnaryReactor> {
 public:
  InferReactor(ServiceContext& context, const Caller& caller,
               const inference::ModelInferRequest& request, inference::ModelInferResponse* response)
      : job_(context, {DeadlineOf(*caller.rpc, context.clock), /*can_stream=*/false, caller.origin},
             [this, rpc = caller.rpc, response](InferEvent&& event) {
               *response = std::move(event.response);
               Finish(ToGrpc(event.status, rpc));
             }) {
    job_.Start(request, [] {});  // the request lives as long as the RPC
  }
  void OnCancel() override { job_.Cancel(); }

 private:
  InferJob job_;
};

std::vector<std::string> Extensions() {
  return {"model_repository",   "model_repository(unload_dependents)",
          "schedule_policy",    "model_configuration",
          "binary_tensor_data", "parameters",
          "statistics"};
}

absl::Status NoSharedMemory() {
  return absl::UnimplementedError(
      "shared memory is not supported: send tensors in raw_input_contents");
}

// KServe's dialect of load and unload has the model's name in field 1.
template <typename Request>
const std::string& ModelOf(const Request& request) {
  return request.model_name().empty() ? request.repository_name() : request.model_name();
}

absl::StatusOr<std::string> SchemeOf(const inference::RepositoryModelLoadRequest& request) {
  std::string scheme;
  for (const auto& [key, value] : request.parameters()) {
    if (key != "scheme") {
      return absl::UnimplementedError(absl::StrCat(
          "load parameter '", key,
          "' is not supported: models come from the repository as they are; 'scheme' is"));
    }
    scheme = value.string_param();
  }
  return scheme;
}

absl::Status FillIndex(ServiceContext& context, bool only_ready,
                       inference::RepositoryIndexResponse& response) {
  const std::vector<VersionInfo> versions = context.registry.List();
  for (const VersionInfo& version : versions) {
    if (only_ready && version.state != VersionState::kServing) continue;
    auto& model = *response.add_models();
    model.set_name(version.name);
    model.set_version(absl::StrCat(version.version));
    model.set_state(std::string(RepositoryState(version.state)));
    std::string reason = version.reason;
    if (reason.empty() && version.state != VersionState::kServing) {
      reason = absl::StrCat(std::string(Name(version.state)), version.stage.empty() ? "" : ": ",
                            version.stage);
    }
    model.set_reason(reason);
  }
  if (only_ready || context.config.model_repository.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<RepositoryEntry> entries,
                   ScanRepository(context.config.model_repository));
  for (const RepositoryEntry& entry : entries) {
    const bool known = std::any_of(versions.begin(), versions.end(),
                                   [&](const auto& v) { return v.name == entry.name; });
    if (known) continue;
    auto& model = *response.add_models();
    model.set_name(entry.name);
    model.set_version(absl::StrCat(entry.version));
    model.set_state("UNAVAILABLE");
    model.set_reason("not loaded");
  }
  return absl::OkStatus();
}

absl::Status FillStatistics(ServiceContext& context,
                            const inference::ModelStatisticsRequest& request,
                            inference::ModelStatisticsResponse& response) {
  ASSIGN_OR_RETURN(const VersionSelector wanted, ParseVersion(request.version()));
  for (const VersionInfo& info : context.registry.List()) {
    if (!request.name().empty() && info.name != request.name()) continue;
    if (wanted.number != 0 && info.version != wanted.number) continue;
    if (!wanted.label.empty() && info.label != wanted.label) continue;
    if (info.state != VersionState::kServing && info.state != VersionState::kDraining) continue;
    *response.add_model_stats() = context.statistics.Get(info.name, info.version);
    auto& memory = *response.mutable_model_stats()->rbegin()->add_memory_usage();
    memory.set_type("CPU");
    memory.set_byte_size(info.weight_bytes + info.kv_bytes + info.workspace_bytes);
  }
  if (response.model_stats_size() == 0 && !request.name().empty()) {
    return AcquireModel(context, request.name(), wanted).status();
  }
  return absl::OkStatus();
}

}  // namespace

Unary* OpenInferenceService::ServerLive(Context* context, const inference::ServerLiveRequest*,
                                        inference::ServerLiveResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  response->set_live(true);
  return Reply(context, absl::OkStatus());
}

Unary* OpenInferenceService::ServerReady(Context* context, const inference::ServerReadyRequest*,
                                         inference::ServerReadyResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  response->set_ready(context_.readiness.ready());
  return Reply(context, absl::OkStatus());
}

Unary* OpenInferenceService::ModelReady(Context* context,
                                        const inference::ModelReadyRequest* request,
                                        inference::ModelReadyResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  const absl::StatusOr<VersionSelector> version = ParseVersion(request->version());
  if (!version.ok()) return Reply(context, version.status());
  response->set_ready(!context_.gate.closed() &&
                      context_.registry.Acquire(request->name(), *version).ok());
  return Reply(context, absl::OkStatus());
}

Unary* OpenInferenceService::ServerMetadata(Context* context,
                                            const inference::ServerMetadataRequest*,
                                            inference::ServerMetadataResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  response->set_name("assay");
  response->set_version(std::string(kServerVersion));
  for (const std::string& extension : Extensions()) response->add_extensions(extension);
  return Reply(context, absl::OkStatus());
}

Unary* OpenInferenceService::ModelMetadata(Context* context,
                                           const inference::ModelMetadataRequest* request,
                                           inference::ModelMetadataResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  const auto describe = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const VersionSelector version, ParseVersion(request->version()));
    ASSIGN_OR_RETURN(const std::shared_ptr<Servable> servable,
                     AcquireModel(context_, request->name(), version));
    *response = DescribeMetadata(*servable, context_.registry.List());
    return absl::OkStatus();
  };
  return Reply(context, describe());
}

Unary* OpenInferenceService::ModelConfig(Context* context,
                                         const inference::ModelConfigRequest* request,
                                         inference::ModelConfigResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  const auto describe = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const VersionSelector version, ParseVersion(request->version()));
    ASSIGN_OR_RETURN(const std::shared_ptr<Servable> servable,
                     AcquireModel(context_, request->name(), version));
    *response->mutable_config() = DescribeConfig(*servable, context_.config.engine.max_queue);
    return absl::OkStatus();
  };
  return Reply(context, describe());
}

Unary* OpenInferenceService::ModelStatistics(Context* context,
                                             const inference::ModelStatisticsRequest* request,
                                             inference::ModelStatisticsResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kObserve)) return refused;
  return Reply(context, FillStatistics(context_, *request, *response));
}

Unary* OpenInferenceService::ModelInfer(Context* context,
                                        const inference::ModelInferRequest* request,
                                        inference::ModelInferResponse* response) {
  Caller caller{context};
  if (auto* refused = Refuse<Unary>(context_, caller, Role::kInfer)) return refused;
  return new InferReactor(context_, caller, *request, response);
}

grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>*
OpenInferenceService::ModelStreamInfer(Context* context) {
  Caller caller{context};
  if (auto* refused = Refuse<grpc::ServerBidiReactor<inference::ModelInferRequest,
                                                     inference::ModelStreamInferResponse>>(
          context_, caller, Role::kInfer))
    return refused;
  auto* stream = new StreamInferReactor(context_, *this, std::move(caller));
  bool draining = false;
  {
    MutexLock lock(mu_);
    streams_.insert(stream);
    draining = draining_;
  }
  if (draining) stream->Drain();
  return stream;
}

void OpenInferenceService::Drain() {
  // Under the lock, which Forget takes: no stream can go away meanwhile.
  MutexLock lock(mu_);
  draining_ = true;
  for (StreamInferReactor* stream : streams_) stream->Drain();
}

int OpenInferenceService::open_streams() {
  MutexLock lock(mu_);
  return static_cast<int>(std::count_if(streams_.begin(), streams_.end(),
                                        [](StreamInferReactor* s) { return s->open(); }));
}

void OpenInferenceService::Forget(StreamInferReactor* stream) {
  MutexLock lock(mu_);
  streams_.erase(stream);
}

Unary* OpenInferenceService::RepositoryIndex(Context* context,
                                             const inference::RepositoryIndexRequest* request,
                                             inference::RepositoryIndexResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kObserve)) return refused;
  return Reply(context, FillIndex(context_, request->ready(), *response));
}

Unary* OpenInferenceService::RepositoryModelLoad(
    Context* context, const inference::RepositoryModelLoadRequest* request,
    inference::RepositoryModelLoadResponse*) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kAdmin)) return refused;
  const absl::StatusOr<std::string> scheme = SchemeOf(*request);
  if (!scheme.ok()) return Reply(context, scheme.status());
  auto* reactor = new DeferredReactor(context);
  const auto complete = reactor->Completion();
  const absl::StatusOr<int64_t> version =
      admin_.Load(ModelOf(*request), *scheme, [complete](const AdmissionProgress& progress) {
        if (progress.done) complete(AdmissionOutcome(progress));
      });
  if (!version.ok()) {
    // Loading what serves already is fine, as it is with Triton.
    const bool serves = absl::IsAlreadyExists(version.status()) &&
                        context_.registry.Acquire(ModelOf(*request)).ok();
    reactor->Complete(serves ? absl::OkStatus() : version.status());
  }
  return reactor;
}

Unary* OpenInferenceService::RepositoryModelUnload(
    Context* context, const inference::RepositoryModelUnloadRequest* request,
    inference::RepositoryModelUnloadResponse*) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kAdmin)) return refused;
  auto* reactor = new DeferredReactor(context);
  admin_.Unload(ModelOf(*request), reactor->Completion());
  return reactor;
}

Unary* OpenInferenceService::SystemSharedMemoryStatus(
    Context* context, const inference::SystemSharedMemoryStatusRequest*,
    inference::SystemSharedMemoryStatusResponse*) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  return Reply(context, NoSharedMemory());
}
Unary* OpenInferenceService::SystemSharedMemoryRegister(
    Context* context, const inference::SystemSharedMemoryRegisterRequest*,
    inference::SystemSharedMemoryRegisterResponse*) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  return Reply(context, NoSharedMemory());
}
Unary* OpenInferenceService::SystemSharedMemoryUnregister(
    Context* context, const inference::SystemSharedMemoryUnregisterRequest*,
    inference::SystemSharedMemoryUnregisterResponse*) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  return Reply(context, NoSharedMemory());
}
Unary* OpenInferenceService::CudaSharedMemoryStatus(Context* context,
                                                    const inference::CudaSharedMemoryStatusRequest*,
                                                    inference::CudaSharedMemoryStatusResponse*) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  return Reply(context, NoSharedMemory());
}
Unary* OpenInferenceService::CudaSharedMemoryRegister(
    Context* context, const inference::CudaSharedMemoryRegisterRequest*,
    inference::CudaSharedMemoryRegisterResponse*) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  return Reply(context, NoSharedMemory());
}
Unary* OpenInferenceService::CudaSharedMemoryUnregister(
    Context* context, const inference::CudaSharedMemoryUnregisterRequest*,
    inference::CudaSharedMemoryUnregisterResponse*) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kInfer)) return refused;
  return Reply(context, NoSharedMemory());
}

Unary* OpenInferenceService::TraceSetting(Context* context,
                                          const inference::TraceSettingRequest* request,
                                          inference::TraceSettingResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kObserve)) return refused;
  if (!request->settings().empty()) {
    return Reply(context, absl::UnimplementedError("trace settings cannot be changed"));
  }
  const std::pair<const char*, const char*> settings[] = {{"trace_level", "OFF"},
                                                          {"trace_rate", "1000"},
                                                          {"trace_count", "-1"},
                                                          {"log_frequency", "0"},
                                                          {"trace_file", ""}};
  for (const auto& [key, value] : settings) {
    (*response->mutable_settings())[key].add_value(value);
  }
  return Reply(context, absl::OkStatus());
}

Unary* OpenInferenceService::LogSettings(Context* context,
                                         const inference::LogSettingsRequest* request,
                                         inference::LogSettingsResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kObserve)) return refused;
  if (!request->settings().empty()) {
    return Reply(context, absl::UnimplementedError(
                              "log settings are set where the server is configured: log_level"));
  }
  auto& settings = *response->mutable_settings();
  const LogLevel level = context_.config.log_level;
  settings["log_file"].set_string_param("");
  settings["log_info"].set_bool_param(level <= LogLevel::kInfo);
  settings["log_warning"].set_bool_param(level <= LogLevel::kWarning);
  settings["log_error"].set_bool_param(true);
  settings["log_verbose_level"].set_uint32_param(level == LogLevel::kDebug ? 1 : 0);
  settings["log_format"].set_string_param("ISO8601");
  return Reply(context, absl::OkStatus());
}

}  // namespace assay
