// Admission without a server: the same pipeline, in this process, that ends before serving.
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/mutex.h"
#include "base/thread_pool.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "engine/lifecycle/admission.h"
#include "engine/lifecycle/progress_display.h"
#include "engine/lifecycle/report.h"
#include "engine/metrics.h"

namespace assay {
namespace {

struct OfflineOptions {
  std::string path, scheme, recipe, policy, evaluation, calibration, labelled, output, html;
  SearchRecipe search;
  double budget_kl = 0;
  int threads = 0;
  // As the server's options of these names: on another device, or with less memory, the policy may
  // decide otherwise, and the artifact would be of no use to the server.
  uint64_t memory_limit = 0, gpu_kv_cache = 0;
  std::string gpu_devices = "auto", gpu_profile;
  bool json = false;
};

// The end of one admission, handed from its thread to ours.
class Outcome {
 public:
  void Set(AdmissionProgress progress) {
    const MutexLock lock(mutex_);
    progress_ = std::move(progress);
    done_ = true;
    changed_.NotifyOne();
  }
  AdmissionProgress Wait() {
    const MutexLock lock(mutex_);
    while (!done_) changed_.Wait(mutex_);
    return progress_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  AdmissionProgress progress_ ABSL_GUARDED_BY(mutex_);
};

// "90MB" -> 90000000; without a unit: bytes.
std::optional<uint64_t> ParseBytes(const std::string& text) {
  static constexpr std::pair<const char*, double> kUnits[] = {
      {"KiB", 1024}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", uint64_t{1} << 40},
      {"kB", 1e3},   {"KB", 1e3},      {"MB", 1e6},      {"GB", 1e9},
      {"TB", 1e12},  {"B", 1}};
  std::string number = text;
  double unit = 1;
  for (const auto& [name, size] : kUnits) {
    if (!absl::EndsWith(text, name)) continue;
    number = text.substr(0, text.size() - std::string(name).size());
    unit = size;
    break;
  }
  double value = 0;
  if (!absl::SimpleAtod(number, &value) || !(value * unit >= 1) || !(value * unit < 1e18)) {
    return std::nullopt;
  }
  return static_cast<uint64_t>(value * unit);
}

absl::StatusOr<AdmissionOptions> PipelineOptions(const OfflineOptions& options) {
  AdmissionOptions pipeline;
  if (!options.policy.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(options.policy));
    ASSIGN_OR_RETURN(pipeline.policy, Policy::Parse(text, options.policy));
  }
  pipeline.evaluation_path = options.evaluation;
  pipeline.cache_dir = options.output;
  pipeline.memory_limit_bytes = options.memory_limit;
  pipeline.gpu_kv_bytes = options.gpu_kv_cache;
  return pipeline;
}

constexpr double kNoLimit = 1e9;  // finite: reports are JSON

// A budget of one figure: the guards of the policy's are for its own recipes.
std::optional<Budget> BudgetOf(const OfflineOptions& options) {
  if (options.budget_kl == 0) return std::nullopt;
  return Budget{.max_mean_kl = options.budget_kl,
                .min_top1 = 0,
                .max_perplexity_ratio = kNoLimit,
                .min_mean_cosine = 1 - options.budget_kl,
                .min_label_agreement = 1 - options.budget_kl};
}

absl::StatusOr<AdmissionProgress> Admit(const OfflineOptions& options) {
  ASSIGN_OR_RETURN(AdmissionOptions pipeline_options, PipelineOptions(options));
  ASSIGN_OR_RETURN(const Gpus gpus, Gpus::Open(DriverWorld(), {.devices = options.gpu_devices,
                                                               .profile = options.gpu_profile}));
  pipeline_options.gpus = &gpus;
  ThreadPool pool({.num_threads = options.threads});
  Metrics metrics(ASSAY_VERSION, "cpu");
  ModelRegistry registry;
  ProgressDisplay display(stderr);
  Outcome outcome;
  const std::unique_ptr<AdmissionPipeline> pipeline =
      AdmissionPipeline::Start(registry, pool, metrics, RealClock(), std::move(pipeline_options));
  const AdmissionRequest request = {.path = options.path,
                                    .scheme = options.scheme,
                                    .recipe = options.recipe,
                                    .calibration = options.calibration,
                                    .labelled = options.labelled,
                                    .search = options.search,
                                    .budget = BudgetOf(options),
                                    .dry_run = true};
  const auto sink = [&](const AdmissionProgress& progress) {
    if (progress.done) {
      outcome.Set(progress);
    } else {
      display.Show({absl::StrCat(progress.name, ":", progress.version), progress.stage,
                    progress.fraction, progress.message},
                   absl::Now());
    }
  };
  RETURN_IF_ERROR(pipeline->Enqueue(request, sink).status());
  AdmissionProgress end = outcome.Wait();
  display.Clear();
  return end;
}

// An artifact that cannot be kept is no use: said before the work, not after it.
absl::Status CheckOutput(const std::string& output) {
  if (output.empty()) return absl::OkStatus();
  std::error_code error;
  std::filesystem::create_directories(output, error);
  if (!error && access(output.c_str(), W_OK | X_OK) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("cannot write to this folder: output=", output,
                   " error=", error ? error.message() : "no permission"));
}

// Why the artifact was not kept; empty when it was, or was not to be.
std::string NotStored(const AdmissionReport& report) {
  for (const StageReport& stage : report.stages) {
    if (stage.stage == "store" && stage.note.rfind("not stored", 0) == 0) return stage.note;
  }
  return "";
}

int RunOffline(const OfflineOptions& options) {
  ConfigureLog(LogLevel::kError, LogFormat::kText);
  if (const absl::Status output = CheckOutput(options.output); !output.ok())
    return FailLocally(output);
  const absl::StatusOr<AdmissionProgress> end = Admit(options);
  if (!end.ok()) return FailLocally(end.status());
  if (end->report == nullptr) return FailLocally(end->status);
  const std::string text = options.json ? ToJson(*end->report).dump(2) + "\n"
                                        : ToTerminalText(*end->report, TerminalColumns());
  std::fputs(text.c_str(), stdout);
  if (!options.html.empty()) {
    if (const int code = SaveReportPage(*end->report, options.html); code != kExitOk) return code;
  }
  if (const std::string problem = NotStored(*end->report);
      end->status.ok() && !options.output.empty() && !problem.empty()) {
    return FailLocally(absl::InternalError(problem + ": output=" + options.output));
  }
  if (end->status.ok()) return kExitOk;
  FailLocally(end->status);
  return end->report->verdict == "rejected" ? kExitRejected : kExitRefused;
}

// `size` outlives the command.
template <typename Size>
void AddSize(CLI::App* command, const char* flag, Size& size, const char* help) {
  command
      ->add_option_function<std::string>(
          flag,
          [flag, &size](const std::string& text) {
            const std::optional<uint64_t> bytes = ParseBytes(text);
            if (!bytes.has_value()) {
              throw CLI::ValidationError(
                  flag, "expected a positive size such as 90MB or 1.5GiB: " + text);
            }
            size = *bytes;
          },
          help)
      ->type_name("SIZE");
}

void AddCommon(CLI::App* command, OfflineOptions& options) {
  command->add_option("path", options.path, "GGUF file, safetensors file, or folder")->required();
  command->add_option("--recipe", options.recipe,
                      "Built-in recipe (assay recipes) or a YAML file [the policy decides]");
  command->add_option("--policy", options.policy, "Policy file [the built-in one]")
      ->type_name("FILE");
  command->add_option("--evaluation", options.evaluation, "Held-out text [the bundled extract]")
      ->type_name("FILE");
  command
      ->add_option("--calibration", options.calibration,
                   "Text, JSONL, token ids or .npy [the recipe's, else the bundled extract]")
      ->type_name("FILE");
  command
      ->add_option(
          "--labelled", options.labelled,
          "JSON lines of your task: {\"text\", and \"label\", \"references\" or \"other\"}; "
          "accuracy and F1, BLEU and chrF, or cosine, beside the reference's")
      ->type_name("FILE");
  command->add_option("--threads", options.threads, "Compute threads [all cores]")
      ->check(CLI::Range(0, 1024));
  AddSize(command, "--memory-limit", options.memory_limit,
          "Most memory to plan with, as the server's memory_limit [what the host has]");
  command->add_option("--gpu-devices", options.gpu_devices,
                      "As the server's gpu.devices: auto, none, or names");
  command->add_option("--gpu-profile", options.gpu_profile, "As the server's gpu.profile");
  AddSize(command, "--gpu-kv-cache", options.gpu_kv_cache,
          "As the server's gpu.kv_cache [what is left of a GPU's memory]");
  command->add_flag("--json", options.json, "The report as JSON");
  command->add_option("--html", options.html, "The report also as a page, into this file")
      ->type_name("FILE");
}

// Not for a search, which chooses among several.
void AddScheme(CLI::App* command, OfflineOptions& options) {
  command->add_option("--scheme", options.scheme, "One scheme for every layer")
      ->excludes("--recipe");
}

}  // namespace

void AddVerify(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<OfflineOptions>();
  CLI::App* command = app.add_subcommand(
      "verify",
      "Quantize and prove a checkpoint here, keep nothing (needs no server)\n\nExamples:\n"
      "  assay verify model.gguf\n"
      "  assay verify ./my-model --recipe w8a8_dynamic --json\n\n"
      "Exit code 3: the accuracy gate would reject it; the report says which layer and why.");
  AddCommon(command, *options);
  AddScheme(command, *options);
  command->callback([&line, options] { line.run = [options] { return RunOffline(*options); }; });
}

void AddQuantize(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<OfflineOptions>();
  CLI::App* command = app.add_subcommand(
      "quantize",
      "Quantize and prove a checkpoint into an artifact folder (needs no server)\n\nExamples:\n"
      "  assay quantize model.gguf --output ~/artifacts\n\n"
      "A server whose artifact_cache is that folder then loads the model instead of quantizing "
      "it.");
  AddCommon(command, *options);
  AddScheme(command, *options);
  command->add_option("--output", options->output, "Artifact folder, made when absent")
      ->required()
      ->type_name("DIR");
  command->callback([&line, options] { line.run = [options] { return RunOffline(*options); }; });
}

void AddPlan(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<OfflineOptions>();
  CLI::App* command = app.add_subcommand(
      "plan",
      "Find the best plan of a checkpoint inside a budget, and prove it (needs no server)\n\n"
      "Examples:\n"
      "  assay plan model.gguf --budget-kl 0.02\n"
      "  assay plan model.gguf --budget-bytes 90MB --html plan.html\n"
      "  assay plan model.gguf --candidates nf4 int8_group:g32 --output ~/artifacts\n\n"
      "Measures every layer in every candidate, chooses, verifies the whole. Exit code 3: no plan "
      "keeps to the budget.");
  options->recipe = "auto";
  AddCommon(command, *options);
  AddSize(command, "--budget-bytes", options->search.max_bytes,
          "Most bytes of the layers' weights: 90MB, 1.5GiB");
  command
      ->add_option("--budget-kl", options->budget_kl,
                   "Most mean KL in nats (encoders: 1 - cosine), instead of the policy's budget")
      ->check(CLI::PositiveNumber)
      ->check([](const std::string& text) {
        double value = 0;
        return absl::SimpleAtod(text, &value) && std::isfinite(value) ? std::string()
                                                                      : "not a number: " + text;
      });
  command->add_option("--candidates", options->search.candidates,
                      "What a layer may get: scheme, or scheme/activation [the recipe's]");
  command->add_option("--output", options->output, "Keep the artifact in this folder")
      ->type_name("DIR");
  command->callback([&line, options] { line.run = [options] { return RunOffline(*options); }; });
}

}  // namespace assay
