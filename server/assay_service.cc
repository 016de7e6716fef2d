#include "server/assay_service.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "server/admin_reactors.h"
#include "server/banner.h"
#include "server/embed_reactor.h"
#include "server/generate_reactor.h"
#include "server/model_description.h"
#include "server/prompts.h"
#include "server/reactors.h"

namespace assay {
namespace {

// Chat templates are recognised by trying one.
bool HasChatTemplate(const Servable& servable) {
  const std::vector<ChatMessage> probe{{"user", "x"}};
  return servable.spec.task == ModelTask::kGenerate && servable.tokenizer != nullptr &&
         servable.tokenizer->ApplyChatTemplate(probe).ok();
}

assay::v1::ModelSummary Summarize(const ModelRegistry& registry, const VersionInfo& info) {
  assay::v1::ModelSummary out;
  out.set_name(info.name);
  out.set_version(info.version);
  out.set_state(std::string(Name(info.state)));
  out.set_stage(info.stage);
  out.set_reason(info.reason);
  out.set_path(info.path);
  out.set_weight_bytes(info.weight_bytes);
  out.set_kv_bytes(info.kv_bytes);
  out.set_workspace_bytes(info.workspace_bytes);
  out.set_waiting(info.load.waiting);
  out.set_running(info.load.running);
  out.set_label(info.label);
  out.set_traffic_share(info.traffic_share);
  out.set_changed(absl::FormatTime(absl::RFC3339_sec, info.changed, absl::UTCTimeZone()));
  if (info.report != nullptr) {
    out.set_precision(ServedPrecision(*info.report));
    out.set_bytes_f32(info.report->bytes_f32);
    out.set_fallback_fraction(info.report->fallback_fraction);
  }
  if (info.state != VersionState::kServing) return out;
  const auto servable = registry.Acquire(info.name, info.version);
  if (servable.ok()) {
    out.set_task(std::string(Name((*servable)->spec.task)));
    out.set_has_chat_template(HasChatTemplate(**servable));
  }
  return out;
}

absl::Status FillReport(const ModelRegistry& registry, const assay::v1::GetReportRequest& request,
                        assay::v1::GetReportResponse& response) {
  ASSIGN_OR_RETURN(const VersionInfo info, registry.Find(request.model(), request.version()));
  if (info.report == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("model '", info.name, "' version ", info.version, " has no report yet: it is ",
                     std::string(Name(info.state)), info.reason.empty() ? "" : ": ", info.reason));
  }
  const int columns = request.columns() == 0 ? 100 : std::clamp(request.columns(), 40, 400);
  response.set_report_json(ToJson(*info.report).dump());
  response.set_report_text(ToTerminalText(*info.report, columns));
  return absl::OkStatus();
}

absl::Status Explain(const ServiceContext& context, const assay::v1::ExplainPolicyRequest& request,
                     assay::v1::ExplainPolicyResponse& response) {
  const Policy& policy = context.policy;
  HardwareInfo hardware = DescribeHardware(context.gpus);
  if (!request.hardware_json().empty()) {
    ASSIGN_OR_RETURN(hardware, HardwareFromJson(request.hardware_json()));
  }
  ASSIGN_OR_RETURN(const PolicyDecision decision,
                   policy.Choose(hardware, request.model_bytes_f32()));
  response.set_rule(decision.rule);
  response.set_device(decision.device);
  response.set_recipe(decision.recipe.name);
  response.set_scheme(decision.recipe.scheme);
  response.set_activation(std::string(Name(decision.recipe.activation)));
  for (const std::string& line : decision.trace) response.add_trace(line);
  response.set_hardware_json(ToJson(hardware).dump());
  response.set_origin(policy.origin());
  return absl::OkStatus();
}

template <typename Request>
absl::StatusOr<std::shared_ptr<Servable>> AcquireWithTokenizer(ServiceContext& context,
                                                               const Request& request) {
  ASSIGN_OR_RETURN(const VersionSelector version,
                   VersionSelector::Create(request.version(), request.version_label()));
  ASSIGN_OR_RETURN(std::shared_ptr<Servable> servable,
                   AcquireModel(context, request.model(), version));
  RETURN_IF_ERROR(CheckTokenizer(*servable));
  return servable;
}

}  // namespace

grpc::ServerWriteReactor<assay::v1::GenerateResponse>* AssayServiceImpl::Generate(
    Context* context, const assay::v1::GenerateRequest* request) {
  Caller caller{context};
  if (auto* refused = Refuse<grpc::ServerWriteReactor<assay::v1::GenerateResponse>>(
          context_, caller, Role::kInfer))
    return refused;
  return new GenerateReactor(context_, *request, std::move(caller));
}

