#include "server/status_model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "server/status_charts.h"

namespace assay {
namespace {

constexpr int kColors = 8;  // classes c0..c7 of status_page.html

// One figure of the verification against its budget.
struct FigureRow {
  const char* name;
  Estimate measured;
  double budget = 0;
  bool at_most = true;
  const char* format = "%.5f";
};

std::string FormatNumber(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);  // a constant of FiguresOf
  return text;
}

std::vector<FigureRow> FiguresOf(const AdmissionReport& report) {
  const VerificationResult& v = report.verification;
  const Budget& budget = report.decision.budget;
  if (v.documents == 0) return {};
  if (report.task == "generate") {
    const Estimate log = Wider(v.log_perplexity_ratio, v.log_perplexity_ratio_bootstrap);
    return {{"mean KL, nats", Wider(v.mean_kl, v.mean_kl_bootstrap), budget.max_mean_kl},
            {"same top token", Wider(v.top1_agreement, v.top1_agreement_bootstrap), budget.min_top1,
             false, "%.4f"},
            {"perplexity ratio",
             {v.perplexity_ratio, std::exp(log.low), std::exp(log.high)},
             budget.max_perplexity_ratio,
             true,
             "%.4f"}};
  }
  if (report.task == "embed") {
    return {{"mean cosine", Wider(v.cosine, v.cosine_bootstrap), budget.min_mean_cosine, false}};
  }
  return {{"same label",
           {v.label_agreement, v.label_agreement, v.label_agreement},
           budget.min_label_agreement,
           false,
           "%.4f"}};
}

std::string VerificationTable(const AdmissionReport& report) {
  const std::vector<FigureRow> rows = FiguresOf(report);
  std::string out;
  if (rows.empty()) return "<p class=\"soft\">Nothing was measured.</p>";
  absl::StrAppend(&out,
                  "<div class=\"wide\"><table><thead><tr><th>figure<th class=\"n\">measured<th "
                  "class=\"n\">95 % interval<th class=\"n\">budget</tr></thead><tbody>");
  for (const FigureRow& row : rows) {
    const bool keeps =
        row.at_most ? row.measured.mean <= row.budget : row.measured.mean >= row.budget;
    const bool interval = row.measured.low != row.measured.high;
    absl::StrAppend(&out, "<tr><td>", row.name, "<td class=\"n ", keeps ? "good" : "bad", "\">",
                    FormatNumber(row.format, row.measured.mean), "<td class=\"n\">",
                    interval ? absl::StrCat(FormatNumber(row.format, row.measured.low), " to ",
                                            FormatNumber(row.format, row.measured.high))
                             : "–",
                    "<td class=\"n\">", row.at_most ? "≤ " : "≥ ", absl::StrCat(row.budget),
                    "</tr>");
  }
  absl::StrAppend(&out, "</tbody></table></div>");
  const VerificationResult& v = report.verification;
  absl::StrAppend(&out, "<p class=\"soft\">On ", v.documents, " documents, ", v.tokens,
                  " tokens of ", EscapeHtml(report.evaluation_set), ".</p>");
  for (const std::string& failure : v.failures) {
    absl::StrAppend(&out, "<p class=\"bad\">", EscapeHtml(failure), "</p>");
  }
  for (const std::string& defect : v.defects) {
    absl::StrAppend(&out, "<p class=\"bad\">", EscapeHtml(defect), "</p>");
  }
  return out;
}

// "model.layers.12.mlp.up_proj" is of block "12"; what is in no block is of "".
std::string BlockOf(const std::string& layer) {
  for (const absl::string_view part : absl::StrSplit(layer, '.')) {
    if (!part.empty() && std::all_of(part.begin(), part.end(), [](char c) {
          return absl::ascii_isdigit(static_cast<unsigned char>(c));
        })) {
      return std::string(part);
    }
  }
  return "";
}

std::string LayerTitle(const LayerReport& layer) {
  std::string title = absl::StrCat(layer.name, ": ", layer.scheme, "/", layer.activation,
                                   ", kernel ", layer.kernel);
  const std::string beside = BesideTheCodes(layer);
  if (!beside.empty()) absl::StrAppend(&title, ", ", beside);
  absl::StrAppendFormat(&title, ", weights %.1f dB, output %.1f dB", layer.weight_sqnr_db,
                        layer.output_sqnr_db);
  if (layer.fallback) absl::StrAppend(&title, ", kept in higher precision");
  return title;
}

std::string PrecisionMap(const AdmissionReport& report) {
  if (report.layers.empty()) return "";
  std::vector<std::string> schemes;
  std::string cells, block;
  bool first = true;
  std::vector<int> counts;
  for (const LayerReport& layer : report.layers) {
    const auto known = std::find(schemes.begin(), schemes.end(), layer.scheme);
    const auto index = static_cast<size_t>(known - schemes.begin());
    if (known == schemes.end()) {
      schemes.push_back(layer.scheme);
      counts.push_back(0);
    }
    ++counts[index];
    const std::string of = BlockOf(layer.name);
    if (first || of != block) {
      absl::StrAppend(&cells, first ? "" : "</span>", "<span class=\"block\"><small>",
                      of.empty() ? "–" : of, "</small>");
    }
    first = false;
    block = of;
    absl::StrAppend(&cells, "<i class=\"c", index % kColors, layer.fallback ? " kept" : "",
                    "\" title=\"", EscapeHtml(LayerTitle(layer)), "\"></i>");
  }
  std::string legend;
  for (size_t i = 0; i < schemes.size(); ++i) {
    absl::StrAppend(&legend, "<span class=\"key\"><i class=\"c", i % kColors, "\"></i> ",
                    EscapeHtml(schemes[i]), " × ", counts[i], "</span>");
  }
  return absl::StrCat("<p class=\"legend\">", legend, "</p><div class=\"map\">", cells,
                      "</span></div>");
}

std::string RecipeReason(const AdmissionReport& report) {
  const PolicyDecision& decision = report.decision;
  std::string out;
  if (!report.reason.empty()) absl::StrAppend(&out, "<p>", EscapeHtml(report.reason), "</p>");
  if (!decision.recipe.name.empty() || !decision.rule.empty()) {
    absl::StrAppend(&out, "<p>Recipe <b>", EscapeHtml(decision.recipe.name), "</b>, rule ",
                    EscapeHtml(decision.rule), " on ", EscapeHtml(decision.device),
                    decision.reason.empty() ? "" : ": ", EscapeHtml(decision.reason), "</p>");
  }
  for (const RungReport& rung : report.rungs) {
    absl::StrAppend(&out, "<p class=\"soft\">Tried before: ", EscapeHtml(rung.recipe), ": ",
                    EscapeHtml(rung.reason), "</p>");
  }
  if (decision.trace.empty()) return out;
  absl::StrAppend(&out, "<details data-key=\"trace ", EscapeHtml(report.model), ":", report.version,
                  "\"><summary>Every rule that was looked at</summary>");
  for (const std::string& line : decision.trace) {
    absl::StrAppend(&out, "<p class=\"soft\">", EscapeHtml(line), "</p>");
  }
  return out + "</details>";
}

std::string LatencyText(absl::Duration latency) {
  const double seconds = absl::ToDoubleSeconds(latency);
  if (seconds <= 0) return "–";
  if (seconds < 1) return absl::StrFormat("%.3g ms", seconds * 1e3);
  return absl::StrFormat("%.3g s", seconds);
}

}  // namespace

