#include "quant/policy/recipe.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "quant/methods/activation_range.h"
#include "quant/methods/rounding.h"
#include "quant/methods/sensitivity.h"
#include "quant/methods/transform_list.h"

namespace assay {
namespace {

// A scheme's bits per weight on a layer of ordinary size: what the fit of a model is judged by.
double TypicalBits(const QuantScheme& scheme) {
  constexpr int64_t kTypicalSide = 4096;
  return scheme.bits_per_weight(Shape{kTypicalSide, kTypicalSide});
}

absl::Status ReadFallback(YamlSection& section, Recipe& recipe) {
  if (!section.Child("fallback").IsDefined()) return absl::OkStatus();
  ASSIGN_OR_RETURN(YamlSection fallback, section.Section("fallback"));
  RETURN_IF_ERROR(fallback.Text("scheme", recipe.fallback_scheme));
  RETURN_IF_ERROR(fallback.Text("activation", recipe.fallback_activation_name));
  RETURN_IF_ERROR(fallback.Number("max_fraction", 0, 1, recipe.max_fallback_fraction));
  ASSIGN_OR_RETURN(const std::optional<std::string> by, fallback.Text("by"));
  if (by.has_value() && *by != "kl" && *by != "range")
    return fallback.Error("by", absl::StrCat("expected kl or range: ", *by));
  recipe.fallback_by_range = by == "range";
  ASSIGN_OR_RETURN(const std::optional<std::string> level, fallback.Text("disable_level"));
  if (level.has_value()) {
    const absl::StatusOr<int64_t> layers = ParseDisableLevel(*level);
    if (!layers.ok())
      return fallback.Error("disable_level", std::string(layers.status().message()));
    recipe.disable_level = static_cast<int>(*layers);
  }
  return fallback.Finish();
}

absl::Status ReadPositions(YamlSection& section, const char* key, int& value) {
  constexpr int kMost = 4096;
  ASSIGN_OR_RETURN(const std::optional<int> given, section.Integer(key));
  value = given.value_or(0);
  if (value <= kMost) return absl::OkStatus();
  return section.Error(key, absl::StrCat("expected at most ", kMost, ": ", value));
}

absl::Status ReadKv(YamlSection& section, Recipe& recipe) {
  ASSIGN_OR_RETURN(const std::optional<std::string> kv, section.Text("kv"));
  if (kv.has_value()) {
    const std::optional<DType> dtype = FindDType(*kv);
    if (!dtype.has_value())
      return section.Error("kv", "expected an element type such as f16 or f32");
    recipe.kv_dtype = *dtype;
  }
  ASSIGN_OR_RETURN(const std::optional<std::string> keys, section.Text("kv_keys"));
  if (keys.has_value() && *keys != "token" && *keys != "channel")
    return section.Error("kv_keys", absl::StrCat("expected token or channel: ", *keys));
  recipe.kv_key_channels = keys == "channel";
  const bool codes = recipe.kv_dtype == DType::kI8 || recipe.kv_dtype == DType::kU4;
  if (recipe.kv_key_channels && !codes)
    return section.Error("kv_keys", "channels of keys are for kv: i8 and kv: u4");
  for (const auto& [key, value] : {std::pair<const char*, int*>{"kv_window", &recipe.kv_window},
                                   {"kv_sinks", &recipe.kv_sinks}}) {
    RETURN_IF_ERROR(ReadPositions(section, key, *value));
    if (*value > 0 && !codes)
      return section.Error(key, "positions in 16 bit are for kv: i8 and kv: u4");
  }
  ASSIGN_OR_RETURN(const std::optional<std::string> attention, section.Text("attention"));
  if (attention.has_value() && *attention != "f32" && *attention != "int8")
    return section.Error("attention", absl::StrCat("expected f32 or int8: ", *attention));
  recipe.int8_scores = attention == "int8";
  if (recipe.int8_scores && recipe.kv_dtype != DType::kI8)
    return section.Error("attention", "int8 multiplies keys in INT8: it needs kv: i8");
  return absl::OkStatus();
}

// `calibration: FILE`, or a mapping.
absl::Status ReadCalibration(YamlSection& section, Recipe& recipe) {
  CalibrationRecipe& calibration = recipe.calibration;
  const YAML::Node node = section.Child("calibration");
  if (!node.IsDefined()) return absl::OkStatus();
  if (node.IsScalar()) return section.Text("calibration", calibration.path);
  ASSIGN_OR_RETURN(YamlSection part, section.Section("calibration"));
  RETURN_IF_ERROR(part.Text("path", calibration.path));
  constexpr int kMost = 1 << 16;
  for (const auto& [key, value] : {std::pair<const char*, int*>{"samples", &calibration.samples},
                                   {"window", &calibration.window}}) {
    ASSIGN_OR_RETURN(const std::optional<int> given, part.Integer(key));
    if (!given.has_value()) continue;
    if (*given < 2 || *given > kMost) {
      return part.Error(key, absl::StrCat("expected 2 to ", kMost, ": ", *given));
    }
    *value = *given;
  }
  return part.Finish();
}

// `search: {candidates: [...], max_bytes: n, max_loss: x}`
absl::Status ReadSearch(YamlSection& section, SearchRecipe& search) {
  if (!section.Child("search").IsDefined()) return absl::OkStatus();
  ASSIGN_OR_RETURN(YamlSection part, section.Section("search"));
  ASSIGN_OR_RETURN(search.candidates, part.TextList("candidates"));
  if (search.candidates.empty()) {
    return part.Error("candidates", "expected at least one scheme");
  }
  double bytes = 0;
  RETURN_IF_ERROR(part.Number("max_bytes", 0, 1e15, bytes));
  search.max_bytes = static_cast<uint64_t>(bytes);
  RETURN_IF_ERROR(part.Number("max_loss", 0, 100, search.max_loss));
  return part.Finish();
}

absl::Status ReadMethods(YamlSection& section, Recipe& recipe) {
  ASSIGN_OR_RETURN(recipe.transforms, section.TextList("transforms"));
  RETURN_IF_ERROR(section.Text("rounding", recipe.rounding));
  RETURN_IF_ERROR(section.Number("rounding_seconds", 0, 1e6, recipe.rounding_seconds));
  RETURN_IF_ERROR(section.Text("activation_range", recipe.activation_range));
  RETURN_IF_ERROR(ReadSearch(section, recipe.search));
  return ReadCalibration(section, recipe);
}

// Methods and their canonical spelling. Other devices find their codes on the CPU too.
absl::Status ResolveMethods(Recipe& recipe, const std::string& where) {
  const auto fail = [&](const char* key, const absl::Status& status) {
    return absl::InvalidArgumentError(absl::StrCat(where, ".", key, ": ", status.message()));
  };
  for (std::string& name : recipe.transforms) {
    const absl::StatusOr<TransformSpec> transform = FindTransform(name);
    if (!transform.ok()) return fail("transforms", transform.status());
    name = transform->name;
  }
  const absl::StatusOr<const Rounding*> rounding = FindRounding(recipe.rounding);
  if (!rounding.ok()) return fail("rounding", rounding.status());
  recipe.rounding = std::string((*rounding)->name());
  for (const std::string& candidate : recipe.search.candidates) {
    const absl::Status known = ParsePlanCandidate(candidate, recipe.activation).status();
    if (!known.ok()) return fail("search.candidates", known);
  }
  const absl::Status range = CheckActivationRange(recipe.activation_range);
  return range.ok() ? range : fail("activation_range", range);
}

// On the CPU every name must exist; elsewhere an unknown one is kept as text.
absl::Status CheckScheme(const std::string& name, DeviceKind device, const std::string& where) {
  const absl::StatusOr<const QuantScheme*> found = FindScheme(name);
  if (found.ok() || device != DeviceKind::kCpu) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", found.status().message()));
}

absl::Status ResolveMode(const std::string& name, DeviceKind device, const std::string& where,
                         ActivationMode& mode) {
  const std::optional<ActivationMode> found = FindActivationMode(name);
  if (found.has_value()) mode = *found;
  if (found.has_value() || device != DeviceKind::kCpu) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": no such activation mode on the CPU: activation=", name));
}

}  // namespace

