#include "quant/kernels/cuda/lt_choices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const LtFoundOn kHere = {"NVIDIA \"H100\"", 90, 13000, 130001};
const LtShape kShape = {.n = 64, .k = 32, .operands = LtType::kE4M3, .scales = LtScales::kRows};
const LtAlgorithm kAlgorithm = {{0xffffffffffffffffu, 2, 0, 4, 5, 6, 7, 0xa55a}, 1024};

class LtChoicesTest : public testing::Test {
 protected:
  LtChoices Open(const LtFoundOn& on = kHere) const { return LtChoices(directory_.path(), on); }
  void Store() const {
    LtChoices choices = Open();
    choices.Add(kShape, 128, kAlgorithm);
    ASSERT_OK(choices.Save());
  }
  std::string Text() const {
    std::stringstream text;
    text << std::ifstream(Open().path()).rdbuf();
    return text.str();
  }
  void Write(const std::string& text) const { std::ofstream(Open().path()) << text; }

  const TempDir directory_;
};

TEST_F(LtChoicesTest, ReadsWhatItWrote) {
  EXPECT_FALSE(Open().Find(kShape, 128));
  Store();
  const auto found = Open().Find(kShape, 128);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->words, kAlgorithm.words);
  EXPECT_EQ(found->workspace_bytes, 1024u);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_.path()), {}),
            1);  // nothing temporary is left
}

TEST_F(LtChoicesTest, AnswersForExactlyWhatItHas) {
  Store();
  const LtChoices choices = Open();
  const auto misses = [&](auto change) {
    LtShape shape = kShape;
    change(shape);
    return !choices.Find(shape, 128);
  };
  EXPECT_FALSE(choices.Find(kShape, 256));
  EXPECT_TRUE(misses([](LtShape& s) { s.n = 65; }));
  EXPECT_TRUE(misses([](LtShape& s) { s.k = 33; }));
  EXPECT_TRUE(misses([](LtShape& s) { s.operands = LtType::kBf16; }));
  EXPECT_TRUE(misses([](LtShape& s) { s.scales = LtScales::kRows128; }));
}

TEST_F(LtChoicesTest, BelongsToAGpuADriverAndALibrary) {
  Store();
  const auto other = [&](auto change) {
    LtFoundOn on = kHere;
    change(on);
    const LtChoices choices = Open(on);
    EXPECT_FALSE(choices.Find(kShape, 128));
    EXPECT_NE(choices.path(), Open().path());
    // What was copied from there is noticed, too.
    fs::copy_file(Open().path(), choices.path());
    EXPECT_FALSE(Open(on).Find(kShape, 128));
    fs::remove(choices.path());
  };
  other([](LtFoundOn& on) { on.gpu = "NVIDIA H200"; });
  other([](LtFoundOn& on) { on.compute = 86; });
  other([](LtFoundOn& on) { on.driver = 13010; });
  other([](LtFoundOn& on) { on.library = 130002; });
  EXPECT_TRUE(Open().Find(kShape, 128));
}

TEST_F(LtChoicesTest, ADamagedFileIsReplaced) {
  Store();
  const std::string sound = Text();
  const auto without = [&](const std::string& part, const std::string& instead) {
    std::string text = sound;
    const size_t at = text.find(part);
    EXPECT_NE(at, text.npos) << part;
    return text.replace(at, part.size(), instead);
  };
  for (const std::string& text :
       {std::string(), sound.substr(0, sound.size() / 2), std::string("[1]"), std::string("{}"),
        without("\"schema\": 1", "\"schema\": 2"), without("\"m\": 128", "\"m\": \"128\""),
        without("\"n\": 64", "\"x\": 64"), without("a55a", "a55g"), without("a55a", ""),
        without("\"workspace\": 1024", "\"workspace\": -1"),
        without("\"workspace\": 1024", "\"workspace\": 99999999999")}) {
    Write(text);
    LtChoices choices = Open();
    EXPECT_FALSE(choices.Find(kShape, 128)) << text;
    EXPECT_EQ(Text(), text);  // until it is saved
    choices.Add(kShape, 128, kAlgorithm);
    ASSERT_OK(choices.Save());
    EXPECT_EQ(Text(), sound);
  }
}

TEST_F(LtChoicesTest, SaysWhereItCannotWrite) {
  LtChoices nowhere("/nowhere/at/all", kHere);
  nowhere.Add(kShape, 128, kAlgorithm);
  EXPECT_THAT(nowhere.Save(),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("/nowhere/at/all/cublaslt-")));
  LtChoices none("", kHere);
  EXPECT_OK(none.Save());
}

}  // namespace
}  // namespace assay
