// Who changed what: each call of administration, refused ones too, is one line of the log with the
// client (name of its token, subject of its certificate, address), the method, the model and the
// outcome. No token, and nothing of the request but the model. A gRPC interceptor. Thread-safe.
#pragma once
#include <grpcpp/support/server_interceptor.h>

#include <memory>

#include "server/access.h"
#include "server/front/peer_addresses.h"

namespace assay {

// What is passed outlives the gRPC server.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> NewAuditLog(
    const AccessControl& access, const PeerAddresses& peers);

}  // namespace assay
