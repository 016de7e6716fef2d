#include "server/audit_log.h"

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "base/log.h"
#include "proto/assay/v1/assay.pb.h"
#include "proto/open_inference/grpc_service.pb.h"

namespace assay {
namespace {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::ServerRpcInfo;

constexpr size_t kMostBytes = 256;  // of what a client has named, and of an error

template <typename Request>
std::string NameOf(const void* message) {
  const auto& request = *static_cast<const Request*>(message);
  if constexpr (requires { request.repository_name(); }) {
    return request.model_name().empty() ? request.repository_name() : request.model_name();
  } else if constexpr (requires { request.path(); }) {
    return request.name().empty() ? request.path() : request.name();
  } else {
    return request.model();
  }
}

struct Audited {
  std::string_view path;
  std::string (*model)(const void* message);
};
constexpr Audited kAudited[] = {
    {"/assay.v1.AssayService/Admit", NameOf<assay::v1::AdmitRequest>},
    {"/assay.v1.AssayService/SetCanaryShare", NameOf<assay::v1::SetCanaryShareRequest>},
    {"/assay.v1.AssayService/Promote", NameOf<assay::v1::PromoteRequest>},
    {"/assay.v1.AssayService/RollBack", NameOf<assay::v1::RollBackRequest>},
    {"/assay.v1.AssayService/DropCanary", NameOf<assay::v1::DropCanaryRequest>},
    {"/inference.GRPCInferenceService/RepositoryModelLoad",
     NameOf<inference::RepositoryModelLoadRequest>},
    {"/inference.GRPCInferenceService/RepositoryModelUnload",
     NameOf<inference::RepositoryModelUnloadRequest>},
};

const Audited* Find(std::string_view path) {
  for (const Audited& one : kAudited)
    if (one.path == path) return &one;
  return nullptr;
}

// One per RPC; gRPC calls it from one thread at a time.
class Auditor final : public grpc::experimental::Interceptor {
 public:
  struct Sources {
    const AccessControl& access;
    const PeerAddresses& peers;
  };
  Auditor(const Sources& sources, const Audited& audited, ServerRpcInfo& rpc)
      : sources_(sources), audited_(audited), rpc_(rpc) {}
  ~Auditor() override {
    Done(grpc::Status(grpc::CANCELLED, "the client went away; what has begun goes on"));
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE)) {
      if (const void* const message = methods->GetRecvMessage(); message != nullptr)
        model_ = audited_.model(message);
      // Now: at the end the metadata and the connection may be gone.
      client_ = sources_.access.ClientOf(*rpc_.server_context());
      peer_ = sources_.peers.Find(rpc_.server_context()->peer());
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS))
      Done(methods->GetSendStatus());
    methods->Proceed();
  }

 private:
  void Done(const grpc::Status& status) {
    if (std::exchange(done_, true)) return;
    const auto code = static_cast<absl::StatusCode>(status.error_code());
    Log(status.ok() ? LogLevel::kInfo : LogLevel::kWarning, "administration",
        {{"client", client_},
         {"certificate", peer_.subject},
         {"peer", peer_.address},
         {"method", std::string(audited_.path.substr(audited_.path.rfind('/') + 1))},
         {"model", model_.substr(0, kMostBytes)},
         {"outcome", absl::StatusCodeToString(code)},
         {"reason", status.error_message().substr(0, kMostBytes)}});
  }

  const Sources& sources_;
  const Audited& audited_;
  ServerRpcInfo& rpc_;
  std::string model_, client_;
  PeerAddresses::Peer peer_;
  bool done_ = false;
};

class AuditorFactory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit AuditorFactory(const Auditor::Sources& sources) : sources_(sources) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(ServerRpcInfo* info) override {
    const Audited* const audited = Find(info->method());
    return audited == nullptr ? nullptr : new Auditor(sources_, *audited, *info);  // gRPC deletes
  }

 private:
  const Auditor::Sources sources_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> NewAuditLog(
    const AccessControl& access, const PeerAddresses& peers) {
  return std::make_unique<AuditorFactory>(Auditor::Sources{access, peers});
}

}  // namespace assay
