// Which recipe for which hardware: an ordered list of rules, the first that matches wins, and says
// why. Pure: hardware comes in as a value (probed or recorded), text as YAML. yaml-cpp is confined
// to policy.cc and recipe.cc.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "quant/scheme.h"

namespace assay {

struct GpuInfo {
  std::string name;            // "NVIDIA H100 80GB HBM3"
  int compute_capability = 0;  // 90 = sm_90
  uint64_t memory_bytes = 0;
  std::string unusable;  // why nothing can be placed there now; empty: it can. Not in JSON
};
struct HardwareInfo {
  std::string cpu_model, cpu_isa;  // isa as CpuInfo::isa()
  int cores = 0;
  uint64_t memory_bytes = 0;
  std::vector<GpuInfo> gpus;  // "cuda:0", "cuda:1", ...
  std::string why_no_gpu;     // in words, or empty. Not in JSON
};
HardwareInfo ProbeHardware();  // of the processor; GPUs: engine/lifecycle/placement.h
// Recorded descriptions (tests/golden/hardware/*.json, `assay policy explain --hardware FILE`).
// InvalidArgument names the key.
absl::StatusOr<HardwareInfo> HardwareFromJson(std::string_view text);
nlohmann::json ToJson(const HardwareInfo& hardware);

// What the methods of a recipe are fitted to.
struct CalibrationRecipe {
  std::string path;                // docs/formats.md, "Calibration data"; empty = the default one
  int samples = 64, window = 512;  // windows, tokens of each
};
// What admission chooses from, layer by layer, when a recipe leaves the choice to it.
struct SearchRecipe {
  std::vector<std::string> candidates;  // "scheme" or "scheme/activation"; empty = no search
  uint64_t max_bytes = 0;               // of the layers that have a choice; 0 = no limit
  double max_loss = 0;                  // mean KL in nats and the like; 0 = most of the budget
};
// How a model is quantized (design.md section 2).
struct Recipe {
  std::string name;
  std::string scheme = "int8_channel";  // of linear layers
  ActivationMode activation = ActivationMode::kA8Token;
  // The mode as the policy spells it: Name(activation), or for a `device: cuda` rule a mode that
  // only a later backend knows ("fp8_token"); `activation` is then meaningless.
  std::string activation_name = "a8_token";
  // Stored bits per weight of `scheme`, scales included: what decides whether a model fits.
  double bits_per_weight = 8.1;
  std::string embedding_scheme =
      "int8_channel";  // tables, one scale per row; a tied head shares the codes
  std::string fallback_scheme = "bf16";
  ActivationMode fallback_activation = ActivationMode::kA16;
  std::string fallback_activation_name = "a16";  // as activation_name
  double max_fallback_fraction = 0.2;            // of linear layers
  bool fallback_by_range =
      false;                      // `fallback.by: range`: by range_parm of the inputs, not measured
  int disable_level = 0;          // `fallback.disable_level: L10`: that many layers at once
  std::vector<std::string> keep;  // globs over slot names that stay in fallback_scheme
  std::vector<std::string> transforms;    // in order, as FindTransform takes them
  std::string rounding = "nearest";       // as FindRounding takes it
  double rounding_seconds = 0;            // for methods that improve step by step; 0 = no limit
  std::string activation_range = "auto";  // of static activations, as FindActivationRange takes it
  CalibrationRecipe calibration;
  SearchRecipe search;
  DType kv_dtype = DType::kF16;
  std::vector<std::string> rotate_inputs;  // globs over slot names: inputs rotated while serving
  int low_rank = 0;                        // of the 16-bit branch beside each linear's codes
  bool kv_key_channels = false;  // `kv_keys: channel`: calibrated means and scales of keys
  bool int8_scores = false;      // `attention: int8`: queries times keys in INT8
  // `kv_window`, `kv_sinks`: a query reads keys and values of so many latest positions (itself
  // included) and of the first ones in 16 bit, where `kv_dtype` has integer codes.
  int kv_window = 0, kv_sinks = 0;
};
// Recipes from cheap to accurate: the first that the gate lets through serves.
struct RecipeLadder {
  std::vector<Recipe> rungs;  // at least one
  // No further rung is begun after so many seconds: the one that was measured last is mended by
  // its fallback instead. 0 = no limit.
  double seconds = 0;
};
// What the verified model must keep to, per task (design.md section 5). Divergences in nats.
struct Budget {
  double max_mean_kl = 0.01, min_top1 = 0.95, max_perplexity_ratio = 1.01;  // generation
  double min_mean_cosine = 0.995;                                           // embeddings
  double min_label_agreement = 0.99;                                        // classification
  double min_task_recovery = 0.99;  // of the reference's figure, on a user's labelled data
};
struct PolicyDecision {
  std::string rule;     // name of the rule that won
  std::string device;   // "cpu", "cuda:0"
  std::string reason;   // the rule's own words: why this recipe on this hardware
  Recipe recipe;        // one of the ladder's
  RecipeLadder ladder;  // not in reports
  Budget budget;
  std::vector<std::string> trace;  // the hardware, then one line per rule looked at: matched, or
                                   // the condition that did not hold
};

// One of a search's candidates.
struct PlanCandidate {
  std::string scheme;
  ActivationMode activation = ActivationMode::kA16;
};
// "int8_channel/a8_token"; without a mode `activation` (floating schemes: a16). NotFound and
// InvalidArgument name the part that does not exist.
absl::StatusOr<PlanCandidate> ParsePlanCandidate(std::string_view spelling,
                                                 ActivationMode activation);

// Spellings of enums in policies, reports and artifacts.
std::optional<DType> FindDType(std::string_view name);
nlohmann::json ToJson(const Recipe& recipe);
nlohmann::json ToJson(const Budget& budget);

class Policy {
 public:
  // InvalidArgument with line and key: unknown key, wrong type, unknown scheme, no rules. A rule
  // for `device: cuda` may name schemes and activation modes that this build does not have.
  static absl::StatusOr<Policy> Parse(std::string_view yaml, std::string_view origin);
  static const Policy& Default();  // quant/policy/default.yaml, compiled in

  // `model_bytes_f32`: size of the weights at 4 bytes each. A GPU that is unusable is passed over.
  // A rule fits when the weights in its recipe take at most 90 % of the device's memory. NotFound
  // when no rule matches (the message carries the trace).
  absl::StatusOr<PolicyDecision> Choose(const HardwareInfo& hardware,
                                        uint64_t model_bytes_f32) const;
  const std::string& origin() const { return origin_; }  // "built-in" or the file
  std::vector<std::string> rule_names() const;           // in order

  struct Rule {
    std::string name, reason;
    DeviceKind device = DeviceKind::kCpu;
    std::vector<std::string> cpu_isa;  // any of; empty = any
    std::optional<int> min_compute_capability, max_compute_capability, min_cores;
    std::optional<uint64_t> min_gpu_memory_bytes, min_memory_bytes;
    RecipeLadder ladder;
    Budget budget;
    const Recipe& recipe() const { return ladder.rungs.front(); }
  };

 private:
  std::string origin_;
  std::vector<Rule> rules_;
};

}  // namespace assay
