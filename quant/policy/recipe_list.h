// Recipes that come with Assay, by name, and recipes of a user's own, from a file. One YAML mapping
// each, with the keys of a policy's `recipes.<name>` (docs/formats.md). Thread-safe.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quant/policy/policy.h"

namespace assay {

struct BuiltInRecipe {
  std::string_view name, yaml;
};
// quant/recipes/*.yaml, in the order of quant/policy/CMakeLists.txt (which generates this).
std::span<const BuiltInRecipe> BuiltInRecipes();

// Whether this is the path of a file, not the name of a built-in recipe.
bool IsRecipePath(std::string_view name_or_path);
// A built-in recipe by name, or the file of that path (it has a '/' or ends in .yaml). For the CPU.
// InvalidArgument for a ladder. NotFound lists the names, or says that the file cannot be read;
// InvalidArgument names line and key.
absl::StatusOr<Recipe> FindRecipe(std::string_view name_or_path);
// The same, or a ladder of them: a file with `ladder: [names]`, from cheap to accurate, and
// `seconds` (RecipeLadder). A name is that of a built-in recipe or a path.
absl::StatusOr<RecipeLadder> FindLadder(std::string_view name_or_path);
absl::StatusOr<RecipeLadder> ParseLadder(std::string_view yaml, std::string_view origin,
                                         std::string_view name);
// The files that the recipe or ladder in this file names itself. Other recipes are not looked into.
// Errors as of FindLadder.
struct FilesOfRecipe {
  std::vector<std::string> recipes;
  std::string calibration;  // empty: none
};
absl::StatusOr<FilesOfRecipe> FilesNamedIn(const std::string& path);
// The recipe called `name` from `yaml`; `origin` for messages.
absl::StatusOr<Recipe> ParseRecipe(std::string_view yaml, std::string_view origin,
                                   std::string_view name);

}  // namespace assay
