#include "loadtest/server_metrics.h"

#include <civetweb.h>

#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace assay::load {
namespace {

constexpr int kAnswerMilliseconds = 2000;

void Add(std::optional<double>& sum, double value) { sum = sum.value_or(0) + value; }

}  // namespace

ServerSample ParseServerMetrics(std::string_view text) {
  ServerSample out;
  for (absl::string_view line : absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    if (line.empty() || line[0] == '#') continue;
    line = line.substr(0, line.find(" # {"));  // without an exemplar
    const size_t brace = line.find('{'), close = line.rfind('}');
    const bool labels = brace != line.npos && close != line.npos && close > brace;
    const size_t name_end = labels ? brace : line.find(' ');
    if (name_end == line.npos) continue;
    const absl::string_view name = line.substr(0, name_end);
    const std::vector<absl::string_view> rest =
        absl::StrSplit(line.substr(labels ? close + 1 : name_end), ' ', absl::SkipEmpty());
    double value = 0;
    if (rest.empty() || !absl::SimpleAtod(rest[0], &value)) continue;
    if (name == "process_resident_memory_bytes") out.resident_bytes = value;
    if (name == "process_cpu_seconds_total") out.cpu_seconds = value;
    if (name == "assay_process_pending_requests") Add(out.pending, value);
    if (name == "assay_process_running_requests") Add(out.running, value);
    if (name == "nv_inference_pending_request_count") Add(out.pending, value);  // Triton
    if (name == "assay_inference_requests_total" && labels) {
      constexpr absl::string_view kOutcome = "outcome=\"";
      const size_t at = line.find(kOutcome);
      if (at == line.npos) continue;
      const absl::string_view from = line.substr(at + kOutcome.size());
      out.requests[std::string(from.substr(0, from.find('"')))] += value;
    }
  }
  return out;
}

absl::StatusOr<ServerSample> ScrapeServer(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 1 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", address, "' is not HOST:PORT, such as 127.0.0.1:8002"));
  }
  const std::string host = address.substr(0, colon);
  char error[256] = "";
  const std::unique_ptr<mg_connection, decltype(&mg_close_connection)> connection(
      mg_connect_client(host.c_str(), port, /*use_ssl=*/0, error, sizeof(error)),
      mg_close_connection);
  if (connection == nullptr) {
    return absl::UnavailableError(absl::StrCat("no answer from ", address, ": ", error));
  }
  mg_printf(connection.get(), "GET /metrics HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n",
            address.c_str());
  if (mg_get_response(connection.get(), error, sizeof(error), kAnswerMilliseconds) < 0) {
    return absl::UnavailableError(absl::StrCat("no answer from ", address, ": ", error));
  }
  const mg_response_info* info = mg_get_response_info(connection.get());
  if (info == nullptr || info->status_code != 200) {
    return absl::UnavailableError(absl::StrCat("http://", address, "/metrics answered with ",
                                               info == nullptr ? 0 : info->status_code));
  }
  std::string body;
  char buffer[16384];
  for (int n = 0; (n = mg_read(connection.get(), buffer, sizeof(buffer))) > 0;) {
    body.append(buffer, static_cast<size_t>(n));
  }
  return ParseServerMetrics(body);
}

}  // namespace assay::load
