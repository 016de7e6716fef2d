#include "server/status_page.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "server/banner.h"
#include "server/status_charts.h"
#include "server/status_model.h"
#include "server/status_page_html.h"

namespace assay {
namespace {

constexpr size_t kShownEvents = 50;

std::string UtcText(absl::Time time) {
  if (time == absl::UnixEpoch() || time == absl::Time()) return "–";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", time, absl::UTCTimeZone());
}

std::string UptimeText(absl::Duration uptime) {
  const int64_t minutes = absl::ToInt64Minutes(uptime);
  if (minutes < 1) return absl::StrCat(absl::ToInt64Seconds(uptime), " s");
  if (minutes < 60) return absl::StrCat(minutes, " min");
  if (minutes < 48 * 60) return absl::StrCat(minutes / 60, " h ", minutes % 60, " min");
  return absl::StrCat(minutes / 60 / 24, " days");
}

std::string VersionName(std::string_view name, int64_t version) {
  return EscapeHtml(absl::StrCat(absl::string_view(name.data(), name.size()), ":", version));
}

const char* ClassOf(VersionState state) {
  switch (state) {
    case VersionState::kServing:
      return "good";
    case VersionState::kRejected:
    case VersionState::kFailed:
      return "bad";
    case VersionState::kRetired:
      return "soft";
    default:
      return "warn";
  }
}

const char* ClassOf(DriftState state) {
  return state == DriftState::kOk ? "good" : state == DriftState::kWarn ? "warn" : "bad";
}

std::string TextOf(std::string_view name) { return std::string(name); }

// What a tired person reads first.
struct Verdict {
  const char* kind = "good";
  std::string text;  // not yet escaped
};

Verdict DriftVerdict(const StatusView& view) {
  if (view.drift_rate <= 0) return {"good", "Drift is not watched (drift.rate is 0)."};
  if (view.drift.empty()) return {"good", "Drift: nothing is watched yet."};
  int64_t requests = 0;
  std::vector<std::string> violated, warned, blind, unmeasured;
  for (const DriftStatus& status : view.drift) {
    const std::string name = absl::StrCat(status.model, ":", status.version);
    requests += status.samples;
    if (status.state == DriftState::kViolated) violated.push_back(name);
    if (status.state == DriftState::kWarn) warned.push_back(name);
    if (!status.error.empty()) blind.push_back(name);
    if (status.samples == 0) unmeasured.push_back(name);
  }
  if (!violated.empty()) return {"bad", "Drift VIOLATED: " + absl::StrJoin(violated, ", ") + "."};
  if (!warned.empty()) return {"warn", "Drift WARN: " + absl::StrJoin(warned, ", ") + "."};
  if (!blind.empty())
    return {"warn", "Drift cannot be measured: " + absl::StrJoin(blind, ", ") + "."};
  if (requests == 0) return {"good", "Drift: no request was compared yet."};
  const std::string none =
      unmeasured.empty() ? "" : absl::StrCat(", none yet of ", absl::StrJoin(unmeasured, ", "));
  return {"good", absl::StrCat("Drift OK (", requests, " requests compared", none, ").")};
}

std::string ServingText(const StatusView& view) {
  std::set<std::string_view> models;
  size_t versions = 0;
  for (const VersionInfo& version : view.versions) {
    if (version.state != VersionState::kServing) continue;
    models.insert(version.name);
    ++versions;
  }
  if (models.empty()) return "no model serves";
  const std::string text =
      models.size() == 1 ? "1 model serves" : absl::StrCat(models.size(), " models serve");
  return models.size() == versions ? text : absl::StrCat(text, ", in ", versions, " versions");
}

Verdict VerdictOf(const StatusView& view) {
  Verdict verdict = DriftVerdict(view);
  if (!view.obstacles.empty()) {
    return {"bad",
            absl::StrCat("Not ready: ", absl::StrJoin(view.obstacles, "; "), ". ", verdict.text)};
  }
  verdict.text = absl::StrCat("Ready: ", ServingText(view), ". ", verdict.text);
  return verdict;
}

std::string LabelText(const VersionInfo& version) {
  if (version.label.empty()) return "–";
  if (version.label != "canary") return version.label;
  return absl::StrFormat("canary, %.4g %% of the requests", 100 * version.traffic_share);
}

// The heading stands by its value where a narrow screen stacks the row.
std::string Figure(const char* heading, std::string_view value) {
  return absl::StrCat("<td class=\"n\" data-heading=\"", heading, "\">",
                      absl::string_view(value.data(), value.size()));
}

std::string VersionRow(const VersionInfo& version) {
  const AdmissionReport* report = version.report.get();
  const std::string& why = version.stage.empty() ? version.reason : version.stage;
  const bool live =
      version.state == VersionState::kServing || version.state == VersionState::kDraining;
  std::string links;
  if (report != nullptr) {
    const std::string path = ReportPath(version);
    links =
        absl::StrCat("<br><a href=\"", path, "\">report</a> <a href=\"", path, ".json\">json</a>");
  }
  return absl::StrCat(
      "<tr><td class=\"name\" title=\"", EscapeHtml(version.path), "\">", EscapeHtml(version.name),
      links, Figure("version", absl::StrCat(version.version)), "<td><b class=\"",
      ClassOf(version.state), "\">", TextOf(Name(version.state)), "</b>",
      "<td data-heading=\"label\">", LabelText(version), "<td data-heading=\"task\">",
      report == nullptr ? "–" : EscapeHtml(report->task), "<td data-heading=\"precision\">",
      report == nullptr || report->layers.empty() ? "–" : EscapeHtml(ServedPrecision(*report)),
      Figure("weights", BytesText(version.weight_bytes)),
      Figure("KV cache", BytesText(version.kv_bytes)),
      Figure("workspace", BytesText(version.workspace_bytes)),
      Figure("running", live ? absl::StrCat(version.load.running) : "–"),
      Figure("waiting", live ? absl::StrCat(version.load.waiting) : "–"),
      Figure("fallback",
             report == nullptr ? "–" : absl::StrFormat("%.1f %%", 100 * report->fallback_fraction)),
      "</tr>", why.empty() ? "" : "<tr class=\"reason\"><td colspan=\"12\"><div class=\"why\">",
      EscapeHtml(why), why.empty() ? "" : "</div></tr>");
}

std::string ModelsSection(const StatusView& view) {
  if (view.versions.empty()) {
    return "<h2>Models</h2><p class=\"soft\">No model yet: <code>assay admit PATH</code>, or start "
           "the server with a model repository.</p>";
  }
  std::string out =
      "<h2>Models</h2><div class=\"wide\" data-key=\"models\"><table "
      "class=\"rows\"><thead><tr><th>model<th "
      "class=\"n\">version<th>state<th>label<th>task<th>precision<th class=\"n\">weights<th "
      "class=\"n\">KV "
      "cache<th class=\"n\">workspace<th class=\"n\">running<th class=\"n\">waiting<th "
      "class=\"n\">fallback</tr></thead><tbody>";
  for (const VersionInfo& version : view.versions) out += VersionRow(version);
  return out + "</tbody></table></div>";
}

std::string FigureText(double value) { return absl::StrFormat("%.3g", value); }

std::string DriftPart(const DriftStatus& status) {
  const bool measured = status.samples > 0;
  std::string out = absl::StrCat(
      "<h4>Accuracy on live traffic: <b class=\"", measured ? ClassOf(status.state) : "soft", "\">",
      measured ? TextOf(Name(status.state)) : "nothing compared yet", "</b>",
      status.cause.empty() ? "" : " by the ", EscapeHtml(status.cause), "</h4>");
  if (!status.error.empty()) {
    absl::StrAppend(&out, "<p class=\"warn\">Cannot be compared: ", EscapeHtml(status.error),
                    "</p>");
  }
  absl::StrAppend(&out, DrawBand({status.score, status.low, status.high, status.limit, measured}),
                  "<p>", EscapeHtml(status.statistic), " ");
  if (measured) {
    absl::StrAppend(&out, "<b>", FigureText(status.score), "</b>, surely between ",
                    FigureText(status.low), " and ", FigureText(status.high));
  } else {
    absl::StrAppend(&out, "not measured yet");
  }
  if (measured && status.state == DriftState::kOk && status.high > status.limit) {
    absl::StrAppend(&out, " (too few requests yet to be sure of the limit)");
  }
  absl::StrAppend(&out, "; limit ", FigureText(status.limit), ", certified at most ",
                  FigureText(status.certificate), ", budget ", FigureText(status.budget),
                  ".</p><p class=\"soft\">", status.samples, " requests compared, ",
                  status.mismatches, " mismatches, ", status.skipped, " skipped, ", status.waiting,
                  " waiting; ");
  if (measured && status.statistic == "mean_kl") {
    absl::StrAppendFormat(&out, "same top token %.2f %%; ", 100 * (1 - status.top1_flip));
  }
  return absl::StrCat(out, "last ", UtcText(status.last), "</p>");
}

std::string ModelCard(const StatusView& view, const VersionInfo& version) {
  const std::string name = VersionName(version.name, version.version);
  std::string out = absl::StrCat("<section class=\"card\"><h3>", name, " <b class=\"",
                                 ClassOf(version.state), "\">", TextOf(Name(version.state)), "</b>",
                                 version.label.empty() ? "" : " <small>",
                                 version.label.empty() ? "" : LabelText(version),
                                 version.label.empty() ? "" : "</small>", "</h3>");
  const auto traffic = view.traffic.find({version.name, version.version});
  if (version.state == VersionState::kServing) {
    const bool generates = version.report == nullptr || version.report->task == "generate";
    out += RenderTraffic(
        traffic == view.traffic.end() ? std::vector<TrafficPoint>() : traffic->second, generates);
  }
  for (const DriftStatus& status : view.drift) {
    if (status.model == version.name && status.version == version.version) out += DriftPart(status);
  }
  if (version.report != nullptr) {
    const bool rejected = version.state != VersionState::kServing;
    absl::StrAppend(&out, "<details data-key=\"", name, "\"", rejected ? "" : " open",
                    "><summary>Precision and verification</summary>", RenderReport(*version.report),
                    "</details>");
  }
  return out + "</section>";
}

std::string CardsSection(const StatusView& view) {
  std::string out;
  for (const VersionInfo& version : view.versions) {
    const bool shown = version.state == VersionState::kServing ||
                       (version.report != nullptr && version.state == VersionState::kRejected);
    if (shown) out += ModelCard(view, version);
  }
  return out;
}

std::string EventsSection(const StatusView& view) {
  std::string out = "<h2>Events</h2>";
  if (view.events.empty()) return out + "<p class=\"soft\">None yet.</p>";
  absl::StrAppend(
      &out,
      "<div class=\"wide\" data-key=\"events\"><table class=\"rows\"><thead><tr><th>time "
      "(UTC)<th>severity<th>model<th>kind<th>what</tr></thead><tbody>");
  const size_t shown = std::min(kShownEvents, view.events.size());
  for (auto event = view.events.rbegin(); event != view.events.rbegin() + static_cast<long>(shown);
       ++event) {
    const bool error = event->level == LogLevel::kError,
               warning = event->level == LogLevel::kWarning;
    absl::StrAppend(&out, "<tr><td class=\"when\">", UtcText(event->at), "<td class=\"",
                    error     ? "bad\">error"
                    : warning ? "warn\">warning"
                              : "soft\">info",
                    "<td class=\"name\">", VersionName(event->model, event->version), "<td>",
                    EscapeHtml(event->kind), "<td class=\"what\">", EscapeHtml(event->reason),
                    "</tr>");
  }
  return out + "</tbody></table></div>";
}

std::string ServerSection(const StatusView& view) {
  std::string out = absl::StrCat("<h2>Server</h2><p>assay-server ", EscapeHtml(view.version),
                                 ", up ", UptimeText(view.now - view.started), ", since ",
                                 UtcText(view.started), " UTC.</p><p>", EscapeHtml(view.hardware),
                                 "</p><p>", EscapeHtml(view.policy), "</p>");
  if (view.policy_trace.empty()) return out;
  absl::StrAppend(&out,
                  "<details data-key=\"policy\"><summary>Every rule of the policy, for this "
                  "hardware</summary>");
  for (const std::string& line : view.policy_trace) {
    absl::StrAppend(&out, "<p class=\"soft\">", EscapeHtml(line), "</p>");
  }
  return out + "</details>";
}

}  // namespace

std::string RenderStatus(const StatusView& view) {
  const Verdict verdict = VerdictOf(view);
  const std::string live = absl::StrCat(
      "<p class=\"verdict ", verdict.kind, "\" role=\"status\">", EscapeHtml(verdict.text), "</p>",
      ModelsSection(view), CardsSection(view), EventsSection(view), ServerSection(view),
      "<p class=\"soft\">As of ", UtcText(view.now), " UTC.</p>");
  const bool good = std::string_view(verdict.kind) == "good";
  return absl::StrReplaceAll(
      absl::string_view(kStatusPageHtml.data(), kStatusPageHtml.size()),
      {{"{{TITLE}}", good ? "Assay: ready" : "(!) Assay: look here"}, {"{{LIVE}}", live}});
}

StatusPage::StatusPage(const ServiceContext& context, std::string version, absl::Time started)
    : context_(context), version_(std::move(version)), started_(started) {}

StatusView StatusPage::Look() const {
  StatusView view;
  view.version = version_;
  view.started = started_;
  view.now = context_.calendar.Now();
  view.obstacles = context_.readiness.Obstacles();
  const HardwareInfo hardware = DescribeHardware(context_.gpus);
  view.hardware = HardwareLine(hardware);
  const auto decision = context_.policy.Choose(hardware, /*model_bytes_f32=*/0);
  if (decision.ok()) {
    view.policy =
        absl::StrCat("Policy ", context_.policy.origin(), ": rule '", decision->rule, "' chooses ",
                     decision->recipe.name, " on ", decision->device, ": ", decision->reason);
    view.policy_trace = decision->trace;
  } else {
    view.policy = std::string(decision.status().message());
  }
  view.drift_rate = context_.config.drift.sampler.rate;
  view.versions = context_.registry.List();
  view.drift = context_.drift.List();
  view.events = context_.events.Since(0);
  for (const VersionInfo& version : view.versions) {
    if (version.state != VersionState::kServing) continue;
    view.traffic[{version.name, version.version}] =
        context_.traffic.Last(version.name, version.version, context_.clock.Now());
  }
  return view;
}

HttpPage StatusPage::Report(std::string_view name, std::string_view version, bool json) const {
  int64_t number = 0;
  const bool is_number =
      absl::SimpleAtoi(absl::string_view(version.data(), version.size()), &number) && number > 0;
  const auto found = is_number ? context_.registry.Find(DecodePathSegment(name), number)
                               : absl::NotFoundError("not a version");
  if (!found.ok() || found->report == nullptr) {
    return {404, "text/plain; charset=utf-8",
            "no such model and version, or no report of it yet; / lists them\n"};
  }
  if (!json) return {200, "text/html; charset=utf-8", ToHtml(*found->report)};
  return {
      200, "application/json",
      ToJson(*found->report).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"};
}

std::optional<HttpPage> StatusPage::Get(std::string_view path) const {
  if (path == "/" || path == "/status") {
    return HttpPage{200, "text/html; charset=utf-8", RenderStatus(Look())};
  }
  const std::vector<std::string> parts =
      absl::StrSplit(absl::string_view(path.data(), path.size()), '/');
  const bool report = parts.size() == 5 && parts[0].empty() && parts[1] == "models" &&
                      (parts[4] == "report" || parts[4] == "report.json");
  if (!report) return std::nullopt;
  return Report(parts[2], parts[3], parts[4] == "report.json");
}

}  // namespace assay
