#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "loadtest/report.h"

namespace assay::load {
namespace {

constexpr char kStyle[] = R"(
:root { color-scheme: light dark; --ink: #1b2330; --soft: #5b6675; --line: #d9dee6; --back: #fff; --bad: #b3261e;
  --c0: #2563a8; --c1: #c2570c; --c2: #1a7f4b; --c3: #7a3ea8; --c4: #a11d4f; --c5: #5b6675; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebf1; --soft: #9aa6b5; --line: #36404e; --back: #151a21; --bad: #ff8379;
  --c0: #74aee8; --c1: #f0a35c; --c2: #55c98b; --c3: #c295ee; --c4: #f07fab; --c5: #9aa6b5; } }
body { margin: 0 auto; max-width: 86rem; padding: 1.2rem 1rem 3rem; color: var(--ink); background: var(--back);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0 0 .6rem; }
p { margin: .4rem 0; }
.bad { color: var(--bad); font-weight: 600; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(34rem, 100%), 1fr)); gap: 1rem; }
figure { margin: .6rem 0; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); fill: none; }
.line { fill: none; stroke: var(--c); stroke-width: 1.8; }
.dashed { stroke-dasharray: 6 4; }
.dot { fill: var(--c); }
.legend { font-size: .9rem; }
.legend span { color: var(--c); margin-right: 1rem; }
small { color: var(--soft); }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); } .s4 { --c: var(--c4); }
.s5 { --c: var(--c5); }
)";

Series Column(const std::string& name, const Json& windows, const char* key) {
  Series out{name, {}};
  const double seconds = windows["seconds"].get<double>();
  for (size_t i = 0; i < windows[key].size(); ++i) {
    out.points.emplace_back((static_cast<double>(i) + 0.5) * seconds,
                            windows[key][i].get<double>() / seconds);
  }
  return out;
}

Plot SweepPlot(const Json& report) {
  Plot plot{"Goodput against offered load", "offered requests/s", "requests/s"};
  plot.dots = true;
  Series good{"good (within the SLO)", {}}, ok{"ok", {}}, ideal{"offered", {}, true};
  std::vector<std::array<double, 3>> rows;
  for (const Json& phase : report["phases"]) {
    if (phase["loop"] == "closed" || phase["warm_up"] == true) continue;
    rows.push_back({phase["offered_per_s"].get<double>(), phase["goodput_per_s"].get<double>(),
                    phase["ok_per_s"].get<double>()});
  }
  std::sort(rows.begin(), rows.end());
  double most = 0;
  for (const auto& [offered, goodput, succeeded] : rows) {
    good.points.emplace_back(offered, goodput);
    ok.points.emplace_back(offered, succeeded);
    most = std::max({most, goodput, succeeded});
  }
  if (rows.empty()) return plot;
  // As far as the diagonal stays in the picture.
  const double end = std::min(most, rows.back()[0]);
  ideal.points = {{0, 0}, {end, end}};
  plot.series = {good, ok, ideal};
  return plot;
}

Plot ServerPlot(const Json& server, const char* title, const char* label, const char* key,
                double unit) {
  Plot plot{title, "seconds", label};
  Series series{key, {}};
  for (const Json& sample : server["samples"]) {
    if (!sample[key].is_number()) continue;
    series.points.emplace_back(sample["at_s"].get<double>(), sample[key].get<double>() / unit);
  }
  plot.series = {std::move(series)};
  return plot;
}

}  // namespace

Series CumulativeShares(const std::string& name, const Json& latency) {
  Series out{name, {}};
  if (!latency.contains("buckets")) return out;
  const double count = latency["count"].get<double>();
  double seen = 0;
  size_t drawn = 0;
  const Json& buckets = latency["buckets"];
  for (size_t i = 0; i < buckets.size(); ++i) {
    seen += buckets[i][1].get<double>();
    // A thousandth of the height is less than a pixel.
    const auto step = static_cast<size_t>(1000 * seen / count);
    if (i > 0 && i + 1 < buckets.size() && step == drawn) continue;
    drawn = step;
    out.points.emplace_back(buckets[i][0].get<double>(), 100 * seen / count);
  }
  return out;
}

std::string EscapeHtml(const std::string& text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

std::string PlotsOf(const Json& report) {
  const Json& totals = report["totals"];
  Plot latency{"Latency", "milliseconds", "% of requests at or below"};
  latency.log_x = true;
  latency.series = {CumulativeShares("time to first token", totals["ttft_ms"]),
                    CumulativeShares("between tokens", totals["itl_ms"]),
                    CumulativeShares("whole request", totals["e2e_ms"])};
  const Json& windows = report["windows"];
  Plot over_time{"Throughput over time", "seconds", "requests/s"};
  over_time.series = {Column("offered", windows, "offered"), Column("failed", windows, "failed"),
                      Column("good, by when they were sent", windows, "good"),
                      Column("ok, by when they ended", windows, "ok")};
  over_time.series[0].dashed = true;
  std::string out = "<div class=\"plots\">\n" + SvgOf(latency) + SvgOf(over_time);
  if (!report["sweep"].is_null()) out += SvgOf(SweepPlot(report));
  if (totals["tokens"] != 0) {
    Plot tokens{"Tokens over time", "seconds", "tokens/s, by when their request ended"};
    tokens.series = {Column("tokens", windows, "tokens")};
    out += SvgOf(tokens);
  }
  const Json& server = report["server_metrics"];
  if (!server.is_null()) {
    out += SvgOf(ServerPlot(server, "Memory of the server", "MB resident", "resident_bytes", 1e6));
    out += SvgOf(ServerPlot(server, "Queue of the server", "requests that wait", "pending", 1));
  }
  return out + "</div>\n";
}

std::string HtmlPage(const std::string& title, const std::string& body) {
  return absl::StrCat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>",
      EscapeHtml(title), "</title><style>", kStyle, "</style></head>\n<body>\n", body,
      "</body></html>\n");
}

}  // namespace assay::load
