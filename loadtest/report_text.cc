#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "loadtest/report.h"

namespace assay::load {
namespace {

using Rows = std::vector<std::vector<std::string>>;

std::string Outcomes(const Json& figures) {
  std::string out;
  for (const auto& [code, count] : figures["outcomes"].items()) {
    absl::StrAppend(&out, out.empty() ? "" : ", ", count.get<int64_t>(), " ", code);
  }
  return out;
}

Rows LatencyRows(const Json& figures) {
  static const std::pair<const char*, const char*> kNames[] = {{"ttft_ms", "time to first token"},
                                                               {"itl_ms", "between tokens"},
                                                               {"e2e_ms", "whole request (OK)"},
                                                               {"failed_ms", "until an error"}};
  Rows rows{{"ms", "count", "p50", "p90", "p99", "p99.9", "max"}};
  for (const auto& [key, name] : kNames) {
    const Json& latency = figures[key];
    if (latency["count"] == 0) continue;
    rows.push_back({name, absl::StrCat(latency["count"].get<int64_t>())});
    for (const char* column : {"p50", "p90", "p99", "p99.9", "max"}) {
      rows.back().push_back(Shown(latency[column]));
    }
  }
  return rows;
}

std::vector<std::string> FiguresRow(const std::string& name, const std::string& offered,
                                    const Json& figures) {
  const auto percentile = [&](const char* key) {
    const Json& latency = figures[key];
    return latency["count"] == 0 ? std::string("-") : Shown(latency["p99"]);
  };
  return {name,
          offered,
          Shown(figures["ok_per_s"]),
          Shown(figures["goodput_per_s"]),
          percentile("ttft_ms"),
          percentile("itl_ms"),
          percentile("e2e_ms"),
          Outcomes(figures)};
}

Rows FiguresRows(const Json& report) {
  Rows rows{
      {"", "offered/s", "ok/s", "good/s", "ttft p99 ms", "itl p99 ms", "e2e p99 ms", "outcomes"}};
  for (const Json& phase : report["phases"]) {
    const bool closed = phase["loop"] == "closed";
    rows.push_back(FiguresRow(absl::StrCat(phase["name"].get<std::string>(),
                                           phase["warm_up"] == true ? " (not counted)" : ""),
                              closed ? absl::StrCat(phase["clients"].get<int>(), " clients")
                                     : Shown(phase["offered_per_s"]),
                              phase));
  }
  if (report["kinds"].size() > 1) {
    for (const auto& [name, figures] : report["kinds"].items()) {
      rows.push_back(FiguresRow("requests: " + name, "", figures));
    }
  }
  return rows;
}

std::string Megabytes(const Json& bytes) {
  if (!bytes.is_number()) return "-";
  return absl::StrFormat("%.1f MB", bytes.get<double>() / 1e6);
}

Rows ServerRows(const Json& server) {
  Rows rows{{"server", "before", "most", "after"}};
  rows.push_back({"resident memory", Megabytes(server["before"]["resident_bytes"]),
                  Megabytes(server["most_resident_bytes"]),
                  Megabytes(server["after"]["resident_bytes"])});
  rows.push_back({"waiting requests", Shown(server["before"]["pending"]),
                  Shown(server["most_pending"]), Shown(server["after"]["pending"])});
  for (const auto& [outcome, count] : server["handled"].items()) {
    if (count != 0) rows.push_back({"requests: " + outcome, "", "", Shown(count)});
  }
  return rows;
}

std::string SweepLine(const Json& sweep) {
  std::string out = absl::StrFormat(
      "Goodput: peak %s/s (%s); at the heaviest load, %s/s offered (%s), %s/s",
      Shown(sweep["peak_goodput_per_s"]), sweep["peak_phase"].get<std::string>(),
      Shown(sweep["heaviest_offered_per_s"]), sweep["heaviest_phase"].get<std::string>(),
      Shown(sweep["heaviest_goodput_per_s"]));
  if (sweep["share_of_peak"].is_number()) {
    absl::StrAppendFormat(&out, ", %.0f %% of the peak",
                          100 * sweep["share_of_peak"].get<double>());
  }
  if (sweep.contains("recovery_s")) {
    absl::StrAppend(&out, ". Recovery after it: ",
                    sweep["recovery_s"].is_number()
                        ? absl::StrFormat("%.1f s", sweep["recovery_s"].get<double>())
                        : "not within the phase that followed");
  }
  return out + ".";
}

// The same content for both forms; `table` and `line` write it.
void Write(const Json& report, const std::function<void(const std::string&)>& line,
           const std::function<void(const Rows&)>& table) {
  line(absl::StrFormat("Server %s, protocol %s, seed %d, scale %s, begun %s, %s s counted.",
                       report["server"].get<std::string>(), report["protocol"].get<std::string>(),
                       report["seed"].get<uint64_t>(), Shown(report["scale"]),
                       report["started"].get<std::string>(), Shown(report["seconds"])));
  for (const Json& why : report["invalid"]) line("INVALID: " + why.get<std::string>());
  const Json& slo = report["slo_ms"];
  line(
      absl::StrFormat("Good: ended well, ttft <= %s ms, mean gap <= %s ms, whole <= %s ms: %s/s of "
                      "%s ok/s, %s tokens/s.",
                      Shown(slo["ttft"]), Shown(slo["itl"]), Shown(slo["e2e"]),
                      Shown(report["totals"]["goodput_per_s"]), Shown(report["totals"]["ok_per_s"]),
                      Shown(report["totals"]["tokens_per_s"])));
  if (!report["sweep"].is_null()) line(SweepLine(report["sweep"]));
  table(LatencyRows(report["totals"]));
  table(FiguresRows(report));
  if (!report["server_metrics"].is_null()) table(ServerRows(report["server_metrics"]));
  const Json& late = report["generator"]["late_ms"];
  if (late["count"] != 0) {
    line(absl::StrFormat("The generator was late by %s ms (p99), %s ms (max); %d not sent.",
                         Shown(late["p99"]), Shown(late["max"]),
                         report["generator"]["not_sent"].get<int64_t>()));
  }
  for (const Json& note : report["notes"]) line("Note: " + note.get<std::string>());
}

}  // namespace

std::string Shown(const Json& number) {
  if (!number.is_number()) return "-";
  const double value = number.get<double>();
  if (value == std::floor(value) && std::abs(value) < 1e15) return absl::StrFormat("%.0f", value);
  return std::abs(value) >= 100 ? absl::StrFormat("%.0f", value) : absl::StrFormat("%.3g", value);
}

std::string MarkdownTable(const Rows& rows) {
  std::string out;
  for (size_t i = 0; i < rows.size(); ++i) {
    for (const std::string& cell : rows[i]) {
      absl::StrAppend(&out, "| ", absl::StrReplaceAll(cell, {{"|", "\\|"}}), " ");
    }
    out += "|\n";
    if (i > 0) continue;
    for (size_t column = 0; column < rows[0].size(); ++column) out += "|---";
    out += "|\n";
  }
  return out + "\n";
}

std::string HtmlTable(const Rows& rows) {
  std::string out = "<div class=\"wide\"><table>\n";
  for (size_t i = 0; i < rows.size(); ++i) {
    const char* tag = i == 0 ? "th" : "td";
    out += "<tr>";
    for (const std::string& cell : rows[i]) {
      absl::StrAppend(&out, "<", tag, ">", EscapeHtml(cell), "</", tag, ">");
    }
    out += "</tr>\n";
  }
  return out + "</table></div>\n";
}

std::string MarkdownOf(const Json& report) {
  std::string out = "## " + report["scenario"].get<std::string>() + "\n\n";
  Write(
      report, [&](const std::string& line) { absl::StrAppend(&out, line, "\n\n"); },
      [&](const Rows& rows) { out += MarkdownTable(rows); });
  return out;
}

std::string HtmlOf(const Json& report) {
  std::string body = "<h1>" + EscapeHtml(report["scenario"].get<std::string>()) + "</h1>\n";
  Write(
      report,
      [&](const std::string& line) {
        const bool bad = line.rfind("INVALID", 0) == 0;
        absl::StrAppend(&body, bad ? "<p class=\"bad\">" : "<p>", EscapeHtml(line), "</p>\n");
      },
      [&](const Rows& rows) { body += HtmlTable(rows); });
  body += PlotsOf(report);
  return HtmlPage(report["scenario"].get<std::string>(), body);
}

}  // namespace assay::load
