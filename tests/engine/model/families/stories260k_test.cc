// The bundled decoder against golden tokens and logits that data/stories260k/reference.py computed
// in float64.
#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/model/checkpoint.h"
#include "tests/engine/model/families/model_runner.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

struct Golden {
  std::vector<int32_t> prompt, greedy;
  std::vector<float> logits;  // after the prompt
};

class Stories260kTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(checkpoint_,
                         OpenCheckpoint(RepositoryPath("data/stories260k/stories260K-f32.gguf")));
    std::ifstream file(RepositoryPath("data/stories260k/golden.json"));
    const nlohmann::json goldens = nlohmann::json::parse(file);
    for (const nlohmann::json& golden : goldens) {
      goldens_.push_back({golden["prompt_ids"], golden["greedy_ids"],
                          golden["last_prompt_logits"].get<std::vector<float>>()});
    }
    ASSERT_EQ(goldens_.size(), 3u);
  }
  std::unique_ptr<const Model> Build(std::string_view scheme, const LinearOptions& options = {}) {
    auto model = BuildUniform(*checkpoint_, scheme, options);
    EXPECT_OK(model);
    return *std::move(model);
  }
  static int32_t Best(const std::vector<float>& logits) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  std::unique_ptr<const Checkpoint> checkpoint_;
  std::vector<Golden> goldens_;
};

TEST_F(Stories260kTest, ReproducesTheGoldenTokensAndLogits) {
  for (const char* kernel : {"", "reference"}) {
    const auto model = Build("f32", {.kernel = kernel});
    for (const Golden& golden : goldens_) {
      ModelRunner runner(*model, 1, 128);
      auto logits = runner.Forward({{.tokens = golden.prompt, .all_logits = false}});
      EXPECT_LT(MaxDifference(logits[0], golden.logits), 1e-4) << "kernel=" << kernel;
      std::vector<int32_t> tokens;
      auto position = static_cast<int>(golden.prompt.size());
      while (tokens.size() < golden.greedy.size()) {
        tokens.push_back(Best(logits[0]));
        logits = runner.Forward({{.start = position++, .tokens = {tokens.back()}}});
      }
      EXPECT_EQ(tokens, golden.greedy) << "kernel=" << kernel;
    }
  }
}

TEST_F(Stories260kTest, GreedyTokensAreTheSameInABatchOfAll) {
  const auto model = Build("f32");
  ModelRunner runner(*model, 3, 128);
  std::vector<ModelRunner::Chunk> step;
  for (int s = 0; s < 3; ++s) {
    step.push_back({.sequence = s, .tokens = goldens_[s].prompt, .all_logits = false});
  }
  for (int i = 0; i < 64; ++i) {
    const auto logits = runner.Forward(step);
    for (int s = 0; s < 3; ++s) {
      ASSERT_EQ(Best(logits[s]), goldens_[s].greedy[i]) << "sequence=" << s << " token=" << i;
      step[s].start += static_cast<int>(step[s].tokens.size());
      step[s].tokens = {goldens_[s].greedy[i]};
    }
  }
}

TEST_F(Stories260kTest, DetectsAWrongWeight) {
  // The check above fails for a model whose weights were rounded to bf16 (2^-9 relative).
  const auto model = Build("bf16");
  ModelRunner runner(*model, 1, 128);
  const auto logits = runner.Forward({{.tokens = goldens_[0].prompt, .all_logits = false}});
  EXPECT_GT(MaxDifference(logits[0], goldens_[0].logits), 1e-3);
}

TEST_F(Stories260kTest, F16CacheStaysCloseToTheGoldenLogits) {
  const auto model = Build("f32");
  for (const Golden& golden : goldens_) {
    ModelRunner runner(*model, 1, 128, DType::kF16);
    const auto logits = runner.Forward({{.tokens = golden.prompt, .all_logits = false}});
    // Keys and values have relative errors up to 2^-11; logits up to 13, five layers.
    EXPECT_LT(MaxDifference(logits[0], golden.logits), 5 * 13 * 0x1p-11);
  }
}

}  // namespace
}  // namespace assay
