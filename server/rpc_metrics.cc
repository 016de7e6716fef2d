#include "server/rpc_metrics.h"

#include <google/protobuf/descriptor.h>
#include <grpcpp/server_context.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "proto/assay/v1/assay.pb.h"
#include "proto/health/v1/health.pb.h"
#include "proto/open_inference/grpc_service.pb.h"

namespace assay {
namespace {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::ServerRpcInfo;

constexpr char kUnknown[] = "_unknown";  // what no service has, as with models that do not exist

std::string_view TypeName(const google::protobuf::MethodDescriptor& method) {
  if (method.client_streaming()) return method.server_streaming() ? "bidi_stream" : "client_stream";
  return method.server_streaming() ? "server_stream" : "unary";
}

// "/inference.GRPCInferenceService/ModelInfer"
std::pair<std::string_view, std::string_view> ServiceAndMethod(std::string_view path) {
  path.remove_prefix(1);
  const size_t slash = path.find('/');
  return {path.substr(0, slash), path.substr(slash + 1)};
}

// By path: of every service that has a file of ours, and of reflection, where gRPC's library with
// it is linked.
std::vector<std::pair<std::string, const google::protobuf::MethodDescriptor*>> ServedMethods() {
  const google::protobuf::DescriptorPool& pool =
      *google::protobuf::DescriptorPool::generated_pool();
  const google::protobuf::ServiceDescriptor* const reflection =
      pool.FindServiceByName("grpc.reflection.v1alpha.ServerReflection");
  const google::protobuf::FileDescriptor* const files[] = {
      assay::v1::GenerateRequest::descriptor()->file(),
      inference::ModelInferRequest::descriptor()->file(),
      grpc::health::v1::HealthCheckRequest::descriptor()->file(),
      reflection == nullptr ? nullptr : reflection->file()};
  std::vector<std::pair<std::string, const google::protobuf::MethodDescriptor*>> methods;
  for (const auto* file : files) {
    for (int s = 0; file != nullptr && s < file->service_count(); ++s) {
      const auto& service = *file->service(s);
      for (int m = 0; m < service.method_count(); ++m) {
        const auto& method = *service.method(m);
        methods.emplace_back(absl::StrCat("/", service.full_name(), "/", method.name()), &method);
      }
    }
  }
  return methods;
}

// One per RPC; gRPC calls it from one thread at a time.
class RpcObserver final : public grpc::experimental::Interceptor {
 public:
  struct Watchers {
    const Clock& clock;
    UnreadWatch& unread;
  };
  RpcObserver(RpcMetrics& metrics, const Watchers& watchers, ServerRpcInfo& rpc)
      : metrics_(metrics), watchers_(watchers), rpc_(rpc), begin_(watchers.clock.Now()) {
    metrics_.Started();
  }
  ~RpcObserver() override {
    if (call_ != nullptr) watchers_.unread.End(call_);
    Done(grpc::CANCELLED);  // what never sent a status was cut
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE) &&
        methods->GetRecvMessage() != nullptr) {
      ++received_;
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_MESSAGE)) {
      ++sent_;
      Sends();
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_SEND_MESSAGE) && !done_) {
      watchers_.unread.End(call_);
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      Done(methods->GetSendStatus().error_code());
      Sends();  // until this is destroyed
    }
    methods->Proceed();
  }

 private:
  void Sends() {
    call_ = rpc_.server_context()->c_call();
    watchers_.unread.Begin(call_, rpc_.method());
  }
  // Counted before the status goes out: who has the answer sees the count.
  void Done(grpc::StatusCode code) {
    if (std::exchange(done_, true)) return;
    metrics_.Done(code, watchers_.clock.Now() - begin_, received_, sent_);
  }

  RpcMetrics& metrics_;
  const Watchers& watchers_;
  ServerRpcInfo& rpc_;
  const absl::Time begin_;
  grpc_call* call_ = nullptr;  // once it has sent
  int received_ = 0, sent_ = 0;
  bool done_ = false;
};

class RpcObserverFactory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  RpcObserverFactory(Metrics& metrics, const RpcObserver::Watchers& watchers)
      : watchers_(watchers), unknown_(metrics.ForRpc(kUnknown, kUnknown, kUnknown)) {
    for (const auto& [path, method] : ServedMethods()) {
      const auto [service, name] = ServiceAndMethod(path);
      known_.emplace(path, &metrics.ForRpc(service, name, TypeName(*method)));
    }
  }
  grpc::experimental::Interceptor* CreateServerInterceptor(ServerRpcInfo* info) override {
    return new RpcObserver(Find(*info), watchers_, *info);  // gRPC deletes it
  }

 private:
  // A path is the client's text: as a label it would make series without bound.
  RpcMetrics& Find(const ServerRpcInfo& info) const {
    const auto it = known_.find(info.method());
    return it == known_.end() ? unknown_ : *it->second;
  }

  const RpcObserver::Watchers watchers_;
  RpcMetrics& unknown_;
  absl::flat_hash_map<std::string, RpcMetrics*> known_;  // by path; only read
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> NewRpcMetrics(
    Metrics& metrics, const Clock& clock, UnreadWatch& unread) {
  return std::make_unique<RpcObserverFactory>(metrics, RpcObserver::Watchers{clock, unread});
}

}  // namespace assay
