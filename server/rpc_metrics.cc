#include "server/rpc_metrics.h"

#include <google/protobuf/descriptor.h>

#include <string>
#include <string_view>
#include <utility>

#include "proto/assay/v1/assay.pb.h"
#include "proto/health/v1/health.pb.h"
#include "proto/open_inference/grpc_service.pb.h"

namespace assay {
namespace {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::ServerRpcInfo;

std::string_view TypeName(ServerRpcInfo::Type type) {
  switch (type) {
    case ServerRpcInfo::Type::UNARY:
      return "unary";
    case ServerRpcInfo::Type::CLIENT_STREAMING:
      return "client_stream";
    case ServerRpcInfo::Type::SERVER_STREAMING:
      return "server_stream";
    case ServerRpcInfo::Type::BIDI_STREAMING:
      return "bidi_stream";
  }
  return "unary";
}

std::string_view TypeName(const google::protobuf::MethodDescriptor& method) {
  if (method.client_streaming()) return method.server_streaming() ? "bidi_stream" : "client_stream";
  return method.server_streaming() ? "server_stream" : "unary";
}

// Names of gRPC's codes as the metrics of other servers spell them.
std::string_view CodeName(grpc::StatusCode code) {
  constexpr std::string_view kNames[] = {
      "OK",       "Canceled",       "Unknown",          "InvalidArgument",   "DeadlineExceeded",
      "NotFound", "AlreadyExists",  "PermissionDenied", "ResourceExhausted", "FailedPrecondition",
      "Aborted",  "OutOfRange",     "Unimplemented",    "Internal",          "Unavailable",
      "DataLoss", "Unauthenticated"};
  return static_cast<size_t>(code) < std::size(kNames) ? kNames[code] : "Unknown";
}

// One per RPC; gRPC calls it from one thread at a time.
class RpcObserver final : public grpc::experimental::Interceptor {
 public:
  RpcObserver(Metrics& metrics, const Clock& clock, const ServerRpcInfo& info)
      : metrics_(metrics), clock_(clock), type_(TypeName(info.type())), begin_(clock.Now()) {
    // "/inference.GRPCInferenceService/ModelInfer"
    std::string_view path = info.method();
    path.remove_prefix(1);
    const size_t slash = path.find('/');
    service_ = path.substr(0, slash);
    method_ = path.substr(slash + 1);
    metrics_.RpcStarted(service_, method_, type_);
  }
  ~RpcObserver() override { Done("Canceled"); }  // what never sent a status was cut

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE) &&
        methods->GetRecvMessage() != nullptr) {
      ++received_;
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_MESSAGE)) ++sent_;
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      Done(CodeName(methods->GetSendStatus().error_code()));
    }
    methods->Proceed();
  }

 private:
  // Counted before the status goes out: who has the answer sees the count.
  void Done(std::string_view code) {
    if (std::exchange(done_, true)) return;
    metrics_.RpcMessages(service_, method_, type_, received_, sent_);
    metrics_.RpcDone(service_, method_, type_, code, clock_.Now() - begin_);
  }

  Metrics& metrics_;
  const Clock& clock_;
  const std::string_view type_;
  const absl::Time begin_;
  std::string_view service_, method_;  // of the registered method: gRPC keeps the text
  int received_ = 0, sent_ = 0;
  bool done_ = false;
};

class RpcObserverFactory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  RpcObserverFactory(Metrics& metrics, const Clock& clock) : metrics_(metrics), clock_(clock) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(ServerRpcInfo* info) override {
    return new RpcObserver(metrics_, clock_, *info);  // gRPC deletes it
  }

 private:
  Metrics& metrics_;
  const Clock& clock_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> NewRpcMetrics(
    Metrics& metrics, const Clock& clock) {
  return std::make_unique<RpcObserverFactory>(metrics, clock);
}

void DeclareRpcs(Metrics& metrics) {
  const google::protobuf::FileDescriptor* const files[] = {
      assay::v1::GenerateRequest::descriptor()->file(),
      inference::ModelInferRequest::descriptor()->file(),
      grpc::health::v1::HealthCheckRequest::descriptor()->file()};
  for (const auto* file : files) {
    for (int s = 0; s < file->service_count(); ++s) {
      const auto& service = *file->service(s);
      for (int m = 0; m < service.method_count(); ++m) {
        metrics.DeclareRpc(service.full_name(), service.method(m)->name(),
                           TypeName(*service.method(m)));
      }
    }
  }
}

}  // namespace assay
