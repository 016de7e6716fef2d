#include "server/http_endpoint.h"

#include <civetweb.h>

#include <cstring>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/metrics_format.h"

namespace assay {

struct HttpEndpoint::Server {
  Sources sources;
  std::string first_error;  // written by civetweb while it starts, on the thread that starts it
  mg_context* context = nullptr;
};

namespace {

// Inline style and script, and the page itself again; nothing else, from nowhere else.
constexpr const char* kPageSecurity =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

void Send(mg_connection* connection, int code, const char* type, const std::string& body,
          bool with_body) {
  const char* reason = code == 200   ? "OK"
                       : code == 405 ? "Method Not Allowed"
                       : code == 404 ? "Not Found"
                                     : "Service Unavailable";
  mg_printf(
      connection,
      "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n"
      "Content-Security-Policy: %s\r\nX-Content-Type-Options: nosniff\r\n"
      "Connection: close\r\n\r\n",
      code, reason, type, body.size(), kPageSecurity);
  if (with_body) mg_write(connection, body.data(), body.size());
}

int Handle(mg_connection* connection, void* data) {
  const HttpEndpoint::Sources& sources = *static_cast<HttpEndpoint::Sources*>(data);
  constexpr const char* kText = "text/plain; charset=utf-8";
  const mg_request_info* request = mg_get_request_info(connection);
  const std::string_view method = request->request_method, path = request->local_uri;
  const bool head = method == "HEAD";
  if (method != "GET" && !head) {
    Send(connection, 405, kText, "only GET and HEAD\n", true);
  } else if (path == "/metrics") {
    const char* accept = mg_get_header(connection, "Accept");
    const ExpositionFormat format = NegotiateMetricsFormat(accept == nullptr ? "" : accept);
    Send(connection, 200, ContentType(format), sources.metrics(format), !head);
  } else if (path == "/healthz") {
    Send(connection, 200, kText, "ok\n", !head);
  } else if (path == "/readyz") {
    const std::vector<std::string> obstacles = sources.obstacles();
    const bool ready = obstacles.empty();
    Send(connection, ready ? 200 : 503, kText,
         ready ? "ready\n" : absl::StrCat("not ready\n", absl::StrJoin(obstacles, "\n"), "\n"),
         !head);
  } else if (const std::optional<HttpPage> page = sources.page ? sources.page(path) : std::nullopt;
             page.has_value()) {
    Send(connection, page->code, page->type.c_str(), page->body, !head);
  } else {
    Send(connection, 404, kText, "here are / (status), /metrics, /healthz and /readyz\n", !head);
  }
  return 1;  // handled
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Start(const std::string& address,
                                                                  int port, Sources sources) {
  auto endpoint = std::unique_ptr<HttpEndpoint>(new HttpEndpoint());
  endpoint->server_ = std::make_unique<Server>();
  Server& server = *endpoint->server_;
  server.sources = std::move(sources);
  mg_init_library(0);
  mg_callbacks callbacks{};
  callbacks.log_message = [](const mg_connection* connection, const char* message) {
    auto* data = mg_get_user_data(mg_get_context(connection));
    auto* server = static_cast<Server*>(data);
    if (server != nullptr && server->first_error.empty()) server->first_error = message;
    return 1;  // not to its own log
  };
  const std::string host = address == "localhost" ? "127.0.0.1" : address;
  const std::string listen = absl::StrCat(host, ":", port);
  // A scraper that reads slowly, or a connection that asks nothing, must not keep the probes
  // waiting: a thread for each of several such, and little patience with them.
  const char* options[] = {"listening_ports",
                           listen.c_str(),
                           "num_threads",
                           "16",
                           "request_timeout_ms",
                           "2000",
                           "enable_keep_alive",
                           "no",
                           "decode_url",
                           "no",
                           nullptr};
  server.context = mg_start(&callbacks, &server, options);
  if (server.context == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen for HTTP on ", listen, ": ",
                     server.first_error.empty() ? "is the port in use?" : server.first_error));
  }
  mg_server_port bound[1];
  std::memset(bound, 0, sizeof(bound));
  if (mg_get_server_ports(server.context, 1, bound) == 1) endpoint->port_ = bound[0].port;
  mg_set_request_handler(server.context, "/", Handle, &server.sources);
  return endpoint;
}

HttpEndpoint::~HttpEndpoint() {
  if (server_->context != nullptr) mg_stop(server_->context);
  mg_exit_library();
}

}  // namespace assay
