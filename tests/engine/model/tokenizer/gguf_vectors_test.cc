// llama.cpp's own test vectors: strings and the ids that its tokenizers, checked against Hugging
// Face's, give them.
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/model/checkpoint.h"
#include "engine/model/tokenizer.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

constexpr std::string_view kSeparator = "\n__ggml_vocab_test__\n";

std::vector<std::string> TestStrings() {
  const std::string all = ReadGolden("vocab/ggml-vocab.inp.xz");
  std::vector<std::string> strings;
  size_t from = 0;
  for (size_t at = all.find(kSeparator); at != std::string::npos; at = all.find(kSeparator, from)) {
    strings.push_back(all.substr(from, at - from));
    from = at + kSeparator.size();
  }
  return strings;
}

std::vector<std::vector<int32_t>> ExpectedIds(const std::string& name) {
  std::istringstream lines(ReadGolden("vocab/ggml-vocab-" + name + ".out.xz"));
  std::vector<std::vector<int32_t>> result;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream numbers(line);
    std::vector<int32_t> ids;
    for (int32_t id; numbers >> id;) ids.push_back(id);
    result.push_back(ids);
  }
  return result;
}

struct Vocab {
  const char* name;
  const char* kind;
};

class GgufVectorsTest : public testing::TestWithParam<Vocab> {};

TEST_P(GgufVectorsTest, EncodesEveryStringAsExpected) {
  const std::string name = GetParam().name;
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const auto checkpoint,
                       OpenCheckpoint(dir.Unpack("vocab/ggml-vocab-" + name + ".gguf.xz")));
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, MakeTokenizer(checkpoint->tokenizer()));
  EXPECT_EQ(tokenizer->kind(), GetParam().kind);
  const std::vector<std::string> strings = TestStrings();
  const std::vector<std::vector<int32_t>> expected = ExpectedIds(name);
  ASSERT_EQ(strings.size(), 46u);
  ASSERT_EQ(strings.size(), expected.size());
  for (size_t i = 0; i < strings.size(); ++i) {
    EXPECT_THAT(tokenizer->Encode(strings[i], false, false), IsOkAndHolds(expected[i]))
        << "string " << i << ": " << strings[i];
  }
}

INSTANTIATE_TEST_SUITE_P(All, GgufVectorsTest,
                         testing::Values(Vocab{"bert-bge", "wordpiece"},
                                         Vocab{"deepseek-coder", "bpe"}, Vocab{"falcon", "bpe"},
                                         Vocab{"gpt-2", "bpe"}, Vocab{"llama-spm", "spm"}),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace assay
