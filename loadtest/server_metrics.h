// The server's own figures, from its /metrics, beside what the clients see.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace assay::load {

struct ServerSample {
  double at_s = 0;  // since the start of the run
  std::optional<double> resident_bytes, pending, running, cpu_seconds;
  std::map<std::string, double> requests;  // assay_inference_requests_total by outcome, all models
};

// Of Prometheus' text or OpenMetrics; what the server does not have stays absent.
ServerSample ParseServerMetrics(std::string_view text);

// GET http://ADDRESS/metrics; `address` is HOST:PORT. Blocks, for some seconds at most.
// InvalidArgument: not HOST:PORT; Unavailable: no answer, or not 200.
absl::StatusOr<ServerSample> ScrapeServer(const std::string& address);

}  // namespace assay::load
