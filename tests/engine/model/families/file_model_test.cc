// The model whose weights stay in the file is the f32 model, bit for bit.
#include "engine/model/file_model.h"

#include <gtest/gtest.h>

#include "engine/model/checkpoint.h"
#include "tests/engine/model/families/model_runner.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

class FileModelTest : public testing::TestWithParam<const char*> {};

TEST_P(FileModelTest, ComputesWhatTheModelInMemoryComputes) {
  ASSERT_OK_AND_ASSIGN(std::shared_ptr<const Checkpoint> checkpoint,
                       OpenCheckpoint(GoldenPath(GetParam())));
  ASSERT_OK_AND_ASSIGN(const auto resident, BuildUniform(*checkpoint, "f32", {}));
  ASSERT_OK_AND_ASSIGN(const auto on_file, BuildOnFile(checkpoint));
  std::vector<int32_t> tokens;
  for (int i = 0; i < 24; ++i) tokens.push_back((i * 13 + 5) % resident->spec().vocab);
  ModelRunner file(*on_file, 1, 24), memory(*resident, 1, 24);
  const auto expected = memory.Forward({{.tokens = tokens}});
  EXPECT_EQ(file.Forward({{.tokens = tokens}}), expected);
  EXPECT_GT(expected.size(), 0u);
  for (const auto& [name, linear] : on_file->linears()) {
    EXPECT_EQ(linear->kernel(), "file_f32") << name;
    EXPECT_LT(linear->bytes(), 4096u) << name;  // a bias at most
  }
}

INSTANTIATE_TEST_SUITE_P(All, FileModelTest,
                         testing::Values("../../data/stories260k/stories260K-f32.gguf",
                                         "models/llama_bias", "models/qwen3", "models/mistral",
                                         "models/bert_mean", "models/distilbert_classifier"));

}  // namespace
}  // namespace assay
