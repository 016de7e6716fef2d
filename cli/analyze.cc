// Which layers are hard to quantize, before anything is decided.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/thread_pool.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "engine/lifecycle/analysis.h"
#include "engine/lifecycle/progress_display.h"

namespace assay {
namespace {

struct AnalyzeOptions {
  AnalysisOptions analysis;
  std::string activation = "a8_token", metric = "loss";
  int top = 15, threads = 0;
  bool json = false;
};

int RunAnalyze(AnalyzeOptions options) {
  ConfigureLog(LogLevel::kError, LogFormat::kText);
  const absl::StatusOr<SensitivityMetric> metric = FindSensitivityMetric(options.metric);
  if (!metric.ok()) return FailLocally(metric.status());
  const std::optional<ActivationMode> mode = FindActivationMode(options.activation);
  if (!mode.has_value()) {
    return FailLocally(absl::InvalidArgumentError(
        absl::StrCat("unknown activation mode '", options.activation, "'")));
  }
  options.analysis.candidate.activation = *mode;
  ProgressDisplay display(stderr);
  options.analysis.progress = [&](double fraction, const std::string& message) {
    display.Show({options.analysis.path, "analyze", fraction, message}, absl::Now());
    return absl::OkStatus();
  };
  ThreadPool pool({.num_threads = options.threads});
  const absl::StatusOr<ModelAnalysis> analysis = AnalyzeModel(options.analysis, pool);
  display.Clear();
  if (!analysis.ok()) return FailLocally(analysis.status());
  const std::string text = options.json ? ToJson(*analysis).dump(2) + "\n"
                                        : ToTerminalText(*analysis, *metric, options.top);
  std::fputs(text.c_str(), stdout);
  return kExitOk;
}

}  // namespace

void AddAnalyze(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<AnalyzeOptions>();
  CLI::App* command = app.add_subcommand(
      "analyze",
      "Which layers of a checkpoint are hard to quantize (needs no server)\n\nExamples:\n"
      "  assay analyze model.gguf\n"
      "  assay analyze model.gguf --scheme int4_group:g32 --activation a16 --metric kurtosis\n\n"
      "Quantizes one layer at a time and measures what the model loses; ends with a `keep` list "
      "for a recipe.");
  command->add_option("path", options->analysis.path, "GGUF file, safetensors file, or folder")
      ->required();
  command->add_option("--scheme", options->analysis.candidate.scheme, "Weights of the one layer")
      ->capture_default_str();
  command->add_option("--activation", options->activation, "Its activations")
      ->capture_default_str();
  command
      ->add_option("--metric", options->metric,
                   "Order: loss, sqnr, range_parm, kurtosis or quantile")
      ->capture_default_str();
  command->add_option("--top", options->top, "Layers shown, worst first")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command
      ->add_option("--calibration", options->analysis.calibration,
                   "Text, JSONL, token ids or .npy [the bundled extract]")
      ->type_name("FILE");
  command->add_option("--threads", options->threads, "Compute threads [all cores]")
      ->check(CLI::Range(0, 1024));
  command->add_flag("--json", options->json, "All layers, as JSON");
  command->callback([&line, options] { line.run = [options] { return RunAnalyze(*options); }; });
}

}  // namespace assay
