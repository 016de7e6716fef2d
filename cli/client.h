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
  double timeout_seconds = 0;  // 0 = none
};

class Client {
 public:
  explicit Client(const GlobalOptions& options);
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  // A context with the deadline of --timeout, or `seconds` when that was not given (0 = none).
  std::unique_ptr<grpc::ClientContext> NewContext(double seconds) const;
  // Prints one line on stderr; returns the exit code.
  int Fail(const grpc::Status& status) const;

 private:
  const GlobalOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
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
