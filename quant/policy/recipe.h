// Recipes and budgets from YAML. Internal to quant/policy; yaml-cpp shows here.
#pragma once
#include "quant/policy/policy.h"
#include "quant/policy/yaml_section.h"

namespace assay {

// What a recipe's section says, before it is known which device it is for.
struct RawRecipe {
  Recipe recipe;
  bool bits_given = false;
  std::string where;  // "built-in:9: recipes.int8"
};

absl::StatusOr<RawRecipe> RecipeFromYaml(YamlSection section, std::string name);
absl::StatusOr<Budget> BudgetFromYaml(YamlSection section);
// Resolves schemes and activation modes for a device. InvalidArgument: on the CPU, a scheme or mode
// that this build does not have; elsewhere, an unknown scheme without bits_per_weight.
absl::StatusOr<Recipe> ResolveRecipe(const RawRecipe& raw, DeviceKind device);

}  // namespace assay
