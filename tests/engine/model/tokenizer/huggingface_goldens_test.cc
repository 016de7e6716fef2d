// The same ids and the same texts as Hugging Face's tokenizers library
// (tests/golden/vocab/make_tokenizers.py), over strings in many scripts; and the properties of
// streaming over the same strings.
#include <nlohmann/json.hpp>

#include "engine/model/tokenizer.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

json Spec(const std::string& name) {
  json file = ReadGoldenJson("vocab/" + name + ".tokenizer.json.xz");
  if (file.contains("format")) return file;  // GGUF metadata
  return {{"format", "huggingface"}, {"tokenizer", std::move(file)}, {"config", json::object()}};
}

bool IsUtf8(const std::string& text) {
  // nlohmann::json refuses to write anything else.
  return json(text).dump(-1, ' ', false, json::error_handler_t::ignore) ==
         json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

class HuggingFaceGoldensTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    strings_ = ReadGoldenJson("vocab/corpus.json.xz").get<std::vector<std::string>>();
    golden_ = ReadGoldenJson(std::string("vocab/") + GetParam() + ".golden.json.xz");
    ASSERT_OK_AND_ASSIGN(tokenizer_, MakeTokenizer(Spec(GetParam())));
  }
  std::vector<std::string> strings_;
  json golden_;
  std::unique_ptr<const Tokenizer> tokenizer_;
};

TEST_P(HuggingFaceGoldensTest, EncodesLikeTheLibrary) {
  ASSERT_GE(strings_.size(), 400u);
  for (size_t i = 0; i < strings_.size(); ++i) {
    EXPECT_THAT(tokenizer_->Encode(strings_[i], false, true),
                IsOkAndHolds(golden_["ids"][i].get<Ids>()))
        << i << ": " << json(strings_[i]);
    EXPECT_THAT(tokenizer_->Encode(strings_[i], true, true),
                IsOkAndHolds(golden_["special_ids"][i].get<Ids>()))
        << i << ": " << json(strings_[i]);
  }
}

TEST_P(HuggingFaceGoldensTest, DecodesLikeTheLibrary) {
  for (size_t i = 0; i < strings_.size(); ++i) {
    const Ids ids = golden_["special_ids"][i].get<Ids>();
    EXPECT_THAT(tokenizer_->Decode(ids, true), IsOkAndHolds(golden_["text"][i].get<std::string>()))
        << i << ": " << json(strings_[i]);
    EXPECT_THAT(tokenizer_->Decode(ids, false), IsOkAndHolds(golden_["kept"][i].get<std::string>()))
        << i << ": " << json(strings_[i]);
  }
}

TEST_P(HuggingFaceGoldensTest, AStreamIsValidAtEveryTokenAndAddsUpToDecode) {
  for (size_t i = 0; i < strings_.size(); ++i) {
    const Ids ids = golden_["special_ids"][i].get<Ids>();
    const auto stream = tokenizer_->NewStreamDecoder();
    std::string all;
    for (const int32_t id : ids) {
      const std::string part = stream->Push(id);
      ASSERT_TRUE(IsUtf8(part)) << i << ": " << json(strings_[i]);
      all += part;
    }
    all += stream->Flush();
    EXPECT_THAT(tokenizer_->Decode(ids, true), IsOkAndHolds(all)) << i;
  }
}

// Whatever the ids are: reversing them breaks every multi-byte sequence.
TEST_P(HuggingFaceGoldensTest, AStreamOfNonsenseIsStillUtf8) {
  for (size_t i = 0; i < strings_.size(); ++i) {
    Ids ids = golden_["ids"][i].get<Ids>();
    std::reverse(ids.begin(), ids.end());
    const auto stream = tokenizer_->NewStreamDecoder();
    std::string all;
    for (const int32_t id : ids) {
      const std::string part = stream->Push(id);
      ASSERT_TRUE(IsUtf8(part)) << i;
      all += part;
    }
    const std::string rest = stream->Flush();
    ASSERT_TRUE(IsUtf8(rest)) << i;
    EXPECT_THAT(tokenizer_->Decode(ids, true), IsOkAndHolds(all + rest)) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(All, HuggingFaceGoldensTest,
                         testing::Values("minilm", "byte_level_bpe", "llama3_like", "llama2_like",
                                         "unigram", "precompiled", "wordpiece_cased", "smollm2"),
                         [](const auto& info) { return std::string(info.param); });

// The comparison is not vacuous: one exchange in the rules and it fails.
TEST(HuggingFaceGoldensCheckTest, DetectsTwoSwappedMerges) {
  json spec = Spec("byte_level_bpe");
  json& merges = spec["tokenizer"]["model"]["merges"];
  std::swap(merges[0], merges[5]);
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, MakeTokenizer(spec));
  const auto strings = ReadGoldenJson("vocab/corpus.json.xz").get<std::vector<std::string>>();
  const json golden = ReadGoldenJson("vocab/byte_level_bpe.golden.json.xz");
  int different = 0;
  for (size_t i = 0; i < strings.size(); ++i) {
    different += *tokenizer->Encode(strings[i], false, true) != golden["ids"][i].get<Ids>();
  }
  EXPECT_GT(different, 10);
}

}  // namespace
}  // namespace assay
