// The subcommands of `assay`. Each function adds one to the app and, when it is the one chosen,
// sets `run`, which main calls and whose result is the exit code.
#pragma once
#include <CLI/CLI.hpp>
#include <functional>

#include "cli/client.h"
#include "engine/lifecycle/report.h"

namespace assay {

struct CommandLine {
  GlobalOptions global;
  std::function<int()> run;
};

// `--html FILE`: the report as a page. The exit code: kExitOk, or what failed was said.
int SaveReportPage(const AdmissionReport& report, const std::string& path);

// "25%" or "0.25" -> 0.25. InvalidArgument names the text.
absl::StatusOr<double> ParseShare(const std::string& text);

void AddGenerate(CLI::App& app, CommandLine& line);
void AddEmbed(CLI::App& app, CommandLine& line);
void AddStatus(CLI::App& app, CommandLine& line);
void AddAdmit(CLI::App& app, CommandLine& line);
void AddReport(CLI::App& app, CommandLine& line);
void AddDrift(CLI::App& app, CommandLine& line);
void AddEvents(CLI::App& app, CommandLine& line);
void AddRecipes(CLI::App& app, CommandLine& line);
void AddAnalyze(CLI::App& app, CommandLine& line);
void AddPlan(CLI::App& app, CommandLine& line);
void AddVerify(CLI::App& app, CommandLine& line);
void AddQuantize(CLI::App& app, CommandLine& line);
void AddPolicy(CLI::App& app, CommandLine& line);
void AddTokenize(CLI::App& app, CommandLine& line);
void AddCanary(CLI::App& app, CommandLine& line);
void AddPromote(CLI::App& app, CommandLine& line);
void AddRollback(CLI::App& app, CommandLine& line);
void AddUnload(CLI::App& app, CommandLine& line);
void AddHealth(CLI::App& app, CommandLine& line);
void AddVersion(CLI::App& app, CommandLine& line);

}  // namespace assay