std::string BytesText(uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes == 0) return "–";
  if (value >= 1e9) return absl::StrFormat("%.2f GB", value / 1e9);
  if (value >= 1e6) return absl::StrFormat("%.1f MB", value / 1e6);
  return absl::StrFormat("%.1f KB", value / 1e3);
}

std::string ReportPath(const VersionInfo& version) {
  return absl::StrCat("models/", EncodePathSegment(version.name), "/", version.version, "/report");
}

std::string RenderTraffic(const std::vector<TrafficPoint>& traffic, bool generates) {
  const double step = absl::ToDoubleSeconds(TrafficHistory::kStep);
  Sparkline requests{.label = "requests/s"}, latency{.label = "latency p50, p99"},
      tokens{.label = "tokens/s"};
  int64_t count = 0, failed = 0;
  TrafficPoint latest;
  for (const TrafficPoint& point : traffic) {
    count += point.requests;
    failed += point.failed;
    requests.line.push_back(static_cast<double>(point.requests) / step);
    tokens.line.push_back(point.tokens / step);
    const bool any = point.p50 > absl::ZeroDuration();
    latency.line.push_back(any ? absl::ToDoubleSeconds(point.p50) : -1);
    latency.second.push_back(any ? absl::ToDoubleSeconds(point.p99) : -1);
    if (any) latest = point;
  }
  if (count == 0) return "<p class=\"soft\">No request ended in the last five minutes.</p>";
  const auto most = [](const std::vector<double>& values) {
    return *std::max_element(values.begin(), values.end());
  };
  requests.value = absl::StrFormat("%.3g", requests.line.back());
  requests.note = absl::StrFormat("5 minutes: %d requests, %d failed; most %.3g/s", count, failed,
                                  most(requests.line));
  latency.value = absl::StrCat(LatencyText(latest.p50), ", ", LatencyText(latest.p99));
  latency.note =
      absl::StrCat("of whole requests; most ", LatencyText(absl::Seconds(most(latency.second))));
  tokens.value = absl::StrFormat("%.4g", tokens.line.back());
  tokens.note = absl::StrFormat("of requests that ended; most %.4g/s", most(tokens.line));
  return absl::StrCat("<div class=\"sparks\">", DrawSparkline(requests), DrawSparkline(latency),
                      generates ? DrawSparkline(tokens) : "", "</div>");
}

std::string RenderReport(const AdmissionReport& report) {
  return absl::StrCat("<h4>Precision of every layer</h4>", PrecisionMap(report),
                      "<h4>Verification</h4>", VerificationTable(report),
                      "<h4>Why this recipe</h4>", RecipeReason(report));
}

}  // namespace assay
