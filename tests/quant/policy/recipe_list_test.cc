#include "quant/policy/recipe_list.h"

#include <filesystem>
#include <fstream>
#include <map>
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
    ASSERT_OK_AND_ASSIGN(const RecipeLadder found, FindLadder(recipe.name));
    if (found.rungs.size() == 1) {
      EXPECT_EQ(found.rungs.front().name, recipe.name);
    }
  }
  EXPECT_EQ(built_in, files);
}

TEST(RecipeListTest, NamesMeanWhatTheySay) {
  ASSERT_OK_AND_ASSIGN(const Recipe weight_only, FindRecipe("w8a16"));
  EXPECT_EQ(weight_only.activation, ActivationMode::kA16);
  ASSERT_OK_AND_ASSIGN(const Recipe dynamic, FindRecipe("w8a8_dynamic"));
  EXPECT_EQ(dynamic.activation, ActivationMode::kA8Token);
}

TEST(RecipeListTest, PositionsInSixteenBitBelongToCachesOfCodes) {
  ASSERT_OK_AND_ASSIGN(const Recipe recipe, FindRecipe("w8a16_kv4_window"));
  EXPECT_EQ(recipe.kv_dtype, DType::kU4);
  EXPECT_TRUE(recipe.kv_key_channels);
  EXPECT_EQ(recipe.kv_window, 64);
  EXPECT_EQ(recipe.kv_sinks, 4);
  ASSERT_OK_AND_ASSIGN(const Recipe none, FindRecipe("w8a16_kv4"));
  EXPECT_EQ(none.kv_window + none.kv_sinks, 0);
}

TEST(RecipeListTest, MethodsAreReadAndSpelledCanonically) {
  ASSERT_OK_AND_ASSIGN(
      const Recipe recipe,
      ParseRecipe("scheme: int4_group\nactivation: a16\nrounding: gptq:damp=0.05,act_order\n"
                  "rounding_seconds: 60\nactivation_range: percentile=99.9\n"
                  "transforms: [\"awq:plain,grid=10\", \"smooth_quant:alpha=0.5\"]\n"
                  "calibration: {path: chat.jsonl, samples: 32, window: 256}\n",
                  "f.yaml", "r"));
  EXPECT_EQ(recipe.rounding, "gptq:act_order,damp=0.05");
  EXPECT_EQ(recipe.rounding_seconds, 60);
  EXPECT_EQ(recipe.activation_range, "percentile=99.9");
  EXPECT_THAT(recipe.transforms, testing::ElementsAre("awq:grid=10,plain", "smooth_quant"));
  EXPECT_EQ(recipe.calibration.path, "chat.jsonl");
  EXPECT_EQ(recipe.calibration.samples, 32);
  EXPECT_EQ(recipe.calibration.window, 256);
  ASSERT_OK_AND_ASSIGN(const Recipe file, ParseRecipe("calibration: mine.txt\n", "f.yaml", "r"));
  EXPECT_EQ(file.calibration.path, "mine.txt");
  for (const auto& [yaml, what] : std::map<std::string, std::string>{
           {"rounding: gptqq\n", "gptqq"},
           {"kv: f16\nkv_window: 64\n", "positions in 16 bit are for kv: i8 and kv: u4"},
           {"kv: u4\nkv_sinks: -1\n", "expected a whole number from 0"},
           {"kv: u4\nkv_window: 4097\n", "expected at most 4096: 4097"},
           {"rounding: \"gptq:dampp=1\"\n", "dampp"},
           {"transforms: [smooth]\n", "no transform of this name: smooth"},
           {"transforms: [\"awq:grid=0\"]\n", "grid=0"},
           {"activation_range: percentile=101\n", "101"},
           {"activation_range: most\n", "most"},
           {"calibration: {samples: 0}\n", "samples"},
           {"calibration: {file: a}\n", "file"}}) {
    EXPECT_THAT(ParseRecipe(yaml, "f.yaml", "r"),
                StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("f.yaml"), HasSubstr(what))))
        << yaml;
  }
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
