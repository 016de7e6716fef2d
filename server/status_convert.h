// absl::Status <-> grpc::Status: the codes are the same numbers.
#pragma once
#include <grpcpp/grpcpp.h>

#include "absl/time/time.h"
#include "base/status.h"

namespace assay {

// RESOURCE_EXHAUSTED and UNAVAILABLE also tell the client when to come back: trailing metadata
// `grpc-retry-pushback-ms` (gRFC A6). `context` may be null.
grpc::Status ToGrpc(const absl::Status& status, grpc::ServerContextBase* context);
absl::Status FromGrpc(const grpc::Status& status);

// The client's deadline; InfiniteFuture when it set none.
absl::Time DeadlineOf(const grpc::ServerContextBase& context);

}  // namespace assay
