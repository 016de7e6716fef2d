// The pages of the HTTP port for people: `/` and `/status` (what serves, how accurate it is, what
// happened), `/models/<name>/<version>/report` (the admission report) and `report.json`.
//
// Rendered here, useful without a script; names, paths and reasons are of others and are escaped.
// RenderStatus is pure. StatusPage::Get may be called on any thread; the context outlives it.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/http_endpoint.h"
#include "server/service_context.h"

namespace assay {

struct StatusView {
  std::string version;  // of the server, with its revision
  absl::Time started, now;
  std::vector<std::string> obstacles;  // empty: ready
  std::string hardware;
  std::string policy;                     // one line: what it chooses here
  std::vector<std::string> policy_trace;  // why
  double drift_rate = 0;
  std::vector<VersionInfo> versions;
  std::vector<DriftStatus> drift;
  std::vector<Event> events;  // oldest first
  std::map<std::pair<std::string, int64_t>, std::vector<TrafficPoint>> traffic;
};
std::string RenderStatus(const StatusView& view);

class StatusPage {
 public:
  StatusPage(const ServiceContext& context, std::string version, absl::Time started);
  // Nothing: no such path. 404 also where the version, or its report, does not exist.
  std::optional<HttpPage> Get(std::string_view path) const;

 private:
  StatusView Look() const;
  HttpPage Report(std::string_view name, std::string_view version, bool json) const;

  const ServiceContext& context_;
  const std::string version_;
  const absl::Time started_;
};

}  // namespace assay
