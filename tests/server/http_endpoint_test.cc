#include "server/http_endpoint.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

// A connected socket; -1: refused.
int Connect(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) return fd;
  close(fd);
  return -1;
}

// One request, the whole answer.
std::string Ask(int port, const std::string& request) {
  const int fd = Connect(port);
  std::string answer;
  if (fd >= 0 &&
      write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size())) {
    char buffer[4096];
    for (ssize_t n = 0; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, n);
  }
  close(fd);
  return answer;
}

std::string Get(int port, const std::string& path) {
  return Ask(port, "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
}

class HttpEndpointTest : public testing::Test {
 protected:
  void SetUp() override {
    auto started = HttpEndpoint::Start(
        {.address = "127.0.0.1"},
        {[](ExpositionFormat format) {
           return std::string(format == ExpositionFormat::kText ? "a_metric 1\n" : "# EOF\n");
         },
         [this] { return obstacles_; },
         [](std::string_view path) -> std::optional<HttpPage> {
           if (path != "/") return std::nullopt;
           return HttpPage{200, "text/html; charset=utf-8", "<p>page</p>"};
         }});
    ASSERT_OK(started);
    endpoint_ = *std::move(started);
    ASSERT_GT(endpoint_->port(), 0);
  }
  std::vector<std::string> obstacles_;
  std::unique_ptr<HttpEndpoint> endpoint_;
};

TEST_F(HttpEndpointTest, ServesMetricsInTheTextFormat) {
  const std::string answer = Get(endpoint_->port(), "/metrics");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4"));
  EXPECT_THAT(answer, HasSubstr("\r\n\r\na_metric 1\n"));
}

TEST_F(HttpEndpointTest, ServesOpenMetricsToWhoAsksForIt) {
  const std::string answer =
      Ask(endpoint_->port(),
          "GET /metrics HTTP/1.1\r\nHost: x\r\n"
          "Accept: application/openmetrics-text; version=1.0.0,text/plain;q=0.5\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("Content-Type: application/openmetrics-text; version=1.0.0; "
                                "charset=utf-8\r\n"));
  EXPECT_THAT(answer, HasSubstr("\r\n\r\n# EOF\n"));
}

TEST_F(HttpEndpointTest, ReadyzNamesWhatIsNotReady) {
  EXPECT_THAT(Get(endpoint_->port(), "/readyz"), StartsWith("HTTP/1.1 200 "));
  obstacles_ = {"smollm2: ADMITTING (verify)", "minilm: QUEUED"};
  const std::string answer = Get(endpoint_->port(), "/readyz");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 503 "));
  EXPECT_THAT(answer, HasSubstr("not ready\nsmollm2: ADMITTING (verify)\nminilm: QUEUED\n"));
  EXPECT_THAT(Get(endpoint_->port(), "/healthz"), StartsWith("HTTP/1.1 200 "));
}

// Who may not observe hears whether, and not what.
TEST(HttpEndpointReadyTest, ObstaclesAreForWhoMayObserve) {
  int asked = 0;
  auto endpoint = HttpEndpoint::Start(
      {.address = "127.0.0.1"}, {[](ExpositionFormat) { return std::string(); },
                                 [] { return std::vector<std::string>{"secret: QUEUED"}; }, nullptr,
                                 [&asked](const std::string& authorization) {
                                   ++asked;
                                   return authorization == "Bearer good"
                                              ? absl::OkStatus()
                                              : absl::UnauthenticatedError("no");
                                 }});
  ASSERT_OK(endpoint);
  const auto get = [&](const std::string& header) {
    return Ask((*endpoint)->port(), "GET /readyz HTTP/1.1\r\nHost: x\r\n" + header + "\r\n");
  };
  EXPECT_THAT(get(""), AllOf(StartsWith("HTTP/1.1 503 "), HasSubstr("not ready\n"),
                             Not(HasSubstr("secret"))));
  EXPECT_EQ(asked, 0);  // nor is it counted as a refusal
  EXPECT_THAT(get("Authorization: Bearer bad\r\n"),
              AllOf(StartsWith("HTTP/1.1 503 "), Not(HasSubstr("secret"))));
  EXPECT_THAT(get("Authorization: Bearer good\r\n"), HasSubstr("not ready\nsecret: QUEUED\n"));
}

TEST_F(HttpEndpointTest, RefusesOtherPathsAndMethods) {
  EXPECT_THAT(Get(endpoint_->port(), "/x"),
              AllOf(StartsWith("HTTP/1.1 404 "), HasSubstr("here are / (status)")));
  EXPECT_THAT(Get(endpoint_->port(), "/metrics/../etc/passwd"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(
      Ask(endpoint_->port(), "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
      StartsWith("HTTP/1.1 405 "));
}

TEST_F(HttpEndpointTest, WhatCannotBeReadIsNotRepeated) {
  const std::string answer = Ask(endpoint_->port(), "GET /a HTTP/1b HTTP/1.1\r\nSecret: y\r\n\r\n");
  EXPECT_THAT(answer, AllOf(StartsWith("HTTP/1.1 400 Bad Request\r\n"), Not(HasSubstr("Secret")),
                            HasSubstr("Content-Security-Policy: default-src 'none'")));
}

TEST_F(HttpEndpointTest, PagesMayUseNothingFromElsewhere) {
  EXPECT_THAT(Get(endpoint_->port(), "/"),
              AllOf(StartsWith("HTTP/1.1 200 "), HasSubstr("Content-Type: text/html"),
                    HasSubstr("Content-Security-Policy: default-src 'none'; style-src"),
                    HasSubstr("X-Content-Type-Options: nosniff"), HasSubstr("<p>page</p>")));
  EXPECT_THAT(Ask(endpoint_->port(), "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"),
              AllOf(StartsWith("HTTP/1.1 200 "), testing::EndsWith("\r\n\r\n")));
}

TEST_F(HttpEndpointTest, HeadHasNoBody) {
  const std::string answer = Ask(endpoint_->port(), "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(answer, testing::EndsWith("\r\n\r\n"));
}

TEST_F(HttpEndpointTest, ConnectionsThatAskNothingDoNotKeepOthersWaiting) {
  std::vector<int> silent;
  for (int i = 0; i < 12; ++i) {
    silent.push_back(Connect(endpoint_->port()));
    ASSERT_GE(silent.back(), 0);
    const std::string part = i % 2 == 1 ? "GET /hea" : "";
    ASSERT_EQ(write(silent.back(), part.data(), part.size()), static_cast<ssize_t>(part.size()));
  }
  EXPECT_THAT(Get(endpoint_->port(), "/healthz"), StartsWith("HTTP/1.1 200 "));
  // None of them has been given up on meanwhile: the answer did not wait for that.
  for (const int fd : silent) {
    pollfd state{fd, POLLIN, 0};
    EXPECT_EQ(poll(&state, 1, 0), 0);
    close(fd);
  }
}

TEST_F(HttpEndpointTest, APortInUseIsSaid) {
  EXPECT_THAT(HttpEndpoint::Start({.address = "127.0.0.1", .port = endpoint_->port()}, {}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("cannot listen for HTTP on")));
}

}  // namespace
}  // namespace assay
