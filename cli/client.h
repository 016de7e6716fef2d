// The connection to a server, and how an RPC's failure becomes one line and an exit code.
#pragma once
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "base/status.h"

namespace assay {

// Exit codes of `assay`, documented in --help.
inline constexpr int kExitOk = 0;
inline constexpr int kExitRefused = 1;   // bad usage, or the request was refused
inline constexpr int kExitServer = 2;    // the server cannot be reached, or failed
inline constexpr int kExitRejected = 3;  // the accuracy gate rejected an admission

// What every command knows.
struct GlobalOptions {
  std::string server = "127.0.0.1:8001";
  bool server_given = false;
  std::string admin_server;    // empty: not given
  std::string token_file;      // its first line is the bearer token; empty: none
  std::string ca, cert, key;   // PEM files; any of them: TLS
  std::string server_name;     // whom the certificate must name; empty: the host of the address
  double timeout_seconds = 0;  // 0 = none

  // For commands of administration: --admin-server, else --server where that was given, else where
  // the admin port is by default.
  GlobalOptions ForAdmin() const;
};

class Client {
 public:
  // InvalidArgument: a file of the options cannot be read, or is no use without another.
  static absl::StatusOr<Client> Connect(const GlobalOptions& options);
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  // A context with the deadline of --timeout, or `seconds` when that was not given (0 = none).
  std::unique_ptr<grpc::ClientContext> NewContext(double seconds) const;
  // Prints one line on stderr; returns the exit code.
  int Fail(const grpc::Status& status) const;

 private:
  Client(const GlobalOptions& options, std::shared_ptr<grpc::Channel> channel, std::string token)
      : options_(options), channel_(std::move(channel)), token_(std::move(token)) {}

  GlobalOptions options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::string token_;  // empty: none
};

// InvalidArgument, with the first bad byte: protobuf carries only UTF-8.
absl::Status CheckUtf8(const std::string& text);
// Why "HOST:PORT" cannot be an address; empty when it can.
std::string AddressProblem(const std::string& address);

// "assay: ..." on stderr; returns the exit code for the status.
int FailLocally(const absl::Status& status);
int ExitCodeFor(grpc::StatusCode code);
// The line for a failed RPC, without "assay: ".
std::string ErrorLine(const grpc::Status& status, const std::string& server);

}  // namespace assay
