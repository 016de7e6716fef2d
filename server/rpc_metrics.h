// Counts every RPC of every service (grpc_server_*), and tells the watch for clients that do not
// read: a gRPC interceptor. Thread-safe.
#pragma once
#include <grpcpp/support/server_interceptor.h>

#include <memory>

#include "base/clock.h"
#include "engine/metrics.h"
#include "server/unread_watch.h"

namespace assay {

// Makes the series of all methods of our services and of reflection, where it is linked. Methods
// that no service has count together: grpc_service, grpc_method and grpc_type are "_unknown".
// What is passed outlives the gRPC server.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> NewRpcMetrics(
    Metrics& metrics, const Clock& clock, UnreadWatch& unread);

}  // namespace assay
