// The HTTP port: GET /metrics (Prometheus text or OpenMetrics, as Accept says), /healthz (the
// process lives), /readyz (200, or 503 with one line per obstacle). Served by civetweb on threads
// of its own, so that a saturated server still answers; it listens on a port of loopback, which
// serves nobody but the Front that clients see (docs/adr/0015-*.md). Other paths are asked of
// `Sources::page` (server/status_page.h). The library is confined to the .cc.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/metrics.h"
#include "server/front/front.h"

namespace assay {

// An answer; it may use nothing but what stands in it (kPageSecurity).
struct HttpPage {
  int code = 200;
  std::string type, body;
};

class HttpEndpoint {
 public:
  struct Sources {  // called on the endpoint's threads
    std::function<std::string(ExpositionFormat)> metrics;
    std::function<std::vector<std::string>()> obstacles;  // empty = ready
    // As in the request, still percent-encoded; nothing: no such path. May be empty.
    std::function<std::optional<HttpPage>(std::string_view path)> page;
    // Whether the sender of this `authorization` (empty: none) may see anything but /healthz and
    // whether it is ready: Unauthenticated, PermissionDenied. May be empty: all may.
    std::function<absl::Status(const std::string& authorization)> allowed;
  };
  struct Place {
    std::string address;
    int port = 0;  // 0: a free one
    // For HTTP/1.1; civetweb's own finds no OpenSSL 3. Null: plain.
    std::shared_ptr<const TlsStore> tls = nullptr;
    FrontLimits limits = {};
  };
  // Unavailable: the address cannot be bound (says why).
  static absl::StatusOr<std::unique_ptr<HttpEndpoint>> Start(const Place& place, Sources sources);
  ~HttpEndpoint();  // finishes the requests under way
  int port() const;
  FrontCounts counts() const;  // of its connections

  struct Server;  // of the .cc

 private:
  HttpEndpoint() = default;
  absl::Status ListenInside();  // civetweb

  std::unique_ptr<Server> server_;
};

}  // namespace assay
