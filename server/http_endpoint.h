// The HTTP port: GET /metrics (Prometheus text 0.0.4), /healthz (the process lives), /readyz (200,
// or 503 with one line per obstacle). Served by civetweb on threads of its own, so that a saturated
// server still answers. The library is confined to the .cc.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace assay {

class HttpEndpoint {
 public:
  struct Sources {  // called on the endpoint's threads
    std::function<std::string()> metrics;
    std::function<std::vector<std::string>()> obstacles;  // empty = ready
  };
  // Port 0 takes a free one. Unavailable: the address cannot be bound (says why).
  static absl::StatusOr<std::unique_ptr<HttpEndpoint>> Start(const std::string& address, int port,
                                                             Sources sources);
  ~HttpEndpoint();  // finishes the requests under way
  int port() const { return port_; }

 private:
  struct Server;
  HttpEndpoint() = default;
  std::unique_ptr<Server> server_;
  int port_ = 0;
};

}  // namespace assay
