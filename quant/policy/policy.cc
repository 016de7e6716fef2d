#include "quant/policy/policy.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "quant/policy/default_policy.h"
#include "quant/policy/recipe.h"
#include "quant/policy/yaml_section.h"

namespace assay {
namespace {

constexpr uint64_t kGib = uint64_t{1} << 30;
constexpr double kUsableMemory = 0.9;  // the rest is for activations, KV cache and everybody else

std::string Gib(double bytes) { return absl::StrFormat("%.2f GiB", bytes / kGib); }

template <typename T>
using Named = std::map<std::string, T, std::less<>>;

// Entries of a section of named things: {"int8": {...}, ...}.
template <typename T, typename Read>
absl::StatusOr<Named<T>> ReadNamed(YamlSection& root, const std::string& key, Read read) {
  Named<T> named;
  const YAML::Node node = root.Child(key);
  if (!node.IsDefined()) return named;
  ASSIGN_OR_RETURN(YamlSection section, root.Section(key));
  for (const auto& entry : node) {
    const std::string name = entry.first.Scalar();
    ASSIGN_OR_RETURN(YamlSection one, section.Section(name));
    ASSIGN_OR_RETURN(T value, read(std::move(one), name));
    named.emplace(name, std::move(value));
  }
  return named;
}

absl::Status ReadCapability(YamlSection& when, Policy::Rule& rule) {
  if (!when.Child("compute_capability").IsDefined()) return absl::OkStatus();
  ASSIGN_OR_RETURN(YamlSection range, when.Section("compute_capability"));
  ASSIGN_OR_RETURN(rule.min_compute_capability, range.Integer("min"));
  ASSIGN_OR_RETURN(rule.max_compute_capability, range.Integer("max"));
  return range.Finish();
}

absl::StatusOr<std::optional<uint64_t>> ReadGib(YamlSection& when, const std::string& key) {
  if (!when.Child(key).IsDefined()) return std::nullopt;
  double gib = 0;
  RETURN_IF_ERROR(when.Number(key, 0, 1e9, gib));
  return static_cast<uint64_t>(gib * kGib);
}

absl::Status ReadConditions(YamlSection& section, Policy::Rule& rule) {
  ASSIGN_OR_RETURN(YamlSection when, section.Section("when"));
  ASSIGN_OR_RETURN(const std::optional<std::string> device, when.Text("device"));
  if (!device.has_value() || (*device != "cpu" && *device != "cuda")) {
    return when.Error("device", "expected cpu or cuda");
  }
  rule.device = *device == "cpu" ? DeviceKind::kCpu : DeviceKind::kCuda;
  ASSIGN_OR_RETURN(rule.cpu_isa, when.TextList("cpu_isa"));
  ASSIGN_OR_RETURN(rule.min_cores, when.Integer("cores"));
  ASSIGN_OR_RETURN(rule.min_memory_bytes, ReadGib(when, "memory_gib"));
  ASSIGN_OR_RETURN(rule.min_gpu_memory_bytes, ReadGib(when, "gpu_memory_gib"));
  RETURN_IF_ERROR(ReadCapability(when, rule));
  if (rule.device == DeviceKind::kCpu) {
    for (const char* key : {"compute_capability", "gpu_memory_gib"}) {
      if (when.Child(key).IsDefined()) return when.Error(key, "a condition for device: cuda only");
    }
  }
  return when.Finish();
}

struct Vocabulary {
  Named<RawRecipe> recipes;
  Named<Budget> budgets;
};

template <typename T>
absl::StatusOr<T> Lookup(YamlSection& section, const std::string& key, const Named<T>& named) {
  ASSIGN_OR_RETURN(const std::optional<std::string> name, section.Text(key));
  if (!name.has_value()) return section.Error(key, "missing");
  const auto it = named.find(*name);
  if (it == named.end()) return section.Error(key, "no such name in this file");
  return it->second;
}

// `recipe: int8`, or a list from cheap to accurate.
absl::Status ReadLadder(YamlSection& section, const Vocabulary& vocabulary, Policy::Rule& rule) {
  std::vector<std::string> names;
  if (section.Child("recipe").IsSequence()) {
    ASSIGN_OR_RETURN(names, section.TextList("recipe"));
  } else {
    ASSIGN_OR_RETURN(const std::optional<std::string> name, section.Text("recipe"));
    if (name.has_value()) names.push_back(*name);
  }
  if (names.empty()) return section.Error("recipe", "missing");
  for (const std::string& name : names) {
    const auto it = vocabulary.recipes.find(name);
    if (it == vocabulary.recipes.end())
      return section.Error("recipe", "no such name in this file: " + name);
    ASSIGN_OR_RETURN(rule.ladder.rungs.emplace_back(), ResolveRecipe(it->second, rule.device));
  }
  return section.Number("ladder_seconds", 0, 1e6, rule.ladder.seconds);
}

absl::StatusOr<Policy::Rule> ReadRule(YamlSection section, const Vocabulary& vocabulary) {
  Policy::Rule rule;
  RETURN_IF_ERROR(section.Text("name", rule.name));
  RETURN_IF_ERROR(section.Text("reason", rule.reason));
  if (rule.name.empty()) return section.Error("name", "missing");
  if (rule.reason.empty()) return section.Error("reason", "missing");
  RETURN_IF_ERROR(ReadConditions(section, rule));
  RETURN_IF_ERROR(ReadLadder(section, vocabulary, rule));
  ASSIGN_OR_RETURN(rule.budget, Lookup(section, "budget", vocabulary.budgets));
  RETURN_IF_ERROR(section.Finish());
  return rule;
}

// Empty when the weights fit the device, else what is missing.
std::string DoesNotFit(const Recipe& recipe, uint64_t model_bytes_f32, uint64_t memory_bytes) {
  const double need = static_cast<double>(model_bytes_f32) * recipe.bits_per_weight / 32;
  if (need <= kUsableMemory * static_cast<double>(memory_bytes)) return "";
  return absl::StrFormat("needs %s at %.2f bits per weight, 90 %% of the memory is %s", Gib(need),
                         recipe.bits_per_weight,
                         Gib(kUsableMemory * static_cast<double>(memory_bytes)));
}

// Empty when the host's side of the rule holds, else the condition that does not.
std::string HostMismatch(const Policy::Rule& rule, const HardwareInfo& hardware) {
  if (!rule.cpu_isa.empty() &&
      std::find(rule.cpu_isa.begin(), rule.cpu_isa.end(), hardware.cpu_isa) == rule.cpu_isa.end()) {
    return absl::StrCat("CPU has ", hardware.cpu_isa, ", the rule asks for ",
                        absl::StrJoin(rule.cpu_isa, " or "));
  }
  if (rule.min_cores.has_value() && hardware.cores < *rule.min_cores) {
    return absl::StrCat("cores=", hardware.cores, " are fewer than ", *rule.min_cores);
  }
  if (rule.min_memory_bytes.has_value() && hardware.memory_bytes < *rule.min_memory_bytes) {
    return absl::StrCat("memory ", Gib(static_cast<double>(hardware.memory_bytes)),
                        " is less than ", Gib(static_cast<double>(*rule.min_memory_bytes)));
  }
  return "";
}

std::string GpuMismatch(const Policy::Rule& rule, const GpuInfo& gpu, uint64_t model_bytes_f32) {
  const int capability = gpu.compute_capability;
  if (capability < rule.min_compute_capability.value_or(0) ||
      capability > rule.max_compute_capability.value_or(capability)) {
    return absl::StrCat("sm_", capability, " is outside sm_",
                        rule.min_compute_capability.value_or(0), "..sm_",
                        rule.max_compute_capability.value_or(999));
  }
  if (gpu.memory_bytes < rule.min_gpu_memory_bytes.value_or(0)) {
    return absl::StrCat("GPU memory ", Gib(static_cast<double>(gpu.memory_bytes)), " is less than ",
                        Gib(static_cast<double>(*rule.min_gpu_memory_bytes)));
  }
  return DoesNotFit(rule.recipe(), model_bytes_f32, gpu.memory_bytes);
}

// "recipe int8 (int8_channel, a8_token), else int8_a16 (int8_group:g32, a16)"
std::string Describe(const RecipeLadder& ladder) {
  std::string text = "recipe ";
  for (const Recipe& recipe : ladder.rungs) {
    absl::StrAppend(&text, &recipe == &ladder.rungs.front() ? "" : ", else ", recipe.name, " (",
                    recipe.scheme, ", ", recipe.activation_name, ")");
  }
  return text;
}

struct Match {
  std::string device;    // empty: the rule does not apply
  std::string sentence;  // for the trace
};

Match MatchCpu(const Policy::Rule& rule, const HardwareInfo& hardware, uint64_t model_bytes_f32) {
  std::string mismatch = HostMismatch(rule, hardware);
  if (mismatch.empty())
    mismatch = DoesNotFit(rule.recipe(), model_bytes_f32, hardware.memory_bytes);
  if (!mismatch.empty()) return {"", mismatch};
  return {"cpu", ""};
}

Match MatchGpu(const Policy::Rule& rule, const HardwareInfo& hardware, uint64_t model_bytes_f32) {
  if (hardware.gpus.empty()) return {"", "no CUDA device here"};
  if (const std::string mismatch = HostMismatch(rule, hardware); !mismatch.empty()) {
    return {"", mismatch};
  }
  std::string first_mismatch, would, passed_over;
  for (size_t i = 0; i < hardware.gpus.size(); ++i) {
    const GpuInfo& gpu = hardware.gpus[i];
    const std::string mismatch = GpuMismatch(rule, gpu, model_bytes_f32);
    if (first_mismatch.empty()) first_mismatch = absl::StrCat(gpu.name, ": ", mismatch);
    if (!mismatch.empty()) continue;
    if (gpu.unusable.empty())
      return {absl::StrCat("cuda:", i), absl::StrCat(gpu.name, passed_over)};
    absl::StrAppend(&passed_over, "; cuda:", i, " cannot be used: ", gpu.unusable);
    if (would.empty())
      would = absl::StrCat("would select ", Describe(rule.ladder), " on ", gpu.name, ", but ");
  }
  if (would.empty()) return {"", first_mismatch};
  return {"", absl::StrCat(would, passed_over.substr(2))};
}

std::string Describe(const HardwareInfo& hardware) {
  std::string text = absl::StrCat("hardware: ", hardware.cpu_model, ", ", hardware.cpu_isa,
                                  ", cores=", hardware.cores, ", memory ",
                                  Gib(static_cast<double>(hardware.memory_bytes)));
  for (const GpuInfo& gpu : hardware.gpus) {
    absl::StrAppend(&text, "; ", gpu.name, ", sm_", gpu.compute_capability, ", ",
                    Gib(static_cast<double>(gpu.memory_bytes)));
  }
  if (hardware.gpus.empty()) absl::StrAppend(&text, "; no GPU");
  return text;
}

}  // namespace

absl::StatusOr<Policy> Policy::Parse(std::string_view yaml, std::string_view origin) {
  Policy policy;
  policy.origin_ = std::string(origin);
  ASSIGN_OR_RETURN(const YAML::Node document, LoadYaml(yaml, policy.origin_));
  ASSIGN_OR_RETURN(YamlSection root, YamlSection::Open(document, policy.origin_, ""));
  ASSIGN_OR_RETURN(const std::optional<int> version, root.Integer("version"));
  if (version != 1) return root.Error("version", "expected policy format 1");
  Vocabulary vocabulary;
  ASSIGN_OR_RETURN(vocabulary.recipes,
                   ReadNamed<RawRecipe>(root, "recipes", [](YamlSection section, std::string name) {
                     return RecipeFromYaml(std::move(section), std::move(name));
                   }));
  ASSIGN_OR_RETURN(vocabulary.budgets,
                   ReadNamed<Budget>(root, "budgets", [](YamlSection section, const std::string&) {
                     return BudgetFromYaml(std::move(section));
                   }));
  const YAML::Node rules = root.Child("rules");
  RETURN_IF_ERROR(root.Finish());
  if (!rules.IsDefined() || !rules.IsSequence() || rules.size() == 0) {
    return root.Error("rules", "expected a list of at least one rule");
  }
  for (const YAML::Node& node : rules) {
    const std::string path = absl::StrCat("rules[", policy.rules_.size(), "]");
    ASSIGN_OR_RETURN(YamlSection section, YamlSection::Open(node, policy.origin_, path));
    ASSIGN_OR_RETURN(Rule rule, ReadRule(std::move(section), vocabulary));
    for (const std::string& name : policy.rule_names()) {
      if (name == rule.name) {
        return absl::InvalidArgumentError(absl::StrCat(policy.origin_, ":", node.Mark().line + 1,
                                                       ": two rules of one name: name=", name));
      }
    }
    policy.rules_.push_back(std::move(rule));
  }
  return policy;
}

const Policy& Policy::Default() {
  // A built-in policy that does not parse is our bug; a test parses it, so this cannot fail later.
  static const Policy* const policy =
      new Policy(Policy::Parse(kDefaultPolicyYaml, "built-in").value());
  return *policy;
}

std::vector<std::string> Policy::rule_names() const {
  std::vector<std::string> names;
  for (const Rule& rule : rules_) names.push_back(rule.name);
  return names;
}

absl::StatusOr<PolicyDecision> Policy::Choose(const HardwareInfo& hardware,
                                              uint64_t model_bytes_f32) const {
  PolicyDecision decision;
  decision.trace.push_back(Describe(hardware));
  for (const Rule& rule : rules_) {
    const Match match = rule.device == DeviceKind::kCpu ? MatchCpu(rule, hardware, model_bytes_f32)
                                                        : MatchGpu(rule, hardware, model_bytes_f32);
    if (match.device.empty()) {
      decision.trace.push_back(absl::StrCat(rule.name, ": ", match.sentence));
      continue;
    }
    decision.trace.push_back(absl::StrCat(rule.name, ": matched ", match.device,
                                          match.sentence.empty() ? "" : " (" + match.sentence + ")",
                                          " -> ", Describe(rule.ladder), ": ", rule.reason));
    decision.rule = rule.name;
    decision.device = match.device;
    decision.reason = rule.reason;
    decision.recipe = rule.recipe();
    decision.ladder = rule.ladder;
    decision.budget = rule.budget;
    return decision;
  }
  return absl::NotFoundError(absl::StrCat("no rule of the policy matches: policy=", origin_, "\n  ",
                                          absl::StrJoin(decision.trace, "\n  ")));
}

}  // namespace assay
