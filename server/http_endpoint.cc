#include "server/http_endpoint.h"

#include <arpa/inet.h>
#include <civetweb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/mutex.h"
#include "server/metrics_format.h"

namespace assay {

struct HttpEndpoint::Server {
  // Requests under way are finished while everything that they may ask is there.
  ~Server() { Stop(); }
  void Stop() {
    if (context != nullptr) mg_stop(context);
    context = nullptr;
    front = nullptr;
  }
  // A connection to civetweb; negative: it takes none.
  int ConnectInside() ABSL_LOCKS_EXCLUDED(mu);
  // Whether the Front has opened the connection from this port of loopback; for its one question.
  bool TakeRelayed(int port) ABSL_LOCKS_EXCLUDED(mu) {
    const MutexLock lock(mu);
    return relayed.erase(port) > 0;
  }

  Sources sources;
  std::shared_ptr<const TlsStore> tls;
  Mutex mu;
  std::set<int> relayed ABSL_GUARDED_BY(mu);
  int inside_port = 0;
  std::unique_ptr<Front> front;
  std::string first_error;  // written by civetweb while it starts, on the thread that starts it
  mg_context* context = nullptr;
};

namespace {

constexpr int kHandled = 1;
constexpr int kCut = 200;  // no answer; the status is for civetweb's log, which is off
constexpr const char* kText = "text/plain; charset=utf-8";

// Inline style and script, and the page itself again; nothing else, from nowhere else.
constexpr const char* kPageSecurity =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

void Send(mg_connection* connection, int code, const char* type, const std::string& body,
          bool with_body) {
  const char* reason = mg_get_response_code_text(connection, code);
  mg_printf(
      connection,
      "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n"
      "Content-Security-Policy: %s\r\nX-Content-Type-Options: nosniff\r\n"
      "%sConnection: close\r\n\r\n",
      code, reason, type, body.size(), kPageSecurity,
      code == 401 ? "WWW-Authenticate: Bearer\r\n" : "");
  if (with_body) mg_write(connection, body.data(), body.size());
}

absl::Status MayObserve(const mg_connection* connection, const HttpEndpoint::Sources& sources) {
  if (!sources.allowed) return absl::OkStatus();
  const char* const authorization = mg_get_header(connection, "Authorization");
  return sources.allowed(authorization == nullptr ? "" : authorization);
}

// False: the sender may see `path`; else its answer has been sent.
bool Refused(mg_connection* connection, const HttpEndpoint::Sources& sources,
             std::string_view path) {
  if (path == "/healthz" || path == "/readyz") return false;
  const absl::Status allowed = MayObserve(connection, sources);
  if (allowed.ok()) return false;
  Send(connection, absl::IsUnauthenticated(allowed) ? 401 : 403, kText,
       absl::StrCat(std::string(allowed.message()), "\n"), true);
  return true;
}

int Handle(mg_connection* connection, void* data) {
  HttpEndpoint::Server& server = *static_cast<HttpEndpoint::Server*>(data);
  const HttpEndpoint::Sources& sources = server.sources;
  const mg_request_info* request = mg_get_request_info(connection);
  if (!server.TakeRelayed(request->remote_port)) return kCut;
  const std::string_view method = request->request_method, path = request->local_uri;
  const bool head = method == "HEAD";
  if (method != "GET" && !head) {
    Send(connection, 405, kText, "only GET and HEAD\n", true);
  } else if (Refused(connection, sources, path)) {
    return kHandled;
  } else if (path == "/metrics") {
    const char* accept = mg_get_header(connection, "Accept");
    const ExpositionFormat format = NegotiateMetricsFormat(accept == nullptr ? "" : accept);
    Send(connection, 200, ContentType(format), sources.metrics(format), !head);
  } else if (path == "/healthz") {
    Send(connection, 200, kText, "ok\n", !head);
  } else if (path == "/readyz") {
    const std::vector<std::string> obstacles = sources.obstacles();
    const bool ready = obstacles.empty();
    std::string text = ready ? "ready\n" : "not ready\n";
    // They name models: not everybody's business. Who shows no token is not refused, and not
    // counted.
    const bool shows = !sources.allowed || mg_get_header(connection, "Authorization") != nullptr;
    if (!ready && shows && MayObserve(connection, sources).ok())
      absl::StrAppend(&text, absl::StrJoin(obstacles, "\n"), "\n");
    Send(connection, ready ? 200 : 503, kText, text, !head);
  } else if (const std::optional<HttpPage> page = sources.page ? sources.page(path) : std::nullopt;
             page.has_value()) {
    Send(connection, page->code, page->type.c_str(), page->body, !head);
  } else {
    Send(connection, 404, kText, "here are / (status), /metrics, /healthz and /readyz\n", !head);
  }
  return kHandled;
}

}  // namespace

int HttpEndpoint::Server::ConnectInside() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  // Before it is connected, so that its port is known before civetweb can see it.
  socklen_t length = sizeof(address);
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  if (fd < 0 || bind(fd, any, length) != 0 || getsockname(fd, any, &length) != 0) {
    if (fd >= 0) close(fd);
    return -1;
  }
  {
    const MutexLock lock(mu);
    relayed.insert(ntohs(address.sin_port));
  }
  address.sin_port = htons(static_cast<uint16_t>(inside_port));
  if (connect(fd, any, sizeof(address)) == 0 || errno == EINPROGRESS) return fd;
  close(fd);
  return -1;
}

