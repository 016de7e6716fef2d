// Bytes that a client sends to the HTTP port: civetweb, our handlers and the pages, over loopback.
// An answer of HTTP with a code, or none, and the port goes on.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/numbers.h"
#include "server/http_endpoint.h"
#include "server/status_page.h"
#include "tests/fuzz/require.h"
#include "tests/fuzz/small_serving.h"

namespace assay {
namespace {

int Port() {
  static const auto& endpoint = *new std::unique_ptr<HttpEndpoint>([] {
    static const auto& page =
        *new StatusPage(TheServing().context(), "fuzz", absl::FromUnixSeconds(0));
    HttpEndpoint::Sources sources;
    sources.metrics = [](ExpositionFormat format) {
      return TheServing().fakes().metrics().Scrape(format);
    };
    sources.obstacles = [] { return std::vector<std::string>{}; };
    sources.page = [](std::string_view path) { return page.Get(path); };
    sources.allowed = [](const std::string& authorization) {
      return authorization == "Bearer x" ? absl::UnauthenticatedError("no token is called 'x' here")
                                         : absl::OkStatus();
    };
    auto started = HttpEndpoint::Start({.address = "127.0.0.1", .port = 0}, std::move(sources));
    Require(started.ok(), "the fuzzer's own port");
    return *std::move(started);
  }());
  return endpoint->port();
}

int Connect() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  // Reset at the end: thousands of connections a second must not all wait for stragglers.
  const linger at_once{.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(Port()));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  Require(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0,
          "the port takes connections");
  return fd;
}

// Sends all and says that there is no more, so that the server waits for nothing.
std::string Ask(std::string_view bytes) {
  const int fd = Connect();
  while (!bytes.empty()) {
    const ssize_t sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) break;  // answered and closed before it had read all
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  shutdown(fd, SHUT_WR);
  std::string answer;
  char buffer[16384];
  for (ssize_t got = 0; (got = recv(fd, buffer, sizeof(buffer), 0)) > 0;)
    answer.append(buffer, static_cast<size_t>(got));
  close(fd);
  return answer;
}

void Check(std::string_view answer) {
  if (!answer.starts_with("HTTP/")) return;  // none, or the bare text that HTTP/0.9 gets
  // civetweb's own errors are of the version that was asked for, whichever that is.
  const std::string_view number =
      answer.substr(std::min(answer.find(' '), answer.size() - 1)).substr(1, 3);
  int code = 0;
  const bool numbered = absl::SimpleAtoi(absl::string_view(number.data(), number.size()), &code);
  if (!numbered || code < 200 || code > 599)
    std::fprintf(stderr, "%.*s\n", static_cast<int>(answer.size()), answer.data());
  Require(numbered && code >= 200 && code <= 599, "an answer of HTTP");
}

}  // namespace
}  // namespace assay

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  assay::Check(assay::Ask(assay::TextOf(data, size)));
  return 0;
}
