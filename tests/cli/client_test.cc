#include "cli/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/commands.h"
#include "cli/terminal.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

TEST(ClientTest, ExitCodesTellTheServersFaultFromTheRequests) {
  EXPECT_EQ(ExitCodeFor(grpc::StatusCode::OK), kExitOk);
  EXPECT_EQ(ExitCodeFor(grpc::StatusCode::INVALID_ARGUMENT), kExitRefused);
  EXPECT_EQ(ExitCodeFor(grpc::StatusCode::NOT_FOUND), kExitRefused);
  EXPECT_EQ(ExitCodeFor(grpc::StatusCode::FAILED_PRECONDITION), kExitRefused);
  EXPECT_EQ(ExitCodeFor(grpc::StatusCode::UNAVAILABLE), kExitServer);
  EXPECT_EQ(ExitCodeFor(grpc::StatusCode::DEADLINE_EXCEEDED), kExitServer);
  EXPECT_EQ(ExitCodeFor(grpc::StatusCode::INTERNAL), kExitServer);
}

TEST(ShareTest, IsAFractionOrAPercentage) {
  EXPECT_EQ(ParseShare("0.25").value(), 0.25);
  EXPECT_EQ(ParseShare("25%").value(), 0.25);
  EXPECT_EQ(ParseShare("0").value(), 0);
  EXPECT_EQ(ParseShare("1").value(), 1);
  EXPECT_EQ(ParseShare("100%").value(), 1);
  for (const char* bad : {"", "%", "10", "1.01", "101%", "-1%", "-0.1", "nan", "a lot", "5%%"}) {
    EXPECT_THAT(ParseShare(bad), StatusIs(absl::StatusCode::kInvalidArgument,
                                          HasSubstr("'" + std::string(bad) + "' is not a share")));
  }
}

TEST(ClientTest, AServerThatDoesNotAnswerIsOneLineWithAdvice) {
  const std::string line = ErrorLine({grpc::StatusCode::UNAVAILABLE,
                                      "failed to connect to all addresses; last error: "
                                      "UNKNOWN: Failed to connect to remote host"},
                                     "127.0.0.1:8001");
  EXPECT_THAT(line, HasSubstr("no server answers at 127.0.0.1:8001"));
  EXPECT_THAT(line, HasSubstr("--server HOST:PORT"));
  EXPECT_EQ(line.find('\n'), std::string::npos);
}

// As gRPC 1.51 says it.
TEST(ClientTest, WhatIsWrongWithTlsIsSaid) {
  const std::string before = "failed to connect to all addresses; last error: UNKNOWN: ";
  const std::string name = ErrorLine(
      {grpc::StatusCode::UNAVAILABLE, before + "Peer name 127.0.0.1 is not in peer certificate"},
      "127.0.0.1:8001");
  EXPECT_THAT(name, HasSubstr("--server-name NAME"));
  EXPECT_THAT(name, HasSubstr("Peer name 127.0.0.1 is not in peer certificate"));
  const std::string authority = ErrorLine(
      {grpc::StatusCode::UNAVAILABLE,
       before + "Ssl handshake failed: SSL_ERROR_SSL: error:0A000086:SSL routines::certificate "
                "verify failed"},
      "127.0.0.1:8001");
  EXPECT_THAT(authority, HasSubstr("--ca"));
  EXPECT_THAT(authority, HasSubstr("127.0.0.1:8001"));
}

TEST(ClientTest, AdministrationGoesWhereItIsSaidElseWhereItIsByDefault) {
  GlobalOptions options;
  EXPECT_EQ(options.ForAdmin().server, "127.0.0.1:8003");
  options.server = "a:1";
  options.server_given = true;
  EXPECT_EQ(options.ForAdmin().server, "a:1");
  options.admin_server = "b:2";
  EXPECT_EQ(options.ForAdmin().server, "b:2");
  EXPECT_EQ(options.server, "a:1");
}

TEST(ClientTest, FilesThatAreNoUseAreNamed) {
  const std::pair<GlobalOptions, const char*> bad[] = {
      {{.token_file = "/nowhere/token"}, "--token-file: /nowhere/token"},
      {{.ca = "/nowhere/ca.pem"}, "--ca: /nowhere/ca.pem"},
      {{.cert = "/nowhere/cert.pem"}, "--cert and --key go together"},
      {{.key = "/nowhere/key.pem"}, "--cert and --key go together"},
      {{.server_name = "assay.models.svc"}, "--server-name goes with --ca"}};
  for (const auto& [options, what] : bad)
    EXPECT_THAT(Client::Connect(options).status(),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what)));
}

TEST(ClientTest, TheServersOwnWordsAreKept) {
  EXPECT_EQ(ErrorLine({grpc::StatusCode::UNAVAILABLE, "the server is draining"}, "x"),
            "the server is draining");
  EXPECT_THAT(ErrorLine({grpc::StatusCode::DEADLINE_EXCEEDED, "Deadline Exceeded"}, "x:1"),
              testing::StrEq("the server at x:1 did not answer in time"));
}

TEST(TerminalTest, TablesAlignByCharactersNotBytes) {
  EXPECT_EQ(FormatTable({{"NAME", "N"}, {"h\xc3\xa9llo", "1"}, {"x", ""}}),
            "NAME   N\nh\xc3\xa9llo  1\nx\n");
}

TEST(TerminalTest, SizesAreForPeople) {
  EXPECT_EQ(SizeText(0), "0");
  EXPECT_EQ(SizeText(512), "512 B");
  EXPECT_EQ(SizeText(uint64_t{3} << 19), "1.5 MiB");
  EXPECT_EQ(SizeText(uint64_t{5} << 30), "5.0 GiB");
}

}  // namespace
}  // namespace assay
