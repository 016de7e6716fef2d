// absl::Status <-> grpc::Status: the codes are the same numbers.
#pragma once
#include <grpcpp/grpcpp.h>

#include "absl/time/time.h"
#include "base/clock.h"
#include "base/status.h"

namespace assay {

// RESOURCE_EXHAUSTED and UNAVAILABLE also tell the client when to come back: trailing metadata
// `grpc-retry-pushback-ms` (gRFC A6), RetryAfter of `status` if it has one. `context` may be null.
grpc::Status ToGrpc(const absl::Status& status, grpc::ServerContextBase* context);
absl::Status FromGrpc(const grpc::Status& status);

// The client's deadline, in the time of `clock`; InfiniteFuture when it set none.
absl::Time DeadlineOf(const grpc::ServerContextBase& context, const Clock& clock);

// gRPC cancels an RPC whose deadline passes, and so does the client, somewhat earlier: the timeout
// that it sends is rounded up (by at most 1%) and travels. True when a cancellation at `now` is
// that: it is left to the engine, which ends the request as expired at the deadline.
bool IsExpiry(absl::Time arrival, absl::Time deadline, absl::Time now);

// What ends a request that waited on our side, before work on it begins: Cancelled when the client
// went away, DeadlineExceeded when `deadline` has come.
absl::Status CheckWanted(bool cancelled, absl::Time deadline, absl::Time now);

}  // namespace assay