absl::Status HttpEndpoint::ListenInside() {
  Server& server = *server_;
  mg_callbacks callbacks{};
  callbacks.log_message = [](const mg_connection* connection, const char* message) {
    auto* data = mg_get_user_data(mg_get_context(connection));
    auto* server = static_cast<Server*>(data);
    if (server != nullptr && server->first_error.empty()) server->first_error = message;
    return 1;  // not to its own log
  };
  // Its own answer to what it cannot read repeats the rest of the request in the first line.
  callbacks.http_error = [](mg_connection* connection, int status, const char*) {
    const std::string why = mg_get_response_code_text(connection, status);
    Send(connection, status, kText, why + "\n", true);
    return 0;
  };
  // Requests come whole. A page that is made slowly must not keep the probes waiting: a thread for
  // each of several such.
  const char* options[] = {"listening_ports",
                           "127.0.0.1:0",
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
  if (server.context == nullptr)
    return absl::UnavailableError(
        absl::StrCat("cannot listen for HTTP on a port of 127.0.0.1: ", server.first_error));
  mg_server_port bound[1];
  std::memset(bound, 0, sizeof(bound));
  if (mg_get_server_ports(server.context, 1, bound) == 1) server.inside_port = bound[0].port;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Start(const Place& place,
                                                                  Sources sources) {
  mg_init_library(0);
  auto endpoint = std::unique_ptr<HttpEndpoint>(new HttpEndpoint());
  endpoint->server_ = std::make_unique<Server>();
  Server& server = *endpoint->server_;
  server.sources = std::move(sources);
  server.tls = place.tls;
  RETURN_IF_ERROR(endpoint->ListenInside());
  mg_set_request_handler(server.context, "/", Handle, &server);
  absl::StatusOr<std::unique_ptr<Front>> front =
      Front::Start({.address = place.address,
                    .port = place.port,
                    .protocol = "HTTP",
                    .limits = place.limits,
                    .tls = server.tls.get(),
                    .connect = [&server] { return server.ConnectInside(); }},
                   nullptr);
  if (!front.ok())
    return absl::UnavailableError(
        absl::StrCat("http_port: ", std::string(front.status().message())));
  server.front = *std::move(front);
  return endpoint;
}

int HttpEndpoint::port() const { return server_->front->port(); }

FrontCounts HttpEndpoint::counts() const { return server_->front->counts(); }

HttpEndpoint::~HttpEndpoint() {
  server_->Stop();
  server_ = nullptr;
  mg_exit_library();
}

}  // namespace assay
