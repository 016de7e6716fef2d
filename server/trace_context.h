// The trace that a request belongs to, from its W3C `traceparent`
// (https://www.w3.org/TR/trace-context). Pure functions. What is malformed is as if it were not
// there: tracing never fails a request.
#pragma once
#include <grpcpp/server_context.h>

#include <string_view>

#include "engine/metrics.h"

namespace assay {

// None: not a traceparent, or of a trace that is not sampled, which nobody could look up.
TraceId ParseTraceparent(std::string_view header);

// None, too, when the request has several.
TraceId TraceOf(const grpc::ServerContextBase& rpc);

}  // namespace assay
