#include "quant/policy/recipe_list.h"

#include <filesystem>
#include <fstream>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

TEST(RecipeListTest, EveryFileIsBuiltInAndParses) {
  std::set<std::string> files, built_in;
  for (const auto& entry : std::filesystem::directory_iterator(GoldenPath("../../quant/recipes")))
    files.insert(entry.path().stem().string());
  for (const BuiltInRecipe& recipe : BuiltInRecipes()) {
    built_in.insert(std::string(recipe.name));
    ASSERT_OK_AND_ASSIGN(const Recipe found, FindRecipe(recipe.name));
    EXPECT_EQ(found.name, recipe.name);
  }
  EXPECT_EQ(built_in, files);
}

TEST(RecipeListTest, NamesMeanWhatTheySay) {
  ASSERT_OK_AND_ASSIGN(const Recipe weight_only, FindRecipe("w8a16"));
  EXPECT_EQ(weight_only.activation, ActivationMode::kA16);
  ASSERT_OK_AND_ASSIGN(const Recipe dynamic, FindRecipe("w8a8_dynamic"));
  EXPECT_EQ(dynamic.activation, ActivationMode::kA8Token);
}

TEST(RecipeListTest, AFileIsARecipeOfItsOwn) {
  const std::string path = testing::TempDir() + "/mine.yaml";
  std::ofstream(path) << "scheme: bf16\nactivation: a16\nkeep: [\"*.down_proj\"]\n";
  ASSERT_OK_AND_ASSIGN(const Recipe recipe, FindRecipe(path));
  EXPECT_EQ(recipe.name, "mine");
  EXPECT_EQ(recipe.scheme, "bf16");
  EXPECT_THAT(recipe.keep, testing::ElementsAre("*.down_proj"));
}

TEST(RecipeListTest, MistakesAreNamed) {
  EXPECT_THAT(FindRecipe("w3a3"), StatusIs(StatusCode::kNotFound,
                                           AllOf(HasSubstr("w3a3; known: "), HasSubstr("w8a16"))));
  EXPECT_THAT(FindRecipe("/no/such.yaml"),
              StatusIs(StatusCode::kNotFound, HasSubstr("/no/such.yaml")));
  EXPECT_THAT(ParseRecipe("scheme: [", "f.yaml", "r"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("f.yaml:")));
  EXPECT_THAT(
      ParseRecipe("scheme: int8_channel\ncolour: red\n", "f.yaml", "r"),
      StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("f.yaml:"), HasSubstr("colour"))));
  EXPECT_THAT(
      ParseRecipe("scheme: int7\n", "f.yaml", "r"),
      StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("f.yaml"), HasSubstr("int7"))));
  EXPECT_THAT(ParseRecipe("activation: a7\n", "f.yaml", "r"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("a7")));
}

}  // namespace
}  // namespace assay
