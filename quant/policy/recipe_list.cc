#include "quant/policy/recipe_list.h"

#include <filesystem>

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

namespace {

bool IsLadder(const YAML::Node& document) {
  return document.IsMap() && document["ladder"].IsDefined();
}

}  // namespace

absl::StatusOr<RecipeLadder> ParseLadder(std::string_view yaml, std::string_view origin,
                                         std::string_view name) {
  ASSIGN_OR_RETURN(const YAML::Node document, LoadYaml(yaml, std::string(origin)));
  RecipeLadder ladder;
  if (!IsLadder(document)) {
    ASSIGN_OR_RETURN(ladder.rungs.emplace_back(), ParseRecipe(yaml, origin, name));
    return ladder;
  }
  ASSIGN_OR_RETURN(YamlSection section,
                   YamlSection::Open(document, std::string(origin), std::string(name)));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, section.TextList("ladder"));
  if (names.empty()) return section.Error("ladder", "expected the name of at least one recipe");
  for (const std::string& rung : names) {
    absl::StatusOr<Recipe> recipe = FindRecipe(rung);
    if (!recipe.ok()) return section.Error("ladder", std::string(recipe.status().message()));
    ladder.rungs.push_back(*std::move(recipe));
  }
  RETURN_IF_ERROR(section.Number("seconds", 0, 1e6, ladder.seconds));
  RETURN_IF_ERROR(section.Finish());
  return ladder;
}

namespace {

struct RecipeText {
  std::string yaml, origin, name;
};

absl::StatusOr<RecipeText> ReadRecipeText(const std::string& name_or_path) {
  if (IsRecipePath(name_or_path)) {
    ASSIGN_OR_RETURN(std::string yaml, ReadFile(name_or_path));
    return RecipeText{std::move(yaml), name_or_path,
                      std::filesystem::path(name_or_path).stem().string()};
  }
  for (const BuiltInRecipe& recipe : BuiltInRecipes()) {
    if (recipe.name == name_or_path)
      return RecipeText{std::string(recipe.yaml), "built-in", name_or_path};
  }
  const auto append_name = [](std::string* out, const BuiltInRecipe& recipe) {
    absl::StrAppend(out, std::string(recipe.name));
  };
  return absl::NotFoundError(absl::StrCat("no recipe of this name: ", name_or_path, "; known: ",
                                          absl::StrJoin(BuiltInRecipes(), ", ", append_name)));
}

}  // namespace

bool IsRecipePath(std::string_view name_or_path) {
  return name_or_path.find('/') != std::string_view::npos || name_or_path.ends_with(".yaml");
}

absl::StatusOr<Recipe> FindRecipe(std::string_view name_or_path) {
  ASSIGN_OR_RETURN(const RecipeText text, ReadRecipeText(std::string(name_or_path)));
  return ParseRecipe(text.yaml, text.origin, text.name);
}

absl::StatusOr<RecipeLadder> FindLadder(std::string_view name_or_path) {
  ASSIGN_OR_RETURN(const RecipeText text, ReadRecipeText(std::string(name_or_path)));
  return ParseLadder(text.yaml, text.origin, text.name);
}

absl::StatusOr<FilesOfRecipe> FilesNamedIn(const std::string& path) {
  ASSIGN_OR_RETURN(const RecipeText text, ReadRecipeText(path));
  ASSIGN_OR_RETURN(const YAML::Node document, LoadYaml(text.yaml, text.origin));
  FilesOfRecipe files;
  if (IsLadder(document)) {
    ASSIGN_OR_RETURN(YamlSection section, YamlSection::Open(document, text.origin, text.name));
    ASSIGN_OR_RETURN(files.recipes, section.TextList("ladder"));
    std::erase_if(files.recipes, [](const std::string& name) { return !IsRecipePath(name); });
    return files;
  }
  ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(text.yaml, text.origin, text.name));
  files.calibration = recipe.calibration.path;
  return files;
}

}  // namespace assay
