// The same ids and texts as the sentencepiece library (tests/golden/vocab/make_tokenizers.py), from
// its models as GGUF metadata: BPE with byte fallback, and unigram with compiled normalization
// rules.
#include <nlohmann/json.hpp>

#include "engine/model/tokenizer.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

class SentencePieceGoldensTest : public testing::TestWithParam<const char*> {};

TEST_P(SentencePieceGoldensTest, EncodesAndDecodesLikeTheLibrary) {
  const std::string prefix = std::string("vocab/") + GetParam();
  ASSERT_OK_AND_ASSIGN(const auto tokenizer,
                       MakeTokenizer(ReadGoldenJson(prefix + ".tokenizer.json.xz")));
  const auto strings = ReadGoldenJson("vocab/corpus.json.xz").get<std::vector<std::string>>();
  const json golden = ReadGoldenJson(prefix + ".golden.json.xz");
  for (size_t i = 0; i < strings.size(); ++i) {
    const Ids ids = golden["ids"][i].get<Ids>();
    EXPECT_THAT(tokenizer->Encode(strings[i], false, false), IsOkAndHolds(ids))
        << i << ": " << json(strings[i]);
    if (!golden.contains("text")) continue;
    EXPECT_THAT(tokenizer->Decode(ids, true), IsOkAndHolds(golden["text"][i].get<std::string>()))
        << i << ": " << json(strings[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(All, SentencePieceGoldensTest,
                         testing::Values("sentencepiece_bpe", "sentencepiece_unigram"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace assay
