#include "cli/client.h"

#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace assay {
namespace {

// Of RFC 6750.
constexpr char kTokenLetters[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=";

// The whole of a file, empty where there is none to be read.
absl::StatusOr<std::string> ReadIf(const char* flag, const std::string& path) {
  if (path.empty()) return "";
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file || text.str().empty())
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", flag, ": ", path));
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> CredentialsOf(
    const GlobalOptions& options) {
  if (options.cert.empty() != options.key.empty())
    return absl::InvalidArgumentError("--cert and --key go together");
  if (!options.server_name.empty() && options.ca.empty())
    return absl::InvalidArgumentError("--server-name goes with --ca");
  if (options.ca.empty() && options.cert.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions tls;
  ASSIGN_OR_RETURN(tls.pem_root_certs, ReadIf("--ca", options.ca));
  ASSIGN_OR_RETURN(tls.pem_cert_chain, ReadIf("--cert", options.cert));
  ASSIGN_OR_RETURN(tls.pem_private_key, ReadIf("--key", options.key));
  return grpc::SslCredentials(tls);
}

// Why TLS did not come about; empty: it is not to blame.
std::string TlsProblem(const std::string& message, const std::string& server) {
  if (absl::StrContains(message, "is not in peer certificate")) {
    return absl::StrCat("the certificate of the server at ", server,
                        " has other names (through a forwarded port: --server-name NAME, one that "
                        "it has): ",
                        message.substr(message.find("Peer name")));
  }
  if (absl::StrContains(message, "Ssl handshake failed")) {
    return absl::StrCat("no TLS with the server at ", server,
                        "; does --ca hold the authority of its certificate, and does it ask for "
                        "one of yours (--cert, --key)?");
  }
  return "";
}

}  // namespace

GlobalOptions GlobalOptions::ForAdmin() const {
  GlobalOptions options = *this;
  options.server = !admin_server.empty() ? admin_server : server_given ? server : "127.0.0.1:8003";
  return options;
}

absl::StatusOr<Client> Client::Connect(const GlobalOptions& options) {
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> credentials,
                   CredentialsOf(options));
  ASSIGN_OR_RETURN(std::string token, ReadIf("--token-file", options.token_file));
  token = std::string(absl::StripAsciiWhitespace(token.substr(0, token.find('\n'))));
  if (!options.token_file.empty() &&
      (token.empty() || token.find_first_not_of(kTokenLetters) != std::string::npos))
    return absl::InvalidArgumentError(
        absl::StrCat("the first line of --token-file is no token: ", options.token_file));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  if (!options.server_name.empty()) arguments.SetSslTargetNameOverride(options.server_name);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // a proxy for the web is none for this
  return Client(options, grpc::CreateCustomChannel(options.server, credentials, arguments),
                std::move(token));
}

std::unique_ptr<grpc::ClientContext> Client::NewContext(double seconds) const {
  auto context = std::make_unique<grpc::ClientContext>();
  if (!token_.empty()) context->AddMetadata("authorization", "Bearer " + token_);
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
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    std::string problem = TlsProblem(message, server);
    if (!problem.empty()) return problem;
  }
  const bool unreachable = status.error_code() == grpc::StatusCode::UNAVAILABLE &&
                           (absl::StrContains(message, "failed to connect") ||
                            absl::StrContains(message, "DNS resolution") ||
                            absl::StrContains(message, "Endpoint read failed"));
  if (unreachable) {
    return absl::StrCat("no server answers at ", server,
                        "; is assay-server running, and with TLS where --ca is given? (another "
                        "address: --server HOST:PORT or ASSAY_SERVER, of administration "
                        "--admin-server or ASSAY_ADMIN_SERVER)");
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