AssayServiceImpl::Unary* AssayServiceImpl::Embed(Context* context,
                                                 const assay::v1::EmbedRequest* request,
                                                 assay::v1::EmbedResponse* response) {
  Caller caller{context};
  if (auto* refused = Refuse<Unary>(context_, caller, Role::kInfer)) return refused;
  return new EmbedReactor(context_, *request, response, std::move(caller));
}

AssayServiceImpl::Unary* AssayServiceImpl::Tokenize(Context* context,
                                                    const assay::v1::TokenizeRequest* request,
                                                    assay::v1::TokenizeResponse* response) {
  return RunOnText(context, request->text().size(), [this, request, response]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto servable, AcquireWithTokenizer(context_, *request));
    RETURN_IF_ERROR(CheckTotalBytes(request->text().size()));
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                     servable->tokenizer->Encode(request->text(), !request->no_special(),
                                                 request->parse_special()));
    for (const int32_t id : ids) {
      response->add_ids(id);
      response->add_tokens(std::string(servable->tokenizer->TokenText(id)));
    }
    return absl::OkStatus();
  });
}

AssayServiceImpl::Unary* AssayServiceImpl::Detokenize(Context* context,
                                                      const assay::v1::DetokenizeRequest* request,
                                                      assay::v1::DetokenizeResponse* response) {
  return RunOnText(context, request->ByteSizeLong(), [this, request, response]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto servable, AcquireWithTokenizer(context_, *request));
    const std::vector<int32_t> ids(request->ids().begin(), request->ids().end());
    ASSIGN_OR_RETURN(*response->mutable_text(),
                     servable->tokenizer->Decode(ids, !request->keep_special()));
    return absl::OkStatus();
  });
}

AssayServiceImpl::Unary* AssayServiceImpl::RunOnText(Context* context, size_t bytes,
                                                     std::function<absl::Status()> work) {
  Caller caller{context};
  if (auto* refused = Refuse<Unary>(context_, caller, Role::kInfer)) return refused;
  absl::StatusOr<WorkGate::Ticket> gate = context_.gate.Enter();
  if (!gate.ok()) return Reply(context, gate.status());
  absl::StatusOr<Quotas::Ticket> quota = context_.quotas.Enter(caller.origin.client);
  if (!quota.ok()) return Reply(context, quota.status());
  struct Held {  // until the answer is given
    WorkGate::Ticket gate;
    Quotas::Ticket quota;
  };
  const auto held = std::make_shared<Held>(Held{*std::move(gate), *std::move(quota)});
  Unary* reactor = context->DefaultReactor();
  const absl::Time deadline = caller.origin.deadline;
  const absl::Status taken =
      context_.texts.Run(bytes, [this, context, reactor, deadline, held, work = std::move(work)] {
        absl::Status status = CheckWanted(context->IsCancelled(), deadline, context_.clock.Now());
        if (status.ok()) status = work();
        reactor->Finish(ToGrpc(status, context));
      });
  if (!taken.ok()) reactor->Finish(ToGrpc(taken, context));
  return reactor;
}

grpc::ServerWriteReactor<assay::v1::AdmitProgress>* AssayServiceImpl::Admit(
    Context* context, const assay::v1::AdmitRequest* request) {
  if (auto* refused = Refuse<grpc::ServerWriteReactor<assay::v1::AdmitProgress>>(context_, context,
                                                                                 Role::kAdmin))
    return refused;
  return new AdmitReactor(admin_, *request, context);
}

AssayServiceImpl::Unary* AssayServiceImpl::ListModels(Context* context,
                                                      const assay::v1::ListModelsRequest*,
                                                      assay::v1::ListModelsResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kObserve)) return refused;
  for (const VersionInfo& info : context_.registry.List()) {
    *response->add_models() = Summarize(context_.registry, info);
  }
  response->set_server_version(std::string(kServerVersion));
  response->set_hardware(HardwareLine(DescribeHardware(context_.gpus)));
  response->set_draining(context_.gate.closed());
  response->set_ready(context_.readiness.ready());
  return Reply(context, absl::OkStatus());
}

AssayServiceImpl::Unary* AssayServiceImpl::GetReport(Context* context,
                                                     const assay::v1::GetReportRequest* request,
                                                     assay::v1::GetReportResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kObserve)) return refused;
  return Reply(context, FillReport(context_.registry, *request, *response));
}

AssayServiceImpl::Unary* AssayServiceImpl::ExplainPolicy(
    Context* context, const assay::v1::ExplainPolicyRequest* request,
    assay::v1::ExplainPolicyResponse* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kObserve)) return refused;
  return Reply(context, Explain(context_, *request, *response));
}

}  // namespace assay
