// The report of a run as one JSON object (schema: docs/loadtest.md), and the forms that people
// read, all made from that object, so that a stored report can be shown again.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "loadtest/plot.h"
#include "loadtest/recorder.h"
#include "loadtest/runner.h"
#include "loadtest/server_metrics.h"

namespace assay::load {

using Json = nlohmann::ordered_json;

inline constexpr int kReportSchema = 1;

struct RunFacts {
  std::string server, started;  // RFC 3339
  double scale = 1;
  std::vector<PhaseRun> phases;                // as Runner has them
  double capacity_per_s = 0;                   // 0: no closed phase
  std::vector<ServerSample> before_and_after;  // two, or none
  std::vector<ServerSample> samples;           // once a second
  std::string metrics_error;
};

Json MakeReport(const Scenario& scenario, const Recorder& recorder, const RunFacts& facts);
// For a terminal or an issue.
std::string MarkdownOf(const Json& report);
// One file that loads nothing from elsewhere.
std::string HtmlOf(const Json& report);

// Its plots: latencies, throughput over time, goodput against offered load, the server's memory and
// queue.
std::string PlotsOf(const Json& report);
// Percent of the values at or below x, of a latency of the report that has its buckets.
Series CumulativeShares(const std::string& name, const Json& latency);
// Around `body`; `title` is text.
std::string HtmlPage(const std::string& title, const std::string& body);
// Two or more columns; the first row is the header. Cells are text.
std::string HtmlTable(const std::vector<std::vector<std::string>>& rows);
std::string MarkdownTable(const std::vector<std::vector<std::string>>& rows);
std::string EscapeHtml(const std::string& text);
// Three significant digits; "-" for null.
std::string Shown(const Json& number);

}  // namespace assay::load
