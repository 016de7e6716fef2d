// assay-load: load on a running server, by scenario; docs/loadtest.md.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "loadtest/compare.h"
#include "loadtest/monitor.h"

namespace assay::load {
namespace {

constexpr int kDone = 0;
constexpr int kBadUsage = 1;  // or a bad scenario
constexpr int kNoServer = 2;  // or no file could be written
constexpr int kInvalid = 3;   // the generator could not keep up
constexpr double kConnectSeconds = 5;

struct RunOptions {
  std::string scenario, server = "127.0.0.1:8001", out, metrics;
  double scale = 1;
  int64_t seed = -1;
  bool quiet = false;
  std::vector<std::string> models;
};

struct CompareOptions {
  std::string a, b, html;
};

int Fail(int code, const absl::Status& status) {
  std::fprintf(stderr, "assay-load: %s\n", std::string(status.message()).c_str());
  return code;
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (!out) return absl::UnavailableError(absl::StrCat("cannot write '", path, "'"));
  return absl::OkStatus();
}

// --model OLD=NEW: the scenario's models by other names.
absl::Status RenameModels(const std::vector<std::string>& renames, Scenario& scenario) {
  for (const std::string& rename : renames) {
    const size_t equals = rename.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == rename.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model: expected OLD=NEW, found '", rename, "'"));
    }
    bool found = false;
    for (RequestKind& kind : scenario.kinds) {
      if (kind.model != rename.substr(0, equals)) continue;
      kind.model = rename.substr(equals + 1);
      found = true;
    }
    if (!found) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model: the scenario has no model '", rename.substr(0, equals), "'"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Scenario> ScenarioOf(const RunOptions& options) {
  ASSIGN_OR_RETURN(Scenario scenario, ReadScenario(options.scenario));
  RETURN_IF_ERROR(RenameModels(options.models, scenario));
  Scale(scenario, options.scale);
  if (options.seed >= 0) scenario.seed = static_cast<uint64_t>(options.seed);
  return scenario;
}

// A line that is written over on a terminal, a line every ten seconds elsewhere.
std::function<void(const std::string&)> ProgressLine(bool quiet) {
  if (quiet) return nullptr;
  if (isatty(STDERR_FILENO)) {
    return [](const std::string& line) { std::fprintf(stderr, "\r\033[K%s", line.c_str()); };
  }
  return [n = 0](const std::string& line) mutable {
    if (n++ % 10 == 0) std::fprintf(stderr, "%s\n", line.c_str());
  };
}

absl::Status WriteReport(const Json& report, const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const std::filesystem::path base(folder);
  // A server's message may be no UTF-8.
  const std::string json = report.dump(1, ' ', false, Json::error_handler_t::replace);
  RETURN_IF_ERROR(WriteFile(base / "report.json", json + "\n"));
  RETURN_IF_ERROR(WriteFile(base / "report.html", HtmlOf(report)));
  return WriteFile(base / "report.md", MarkdownOf(report));
}

int RunScenario(const RunOptions& options) {
  const absl::StatusOr<Scenario> scenario = ScenarioOf(options);
  if (!scenario.ok()) return Fail(kBadUsage, scenario.status());
  RunFacts facts{.server = options.server,
                 .started = absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone()),
                 .scale = options.scale};
  const auto scrape = [&](double at_s) -> absl::Status {
    if (options.metrics.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(ServerSample sample, ScrapeServer(options.metrics));
    sample.at_s = at_s;
    facts.before_and_after.push_back(std::move(sample));
    return absl::OkStatus();
  };
  const absl::Status before = scrape(0);
  if (!before.ok()) {
    return Fail(absl::IsInvalidArgument(before) ? kBadUsage : kNoServer,
                Annotate(before, "--metrics"));
  }
  Recorder recorder(*scenario);
  Target target(*scenario, options.server);
  if (!target.WaitForConnection(kConnectSeconds)) {
    return Fail(kNoServer, absl::UnavailableError(absl::StrCat(
                               "no server answers at ", options.server, " (--server HOST:PORT)")));
  }
  Runner runner(*scenario, target, recorder);
  Monitor monitor(*scenario, recorder, runner, options.metrics, ProgressLine(options.quiet));
  const Instant start = SteadyClock::now();
  monitor.Start(start);
  const absl::Status ran = runner.Run(start);
  monitor.Stop();
  if (!options.quiet && isatty(STDERR_FILENO)) std::fputc('\n', stderr);
  if (!ran.ok()) return Fail(kBadUsage, ran);
  facts.phases = runner.phases();
  facts.capacity_per_s = runner.capacity_per_s();
  facts.samples = monitor.samples();
  facts.metrics_error = monitor.error();
  const absl::Status after =
      scrape(std::chrono::duration<double>(SteadyClock::now() - start).count());
  if (!after.ok()) facts.metrics_error = std::string(after.message());
  const Json report = MakeReport(*scenario, recorder, facts);
  std::fputs(MarkdownOf(report).c_str(), stdout);
  if (!options.out.empty()) {
    const absl::Status written = WriteReport(report, options.out);
    if (!written.ok()) return Fail(kNoServer, written);
  }
  return report["valid"] == true ? kDone : kInvalid;
}

int CompareReports(const CompareOptions& options) {
  const absl::StatusOr<Json> a = ReadReport(options.a), b = ReadReport(options.b);
  if (!a.ok()) return Fail(kBadUsage, a.status());
  if (!b.ok()) return Fail(kBadUsage, b.status());
  const absl::StatusOr<Comparison> compared = Compare(*a, *b, {options.a, options.b});
  if (!compared.ok()) return Fail(kBadUsage, compared.status());
  std::fputs(compared->markdown.c_str(), stdout);
  if (options.html.empty()) return kDone;
  const absl::Status written = WriteFile(options.html, compared->html);
  return written.ok() ? kDone : Fail(kNoServer, written);
}

int Main(int argc, char** argv) {
  CLI::App app(
      "Load on a server that speaks assay.v1 or the Open Inference Protocol.\n"
      "Exit codes: 0 done, whatever came of the requests; 1 bad usage or scenario; 2 no server, or "
      "a file that cannot be written; 3 the generator could not keep up: the figures are invalid.");
  app.require_subcommand(1);
  RunOptions run;
  CompareOptions compare;
  CLI::App* run_command = app.add_subcommand("run", "Run a scenario; a summary on stdout");
  run_command->add_option("SCENARIO", run.scenario, "YAML, see loadtest/scenarios")->required();
  run_command->add_option("--server", run.server, "HOST:PORT of gRPC")->capture_default_str();
  run_command->add_option("--out", run.out, "Folder for report.json, report.html, report.md");
  run_command->add_option("--metrics", run.metrics,
                          "HOST:PORT of /metrics: the server's memory and queue beside the rest");
  run_command->add_option("--scale", run.scale, "All rates and closed clients, times this")
      ->check([](const std::string& text) {
        double scale = 0;  // as CLI::Range says it, which lets NaN through
        const bool good = absl::SimpleAtod(text, &scale) && scale >= 1e-4 && scale <= 1e4;
        return good ? "" : absl::StrCat("'", text, "' is not a number from 0.0001 to 10000");
      })
      ->capture_default_str();
  run_command->add_option("--seed", run.seed, "Instead of the scenario's")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 62));
  run_command->add_option("--model", run.models, "OLD=NEW: another model in the place of OLD")
      ->allow_extra_args(false);
  run_command->add_flag("--quiet", run.quiet, "No progress");
  CLI::App* compare_command =
      app.add_subcommand("compare", "Two reports: ratios with the counts behind them");
  compare_command->add_option("A", compare.a, "report.json")->required();
  compare_command->add_option("B", compare.b, "report.json")->required();
  compare_command->add_option("--html", compare.html, "Page with both latency curves");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kDone : kBadUsage;
  }
  return run_command->parsed() ? RunScenario(run) : CompareReports(compare);
}

}  // namespace
}  // namespace assay::load

int main(int argc, char** argv) {
  // As in the server: the detector of Debian's Abseil makes gRPC's locks dear.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return assay::load::Main(argc, argv);
}
