#include <cstdio>

#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "quant/policy/recipe_list.h"

namespace assay {
namespace {

int RunRecipes(const std::string& show) {
  if (!show.empty()) {
    for (const BuiltInRecipe& recipe : BuiltInRecipes()) {
      if (recipe.name != show) continue;
      std::fwrite(recipe.yaml.data(), 1, recipe.yaml.size(), stdout);
      return kExitOk;
    }
    return FailLocally(FindLadder(show).status());
  }
  std::vector<std::vector<std::string>> rows = {
      {"RECIPE", "SCHEME", "ACTIVATION", "ROUNDING", "TRANSFORMS"}};
  for (const BuiltInRecipe& built_in : BuiltInRecipes()) {
    const absl::StatusOr<RecipeLadder> ladder = FindLadder(built_in.name);
    if (!ladder.ok()) return FailLocally(ladder.status());
    const Recipe& recipe = ladder->rungs.front();
    rows.push_back({std::string(built_in.name), recipe.scheme, recipe.activation_name,
                    recipe.rounding,
                    recipe.transforms.empty() ? "-" : absl::StrJoin(recipe.transforms, ", ")});
    if (ladder->rungs.size() == 1) continue;
    const auto append_name = [](std::string* out, const Recipe& rung) { out->append(rung.name); };
    rows.back() = {std::string(built_in.name), "the first that passes of",
                   absl::StrJoin(ladder->rungs, ", ", append_name)};
  }
  std::fputs(FormatTable(rows).c_str(), stdout);
  return kExitOk;
}

}  // namespace

void AddRecipes(CLI::App& app, CommandLine& line) {
  auto show = std::make_shared<std::string>();
  CLI::App* command =
      app.add_subcommand("recipes",
                         "The built-in ways to quantize (needs no server)\n\nExamples:\n"
                         "  assay recipes\n"
                         "  assay recipes w8a8_dynamic > mine.yaml     # to change it");
  command->add_option("name", *show, "Print this recipe's YAML");
  command->callback([&line, show] { line.run = [show] { return RunRecipes(*show); }; });
}

}  // namespace assay
