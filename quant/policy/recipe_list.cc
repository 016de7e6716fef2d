#include "quant/policy/recipe_list.h"

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/mapped_file.h"
#include "quant/policy/recipe.h"

namespace assay {

absl::StatusOr<Recipe> ParseRecipe(std::string_view yaml, std::string_view origin,
                                   std::string_view name) {
  ASSIGN_OR_RETURN(const YAML::Node document, LoadYaml(yaml, std::string(origin)));
  ASSIGN_OR_RETURN(YamlSection section,
                   YamlSection::Open(document, std::string(origin), std::string(name)));
  ASSIGN_OR_RETURN(const RawRecipe raw, RecipeFromYaml(std::move(section), std::string(name)));
  return ResolveRecipe(raw, DeviceKind::kCpu);
}

absl::StatusOr<Recipe> FindRecipe(std::string_view name_or_path) {
  const std::string text(name_or_path);
  if (absl::StrContains(text, "/") || absl::EndsWith(text, ".yaml")) {
    ASSIGN_OR_RETURN(const std::string yaml, ReadFile(text));
    return ParseRecipe(yaml, text, std::filesystem::path(text).stem().string());
  }
  for (const BuiltInRecipe& recipe : BuiltInRecipes()) {
    if (recipe.name == name_or_path) return ParseRecipe(recipe.yaml, "built-in", recipe.name);
  }
  const auto append_name = [](std::string* out, const BuiltInRecipe& recipe) {
    absl::StrAppend(out, std::string(recipe.name));
  };
  return absl::NotFoundError(absl::StrCat("no recipe of this name: ", text, "; known: ",
                                          absl::StrJoin(BuiltInRecipes(), ", ", append_name)));
}

}  // namespace assay
