#include "server/model_paths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::HasSubstr;

// models/a/model.gguf lies inside, secret/model.gguf and models-secret/x.gguf outside.
class ModelPathsTest : public testing::Test {
 protected:
  ModelPathsTest()
      : top_(fs::canonical(folder_.path()).string()),
        root_(top_ + "/models"),
        paths_(/*confined=*/true, {root_}) {
    for (const char* folder : {"models/a", "models/b", "secret", "models-secret"})
      fs::create_directories(top_ + "/" + folder);
    folder_.Write("models/a/model.gguf", "x");
    folder_.Write("secret/model.gguf", "x");
    folder_.Write("models-secret/x.gguf", "x");
  }
  void ExpectRefused(const std::string& path) {
    EXPECT_THAT(paths_.Resolve(path).status(),
                StatusIs(StatusCode::kPermissionDenied, HasSubstr("no file or folder below")))
        << path;
  }

  const TempDir folder_;
  const std::string top_, root_;
  const ModelPaths paths_;
};

TEST_F(ModelPathsTest, WhatLiesBelowARootIsFound) {
  EXPECT_THAT(paths_.Resolve(root_ + "/a/model.gguf"), IsOkAndHolds(root_ + "/a/model.gguf"));
  EXPECT_THAT(paths_.Resolve(root_ + "/a"), IsOkAndHolds(root_ + "/a"));
  EXPECT_THAT(paths_.Resolve("a/model.gguf"), IsOkAndHolds(root_ + "/a/model.gguf"));
  EXPECT_THAT(paths_.Resolve(root_ + "//a/./model.gguf"), IsOkAndHolds(root_ + "/a/model.gguf"));
}

TEST_F(ModelPathsTest, EveryRootCounts) {
  const ModelPaths two(true, {root_, top_ + "/secret"});
  EXPECT_THAT(two.Resolve(top_ + "/secret/model.gguf"), IsOkAndHolds(top_ + "/secret/model.gguf"));
  EXPECT_THAT(two.Resolve("model.gguf"), IsOkAndHolds(top_ + "/secret/model.gguf"));
}

TEST_F(ModelPathsTest, AbsolutePathsOutsideAreRefused) {
  ExpectRefused(top_ + "/secret/model.gguf");
  ExpectRefused("/etc/passwd");
  ExpectRefused("/");
  ExpectRefused(top_ + "/models-secret/x.gguf");  // the root's name is the beginning of its own
}

TEST_F(ModelPathsTest, ParentsAreRefused) {
  ExpectRefused(root_ + "/../secret/model.gguf");
  ExpectRefused("../secret/model.gguf");
  ExpectRefused(root_ + "/a/../a/model.gguf");  // also where it would stay inside
  ExpectRefused("..");
}

TEST_F(ModelPathsTest, EncodedPathsAreRefused) {
  ExpectRefused(root_ + "/%2e%2e/secret/model.gguf");
  ExpectRefused(root_ + "/..%2fsecret/model.gguf");
  ExpectRefused("%2Fetc%2Fpasswd");
  folder_.Write("models/a/%41.gguf", "x");
  ExpectRefused(root_ + "/a/%41.gguf");
  ExpectRefused(root_ + "/a/model.gguf" + std::string(1, '\0') + ".txt");
  ExpectRefused("");
}

TEST_F(ModelPathsTest, LinksThatLeaveAreRefused) {
  fs::create_symlink(top_ + "/secret", root_ + "/out");
  fs::create_symlink(top_ + "/secret/model.gguf", root_ + "/out.gguf");
  fs::create_symlink("../secret/model.gguf", root_ + "/relative.gguf");
  ExpectRefused(root_ + "/out");
  ExpectRefused(root_ + "/out/model.gguf");
  ExpectRefused(root_ + "/out.gguf");
  ExpectRefused(root_ + "/relative.gguf");
}

TEST_F(ModelPathsTest, LinksThatStayAreFollowed) {
  fs::create_symlink(root_ + "/a", root_ + "/again");
  EXPECT_THAT(paths_.Resolve(root_ + "/again/model.gguf"), IsOkAndHolds(root_ + "/a/model.gguf"));
  fs::create_symlink("../a/model.gguf", root_ + "/b/model.gguf");  // as in a hub's cache
  EXPECT_THAT(paths_.Resolve(root_ + "/b"), IsOkAndHolds(root_ + "/b"));
  const ModelPaths through_a_link(true, {root_ + "/again"});
  EXPECT_THAT(through_a_link.Resolve("model.gguf"), IsOkAndHolds(root_ + "/a/model.gguf"));
}

