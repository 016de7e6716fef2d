#include "quant/policy/policy.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/mapped_file.h"
#include "cli/commands.h"
#include "engine/lifecycle/placement.h"

namespace assay {
namespace {

struct PolicyOptions {
  std::string hardware, policy;
  uint64_t model_bytes = 0;
  bool json = false;
};

void PrintText(const PolicyDecision& decision, const std::string& origin) {
  const Recipe& recipe = decision.recipe;
  const Budget& budget = decision.budget;
  std::printf(
      "policy    %s\nrule      %s\ndevice    %s\nrecipe    %s: linear layers %s/%s, "
      "embeddings %s,\n          at most %.0f %% of the layers kept in %s/%s\n",
      origin.c_str(), decision.rule.c_str(), decision.device.c_str(), recipe.name.c_str(),
      recipe.scheme.c_str(), std::string(Name(recipe.activation)).c_str(),
      recipe.embedding_scheme.c_str(), 100 * recipe.max_fallback_fraction,
      recipe.fallback_scheme.c_str(), std::string(Name(recipe.fallback_activation)).c_str());
  std::printf(
      "budget    text: mean KL <= %g, top-1 >= %g, perplexity x <= %g; embeddings: cosine "
      ">= %g; labels: agreement >= %g\nwhy\n",
      budget.max_mean_kl, budget.min_top1, budget.max_perplexity_ratio, budget.min_mean_cosine,
      budget.min_label_agreement);
  for (const std::string& line : decision.trace) std::printf("  %s\n", line.c_str());
}

absl::Status ExplainPolicy(const PolicyOptions& options) {
  ASSIGN_OR_RETURN(const Gpus gpus, Gpus::Open(DriverWorld(), {}));
  HardwareInfo hardware = DescribeHardware(gpus);
  if (!options.hardware.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(options.hardware));
    const absl::StatusOr<HardwareInfo> read = HardwareFromJson(text);
    if (!read.ok()) return Annotate(read.status(), options.hardware);
    hardware = *read;
  }
  absl::StatusOr<Policy> policy = Policy::Default();
  if (!options.policy.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(options.policy));
    policy = Policy::Parse(text, options.policy);
    RETURN_IF_ERROR(policy.status());
  }
  ASSIGN_OR_RETURN(const PolicyDecision decision, policy->Choose(hardware, options.model_bytes));
  if (!options.json) {
    std::printf("hardware  %s\n", ToJson(hardware).dump().c_str());
    PrintText(decision, policy->origin());
    return absl::OkStatus();
  }
  const nlohmann::ordered_json json{{"rule", decision.rule},
                                    {"device", decision.device},
                                    {"recipe", decision.recipe.name},
                                    {"scheme", decision.recipe.scheme},
                                    {"activation", std::string(Name(decision.recipe.activation))},
                                    {"policy", policy->origin()},
                                    {"hardware", nlohmann::ordered_json(ToJson(hardware))},
                                    {"trace", decision.trace}};
  std::puts(json.dump(2).c_str());
  return absl::OkStatus();
}

}  // namespace

void AddPolicy(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<PolicyOptions>();
  CLI::App* policy = app.add_subcommand("policy", "What the policy decides (needs no server)");
  policy->require_subcommand(1);
  CLI::App* command =
      policy->add_subcommand("explain",
                             "Which recipe for which hardware, and why\n\nExamples:\n"
                             "  assay policy explain\n"
                             "  assay policy explain --hardware tests/golden/hardware/h100.json");
  command->add_option("--hardware", options->hardware, "Recorded hardware (JSON) [this machine]")
      ->type_name("FILE");
  command->add_option("--policy", options->policy, "Policy file [the built-in one]")
      ->type_name("FILE");
  command->add_option("--model-bytes", options->model_bytes, "Size of the weights at f32");
  command->add_flag("--json", options->json, "As JSON");
  command->callback([&line, options] {
    line.run = [options] {
      const absl::Status status = ExplainPolicy(*options);
      return status.ok() ? kExitOk : FailLocally(status);
    };
  });
}

}  // namespace assay
