#include "cli/client.h"

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace assay {
namespace {

std::shared_ptr<grpc::Channel> Connect(const std::string& server) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // a proxy for the web is none for this
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

Client::Client(const GlobalOptions& options)
    : options_(options), channel_(Connect(options.server)) {}

std::unique_ptr<grpc::ClientContext> Client::NewContext(double seconds) const {
  auto context = std::make_unique<grpc::ClientContext>();
  const double limit = options_.timeout_seconds > 0 ? options_.timeout_seconds : seconds;
  if (limit > 0) {
    context->set_deadline(std::chrono::system_clock::now() +
                          std::chrono::milliseconds(static_cast<int64_t>(limit * 1000)));
  }
  return context;
}

int Client::Fail(const grpc::Status& status) const {
  std::fprintf(stderr, "assay: %s\n", ErrorLine(status, options_.server).c_str());
  return ExitCodeFor(status.error_code());
}

absl::Status CheckUtf8(const std::string& text) {
  try {
    (void)nlohmann::json(text).dump();  // its own check of every string it writes
    return absl::OkStatus();
  } catch (const nlohmann::json::exception& e) {  // "[json...] invalid UTF-8 byte at index 3: 0xFF"
    const std::string_view what = e.what();
    const size_t end = what.find("] ");
    return absl::InvalidArgumentError(
        absl::StrCat("the text is not UTF-8: ",
                     std::string(end == std::string_view::npos ? what : what.substr(end + 2))));
  }
}

std::string AddressProblem(const std::string& address) {
  for (const char* scheme : {"unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:"}) {
    if (absl::StartsWith(address, scheme)) return "";  // gRPC's own notation
  }
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon != std::string::npos && colon > 0 &&
      absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 1 && port <= 65535) {
    return "";
  }
  return absl::StrCat("'", address, "' is not HOST:PORT, such as 127.0.0.1:8001");
}

int FailLocally(const absl::Status& status) {
  std::fprintf(stderr, "assay: %s\n", std::string(status.message()).c_str());
  return kExitRefused;
}

int ExitCodeFor(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::OK:
      return kExitOk;
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
    case grpc::StatusCode::INTERNAL:
    case grpc::StatusCode::UNKNOWN:
    case grpc::StatusCode::CANCELLED:
    case grpc::StatusCode::DATA_LOSS:
      return kExitServer;
    default:
      return kExitRefused;
  }
}

std::string ErrorLine(const grpc::Status& status, const std::string& server) {
  const std::string& message = status.error_message();
  const bool unreachable = status.error_code() == grpc::StatusCode::UNAVAILABLE &&
                           (absl::StrContains(message, "failed to connect") ||
                            absl::StrContains(message, "DNS resolution") ||
                            absl::StrContains(message, "Endpoint read failed"));
  if (unreachable) {
    return absl::StrCat("no server answers at ", server,
                        "; is assay-server running? (another address: --server HOST:PORT or "
                        "ASSAY_SERVER)");
  }
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return absl::StrCat(
        "the server at ", server, " did not answer in time",
        message.empty() || message == "Deadline Exceeded" ? "" : absl::StrCat(": ", message));
  }
  if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED && message.empty()) {
    return absl::StrCat("what listens at ", server, " is not an assay-server");
  }
  return message.empty() ? absl::StrCat("the server failed with code ", status.error_code())
                         : message;
}

}  // namespace assay
