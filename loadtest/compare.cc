#include "loadtest/compare.h"

#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace assay::load {
namespace {

using Rows = std::vector<std::vector<std::string>>;

// What is read below without looking, as a report that somebody has edited must not do more than be
// refused.
void CheckLatency(const Json& latency) {
  if (latency.at("count").get<int64_t>() == 0) return;
  for (const char* key : {"p50", "p90", "p99", "p99.9"}) (void)latency.at(key).get<double>();
  if (!latency.contains("buckets")) return;
  for (const Json& bucket : latency.at("buckets")) {
    (void)bucket.at(0).get<double>();
    (void)bucket.at(1).get<int64_t>();
  }
}

void CheckFigures(const Json& figures) {
  for (const char* key :
       {"requests", "good", "tokens", "ok_per_s", "goodput_per_s", "tokens_per_s"}) {
    (void)figures.at(key).get<double>();
  }
  for (const auto& [code, count] : figures.at("outcomes").items()) (void)count.get<int64_t>();
  for (const char* key : {"ttft_ms", "itl_ms", "e2e_ms", "failed_ms"}) {
    CheckLatency(figures.at(key));
  }
}

void CheckWhole(const Json& report) {
  for (const char* key : {"scenario", "protocol"}) (void)report.at(key).get<std::string>();
  for (const char* key : {"seed", "scale"}) (void)report.at(key).get<double>();
  for (const char* key : {"ttft", "itl", "e2e"}) {
    if (!report.at("slo_ms").at(key).is_null()) (void)report.at("slo_ms").at(key).get<double>();
  }
  (void)report.at("invalid").get<std::vector<std::string>>();
  CheckFigures(report.at("totals"));
  for (const Json& phase : report.at("phases")) {
    (void)phase.at("name").get<std::string>();
    CheckFigures(phase);
  }
}

// Somebody may have edited it.
absl::Status CheckReport(const Json& report, const std::string& name) {
  try {
    CheckWhole(report);
    return absl::OkStatus();
  } catch (const nlohmann::json::exception& e) {  // "[json.exception...] key 'p50' not found"
    const std::string_view what = e.what();
    const size_t end = what.find("] ");
    return absl::InvalidArgumentError(
        absl::StrCat("'", name, "' is not a whole report: ",
                     std::string(end == std::string_view::npos ? what : what.substr(end + 2))));
  }
}

std::string Ratio(const Json& a, const Json& b) {
  if (!a.is_number() || !b.is_number() || a.get<double>() == 0) return "-";
  return absl::StrFormat("%.3f", b.get<double>() / a.get<double>());
}

Rows RateRows(const Json& a, const Json& b) {
  Rows rows{{"per second", "A", "B", "B/A", "behind A", "behind B"}};
  const auto ok = [](const Json& figures) { return figures["outcomes"].value("OK", Json(0)); };
  const auto add = [&](const char* rate, const Json& behind_a, const Json& behind_b) {
    rows.push_back({rate, Shown(a[rate]), Shown(b[rate]), Ratio(a[rate], b[rate]), Shown(behind_a),
                    Shown(behind_b)});
  };
  add("ok_per_s", ok(a), ok(b));
  add("goodput_per_s", a["good"], b["good"]);
  add("tokens_per_s", a["tokens"], b["tokens"]);
  return rows;
}

Rows LatencyRows(const Json& a, const Json& b) {
  Rows rows{{"ms", "A", "B", "B/A", "count A", "count B"}};
  for (const char* key : {"ttft_ms", "itl_ms", "e2e_ms", "failed_ms"}) {
    const Json &from = a[key], &to = b[key];
    if (from["count"] == 0 || to["count"] == 0) continue;
    for (const char* quantile : {"p50", "p90", "p99", "p99.9"}) {
      rows.push_back({absl::StrCat(key, " ", quantile), Shown(from[quantile]), Shown(to[quantile]),
                      Ratio(from[quantile], to[quantile]), Shown(from["count"]),
                      Shown(to["count"])});
    }
  }
  return rows;
}

Rows OutcomeRows(const Json& a, const Json& b) {
  Rows rows{{"outcome", "A", "B"}};
  std::set<std::string> codes;
  for (const Json* figures : {&a, &b}) {
    for (const auto& [code, count] : (*figures)["outcomes"].items()) codes.insert(code);
  }
  for (const std::string& code : codes) {
    rows.push_back({code, Shown(a["outcomes"].value(code, Json(0))),
                    Shown(b["outcomes"].value(code, Json(0)))});
  }
  return rows;
}

Rows PhaseRows(const Json& a, const Json& b) {
  Rows rows{
      {"phase", "good/s A", "good/s B", "B/A", "e2e p99 ms A", "B", "B/A", "count A", "count B"}};
  for (const Json& from : a["phases"]) {
    for (const Json& to : b["phases"]) {
      if (from["name"] != to["name"]) continue;
      const Json p = from["e2e_ms"].value("p99", Json()), q = to["e2e_ms"].value("p99", Json());
      rows.push_back({from["name"].get<std::string>(), Shown(from["goodput_per_s"]),
                      Shown(to["goodput_per_s"]), Ratio(from["goodput_per_s"], to["goodput_per_s"]),
                      Shown(p), Shown(q), Ratio(p, q), Shown(from["e2e_ms"]["count"]),
                      Shown(to["e2e_ms"]["count"])});
    }
  }
  return rows;
}

std::vector<std::string> Warnings(const Json& a, const Json& b) {
  std::vector<std::string> out;
  for (const char* key : {"scenario", "protocol", "seed", "scale", "slo_ms"}) {
    if (a[key] != b[key]) {
      out.push_back(
          absl::StrCat("WARNING: ", key, " differs: ", a[key].dump(), " and ", b[key].dump()));
    }
  }
  const std::pair<const char*, const Json*> kBoth[] = {{"A", &a}, {"B", &b}};
  for (const auto& [name, report] : kBoth) {
    for (const Json& why : (*report)["invalid"]) {
      out.push_back(absl::StrCat("INVALID ", name, ": ", why.get<std::string>()));
    }
  }
  return out;
}

Comparison Compared(const Json& a, const Json& b,
                    const std::pair<std::string, std::string>& names) {
  const std::vector<std::string> head = {absl::StrCat("A: ", names.first),
                                         absl::StrCat("B: ", names.second)};
  const Json &from = a["totals"], &to = b["totals"];
  std::string markdown = "## Comparison\n\n", body = "<h1>Comparison</h1>\n";
  for (const std::string& line : head) {
    absl::StrAppend(&markdown, line, "\n\n");
    absl::StrAppend(&body, "<p>", EscapeHtml(line), "</p>\n");
  }
  for (const std::string& line : Warnings(a, b)) {
    absl::StrAppend(&markdown, line, "\n\n");
    absl::StrAppend(&body, "<p class=\"bad\">", EscapeHtml(line), "</p>\n");
  }
  for (const Rows& rows :
       {RateRows(from, to), LatencyRows(from, to), OutcomeRows(from, to), PhaseRows(a, b)}) {
    markdown += MarkdownTable(rows);
    body += HtmlTable(rows);
  }
  body += "<div class=\"plots\">\n";
  static const std::pair<const char*, const char*> kPlots[] = {{"ttft_ms", "Time to first token"},
                                                               {"itl_ms", "Between tokens"},
                                                               {"e2e_ms", "Whole request"}};
  for (const auto& [key, title] : kPlots) {
    Plot plot{title, "milliseconds", "% at or below"};
    plot.log_x = true;
    plot.series = {CumulativeShares("A", from[key]), CumulativeShares("B", to[key])};
    body += SvgOf(plot);
  }
  body += "</div>\n";
  return {std::move(markdown), HtmlPage("Comparison", body)};
}

}  // namespace

absl::StatusOr<Json> ReadReport(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat("cannot read '", path, "'"));
  Json out = Json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!out.is_object() || !out.contains("schema") || out["schema"] != kReportSchema) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", path, "' is no report of assay-load, schema ", kReportSchema));
  }
  return out;
}

absl::StatusOr<Comparison> Compare(const Json& a, const Json& b,
                                   const std::pair<std::string, std::string>& names) {
  RETURN_IF_ERROR(CheckReport(a, names.first));
  RETURN_IF_ERROR(CheckReport(b, names.second));
  return Compared(a, b, names);
}

}  // namespace assay::load