TEST_F(ModelPathsTest, AFolderWithALinkThatLeavesIsRefused) {
  fs::create_symlink(top_ + "/secret/model.gguf", root_ + "/b/model.gguf");
  ExpectRefused(root_ + "/b");
  fs::remove(root_ + "/b/model.gguf");
  fs::create_directory(root_ + "/b/deeper");
  fs::create_symlink(top_ + "/secret", root_ + "/b/deeper/link");
  ExpectRefused(root_ + "/b");
}

// What the scan of the repository found, which its operator may have named in any form.
TEST_F(ModelPathsTest, EntriesOfTheRepositoryMayNotLeaveEither) {
  EXPECT_THAT(paths_.ResolveEntry(root_ + "/a"), IsOkAndHolds(root_ + "/a"));
  EXPECT_THAT(paths_.ResolveEntry(root_ + "/../models/a"), IsOkAndHolds(root_ + "/a"));
  const fs::path relative = fs::relative(root_);
  EXPECT_THAT(ModelPaths(true, {relative}).ResolveEntry(relative / "a"),
              IsOkAndHolds(root_ + "/a"));
  fs::create_symlink(top_ + "/secret", root_ + "/out");
  const absl::Status refused = paths_.ResolveEntry(root_ + "/out").status();
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr(root_ + "/out")));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("model_roots"));
  const ModelPaths both(true, {root_, top_ + "/secret"});
  EXPECT_THAT(both.ResolveEntry(root_ + "/out"), IsOkAndHolds(top_ + "/secret"));
  EXPECT_THAT(ModelPaths(false, {}).ResolveEntry(root_ + "/out"), IsOkAndHolds(root_ + "/out"));
}

TEST_F(ModelPathsTest, ARefusalDoesNotTellWhetherTheFileExists) {
  const auto message = [this](const std::string& path) {
    const std::string text(paths_.Resolve(path).status().message());
    return text.substr(0, text.find('\''));
  };
  const std::string there = message(top_ + "/secret/model.gguf");
  EXPECT_EQ(message(top_ + "/secret/none.gguf"), there);
  EXPECT_EQ(message(root_ + "/none.gguf"), there);
  EXPECT_EQ(message(root_ + "/../secret/model.gguf"), there);
}

TEST_F(ModelPathsTest, WhatIsNeitherFileNorFolderIsRefused) {
  ASSERT_EQ(mkfifo((root_ + "/pipe").c_str(), 0600), 0);
  ExpectRefused(root_ + "/pipe");
}

TEST_F(ModelPathsTest, WhatARecipeNamesIsConfinedToo) {
  const std::string scheme = "scheme: int8_channel\n";
  const auto refused = StatusIs(StatusCode::kPermissionDenied, HasSubstr("no file or folder"));
  folder_.Write("models/good.yaml", scheme);
  folder_.Write("models/data.txt", "x");
  folder_.Write("secret/recipe.yaml", scheme);
  folder_.Write("models/calibrated.yaml", scheme + "calibration: " + root_ + "/data.txt\n");
  folder_.Write("models/leak.yaml", scheme + "calibration: {path: /etc/passwd}\n");
  const auto ladder = [this](const std::string& rung) {
    folder_.Write("models/ladder.yaml", "ladder: [w8a16, " + rung + "]\n");
    return paths_.ResolveRecipe(root_ + "/ladder.yaml").status();
  };
  EXPECT_OK(paths_.ResolveRecipe("good.yaml"));
  EXPECT_OK(paths_.ResolveRecipe("calibrated.yaml"));
  EXPECT_THAT(paths_.ResolveRecipe("leak.yaml").status(), refused);
  EXPECT_OK(ladder(root_ + "/good.yaml"));
  EXPECT_OK(ladder(root_ + "/calibrated.yaml"));
  EXPECT_THAT(ladder(top_ + "/secret/recipe.yaml"), refused);
  EXPECT_THAT(ladder(root_ + "/leak.yaml"), refused);  // what a rung names
  EXPECT_THAT(ladder("secret/recipe.yaml"), refused);
  EXPECT_THAT(ladder(root_ + "/../secret/recipe.yaml"), refused);
  EXPECT_OK(ModelPaths(false, {}).ResolveRecipe(root_ + "/leak.yaml"));
}

TEST_F(ModelPathsTest, WithoutRootsNothingMayBeNamed) {
  EXPECT_THAT(ModelPaths(true, {}).Resolve(root_ + "/a").status(),
              StatusIs(StatusCode::kPermissionDenied));
}

TEST_F(ModelPathsTest, UnconfinedEverythingIsAsItWasGiven) {
  const ModelPaths free(false, {root_});
  EXPECT_THAT(free.Resolve("../secret/%41"), IsOkAndHolds("../secret/%41"));
}

}  // namespace
}  // namespace assay