absl::StatusOr<PlanCandidate> ParsePlanCandidate(std::string_view spelling,
                                                 ActivationMode activation) {
  const size_t slash = spelling.find('/');
  PlanCandidate candidate{std::string(spelling.substr(0, slash)), activation};
  ASSIGN_OR_RETURN(const QuantScheme* scheme, FindScheme(candidate.scheme));
  candidate.scheme = std::string(scheme->name());
  if (scheme->is_floating()) candidate.activation = ActivationMode::kA16;
  if (slash == std::string_view::npos) return candidate;
  const std::string mode(spelling.substr(slash + 1));
  const std::optional<ActivationMode> found = FindActivationMode(mode);
  if (!found.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("no such activation mode: ", std::string(spelling)));
  }
  candidate.activation = *found;
  return candidate;
}

std::optional<DType> FindDType(std::string_view name) {
  for (int i = 0; i <= static_cast<int>(DType::kBool); ++i) {
    if (Name(static_cast<DType>(i)) == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

absl::StatusOr<RawRecipe> RecipeFromYaml(YamlSection section, std::string name) {
  RawRecipe raw;
  Recipe& recipe = raw.recipe;
  recipe.name = std::move(name);
  raw.where = section.where();
  RETURN_IF_ERROR(section.Text("scheme", recipe.scheme));
  RETURN_IF_ERROR(section.Text("activation", recipe.activation_name));
  RETURN_IF_ERROR(section.Text("embedding", recipe.embedding_scheme));
  raw.bits_given = section.Child("bits_per_weight").IsDefined();
  RETURN_IF_ERROR(section.Number("bits_per_weight", 0.5, 64, recipe.bits_per_weight));
  ASSIGN_OR_RETURN(recipe.keep, section.TextList("keep"));
  ASSIGN_OR_RETURN(recipe.rotate_inputs, section.TextList("rotate_inputs"));
  ASSIGN_OR_RETURN(const std::optional<int> low_rank, section.Integer("low_rank"));
  constexpr int kMostRank = 1024;
  if (low_rank.has_value() && (*low_rank < 0 || *low_rank > kMostRank))
    return section.Error("low_rank", absl::StrCat("expected 0 to ", kMostRank, ": ", *low_rank));
  recipe.low_rank = low_rank.value_or(0);
  RETURN_IF_ERROR(ReadKv(section, recipe));
  RETURN_IF_ERROR(ReadMethods(section, recipe));
  RETURN_IF_ERROR(ReadFallback(section, recipe));
  RETURN_IF_ERROR(section.Finish());
  return raw;
}

absl::StatusOr<Budget> BudgetFromYaml(YamlSection section) {
  Budget budget;
  RETURN_IF_ERROR(section.Number("mean_kl", 0, 100, budget.max_mean_kl));
  RETURN_IF_ERROR(section.Number("top1", 0, 1, budget.min_top1));
  RETURN_IF_ERROR(section.Number("perplexity_ratio", 0, 1e6, budget.max_perplexity_ratio));
  RETURN_IF_ERROR(section.Number("cosine", -1, 1, budget.min_mean_cosine));
  RETURN_IF_ERROR(section.Number("label_agreement", 0, 1, budget.min_label_agreement));
  RETURN_IF_ERROR(section.Number("task_recovery", 0, 1, budget.min_task_recovery));
  RETURN_IF_ERROR(section.Finish());
  return budget;
}

absl::StatusOr<Recipe> ResolveRecipe(const RawRecipe& raw, DeviceKind device) {
  Recipe recipe = raw.recipe;
  for (const std::string& name : {recipe.scheme, recipe.embedding_scheme, recipe.fallback_scheme}) {
    RETURN_IF_ERROR(CheckScheme(name, device, raw.where));
  }
  RETURN_IF_ERROR(ResolveMode(recipe.activation_name, device, raw.where, recipe.activation));
  RETURN_IF_ERROR(
      ResolveMode(recipe.fallback_activation_name, device, raw.where, recipe.fallback_activation));
  RETURN_IF_ERROR(ResolveMethods(recipe, raw.where));
  if (raw.bits_given) return recipe;
  const absl::StatusOr<const QuantScheme*> scheme = FindScheme(recipe.scheme);
  if (!scheme.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(raw.where, ": a scheme that this build does not have needs bits_per_weight: ",
                     "scheme=", recipe.scheme));
  }
  recipe.bits_per_weight = TypicalBits(**scheme);
  return recipe;
}

nlohmann::json ToJson(const Recipe& recipe) {
  return {{"name", recipe.name},
          {"scheme", recipe.scheme},
          {"activation", recipe.activation_name},
          {"bits_per_weight", recipe.bits_per_weight},
          {"embedding_scheme", recipe.embedding_scheme},
          {"fallback_scheme", recipe.fallback_scheme},
          {"fallback_activation", recipe.fallback_activation_name},
          {"max_fallback_fraction", recipe.max_fallback_fraction},
          {"fallback_by", recipe.fallback_by_range ? "range" : "kl"},
          {"disable_level", recipe.disable_level},
          {"keep", recipe.keep},
          {"transforms", recipe.transforms},
          {"rounding", recipe.rounding},
          {"rounding_seconds", recipe.rounding_seconds},
          {"activation_range", recipe.activation_range},
          {"calibration",
           {{"path", recipe.calibration.path},
            {"samples", recipe.calibration.samples},
            {"window", recipe.calibration.window}}},
          {"search",
           {{"candidates", recipe.search.candidates},
            {"max_bytes", recipe.search.max_bytes},
            {"max_loss", recipe.search.max_loss}}},
          {"kv_dtype", std::string(Name(recipe.kv_dtype))},
          {"rotate_inputs", recipe.rotate_inputs},
          {"low_rank", recipe.low_rank},
          {"kv_window", recipe.kv_window},
          {"kv_sinks", recipe.kv_sinks},
          {"kv_keys", recipe.kv_key_channels ? "channel" : "token"},
          {"attention", recipe.int8_scores ? "int8" : "f32"}};
}

nlohmann::json ToJson(const Budget& budget) {
  return {{"max_mean_kl", budget.max_mean_kl},
          {"min_top1", budget.min_top1},
          {"max_perplexity_ratio", budget.max_perplexity_ratio},
          {"min_mean_cosine", budget.min_mean_cosine},
          {"min_label_agreement", budget.min_label_agreement},
          {"min_task_recovery", budget.min_task_recovery}};
}

}  // namespace assay
