#include "server/model_repository.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/support/status_matchers.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class ModelRepositoryTest : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(root_); }
  void TearDown() override { fs::remove_all(root_); }
  void Touch(const std::string& path) {
    const fs::path full = root_ / path;
    fs::create_directories(full.parent_path());
    std::ofstream(full) << "x";
  }
  std::vector<std::string> Scan() {
    std::vector<std::string> out;
    const auto entries = ScanRepository(root_.string());
    EXPECT_OK(entries);
    for (const RepositoryEntry& e : *entries) {
      out.push_back(e.name + ":" + std::to_string(e.version) + " " +
                    fs::path(e.path).lexically_relative(root_).string());
    }
    return out;
  }
  const fs::path root_ = fs::path(testing::TempDir()) / "assay_repository_test";
};

TEST_F(ModelRepositoryTest, FindsEveryLayoutAndTheHighestVersion) {
  Touch("versioned/1/model.gguf");
  Touch("versioned/10/model.gguf");
  Touch("versioned/9/model.gguf");
  Touch("flat/model.safetensors");
  Touch("flat/config.json");
  Touch("single.gguf");
  EXPECT_THAT(Scan(),
              ElementsAre("flat:1 flat", "single:1 single.gguf", "versioned:10 versioned/10"));
}

TEST_F(ModelRepositoryTest, TheSmallestCheckpointIsAdmittedFirst) {
  const auto write = [&](const std::string& path, size_t bytes) {
    Touch(path);
    std::ofstream(root_ / path) << std::string(bytes, 'x');
  };
  write("a_big/1/model.gguf", 3000);
  write("b_shards/model-1.safetensors", 1000);
  write("b_shards/model-2.safetensors", 1000);
  write("b_shards/tokenizer.json", 5000);  // not weights
  write("c_single.gguf", 1500);
  write("d_same.gguf", 1500);
  ASSERT_OK_AND_ASSIGN(std::vector<RepositoryEntry> entries, ScanRepository(root_.string()));
  std::vector<std::string> names;
  for (const RepositoryEntry& entry : SmallestFirst(std::move(entries))) {
    names.push_back(entry.name);
  }
  EXPECT_THAT(names, ElementsAre("c_single", "d_same", "b_shards", "a_big"));
}

TEST_F(ModelRepositoryTest, SkipsWhatIsNoModel) {
  Touch("notes/README.md");
  Touch(".hidden/model.gguf");
  Touch("README.txt");
  Touch("model/007/model.gguf");  // not how a version is written
  Touch("model/0/model.gguf");
  Touch("model/2/model.gguf");
  Touch("model/3/README.md");  // a version without a checkpoint
  EXPECT_THAT(Scan(), ElementsAre("model:2 model/2"));
}

TEST_F(ModelRepositoryTest, RefusesNamesThatCannotBeAModels) {
  Touch("a model/1/model.gguf");
  EXPECT_THAT(ScanRepository(root_.string()), StatusIs(absl::StatusCode::kInvalidArgument,
                                                       HasSubstr("not a model name: 'a model'")));
}

TEST_F(ModelRepositoryTest, RefusesTheSameNameTwice) {
  Touch("twin.gguf");
  Touch("twin/1/model.gguf");
  EXPECT_THAT(ScanRepository(root_.string()), StatusIs(absl::StatusCode::kInvalidArgument,
                                                       HasSubstr("two models of one name: twin")));
}

TEST_F(ModelRepositoryTest, AMissingFolderIsNotFound) {
  EXPECT_THAT(ScanRepository("/no/such/folder"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/no/such/folder")));
}

TEST_F(ModelRepositoryTest, LooksUpByNameOnlyWhatItHolds) {
  Touch("m/1/model.gguf");
  EXPECT_OK(FindInRepository(root_.string(), "m"));
  EXPECT_THAT(FindInRepository(root_.string(), "../m"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("it holds: m")));
  EXPECT_THAT(FindInRepository("", "m"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no model repository")));
}

TEST_F(ModelRepositoryTest, KnowsModelNames) {
  EXPECT_TRUE(IsModelName("SmolLM2-135M_v1.0"));
  for (const char* bad : {"", ".", "..", ".x", "a/b", "a b", "a\n", "\xc3\xa9"}) {
    EXPECT_FALSE(IsModelName(bad)) << bad;
  }
  EXPECT_FALSE(IsModelName(std::string(129, 'a')));
}

}  // namespace
}  // namespace assay
