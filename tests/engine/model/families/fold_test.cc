// Folds leave the function of every golden model unchanged; an incomplete or misplaced one does
// not.
#include "engine/model/fold.h"

#include <cmath>
#include <random>

#include "gmock/gmock.h"
#include "tests/engine/model/families/model_runner.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

std::vector<Fold> RandomFolds(const ModelSpec& spec, const ModelFamily& family, float sigma) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, sigma);
  std::vector<Fold> folds;
  for (FoldGroup& group : family.folds(spec)) {
    std::vector<float> scales(static_cast<size_t>(group.channels));
    for (float& s : scales) s = std::exp(normal(random));
    for (int64_t i = 0; group.rotary_pairs && i < group.channels; ++i)
      if (i % group.head_dim >= group.head_dim / 2) scales[i] = scales[i - group.head_dim / 2];
    folds.push_back({std::move(group), std::move(scales)});
  }
  return folds;
}

// The f32 model's outputs for one fixed sequence.
std::vector<float> Outputs(const Checkpoint& checkpoint) {
  const auto model = BuildUniform(checkpoint, "f32", {});
  EXPECT_OK(model);
  ModelRunner runner(**model, 1, 48);
  ModelRunner::Chunk chunk;
  for (int i = 0; i < 24; ++i) chunk.tokens.push_back((i * 7 + 3) % (*model)->spec().vocab);
  std::vector<float> all;
  for (const std::vector<float>& row : runner.Forward({chunk}))
    all.insert(all.end(), row.begin(), row.end());
  return all;
}

double Largest(const std::vector<float>& values) {
  double largest = 0;
  for (const float v : values) largest = std::max<double>(largest, std::fabs(v));
  return largest;
}

class FoldTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto checkpoint = OpenCheckpoint(GoldenPath(std::string("models/") + GetParam()));
    ASSERT_OK(checkpoint);
    checkpoint_ = *std::move(checkpoint);
    family_ = FamilyOf(*checkpoint_).value();
    spec_ = family_->parse(*checkpoint_).value();
    exact_ = Outputs(*checkpoint_);
    // A scale and its inverse are each rounded once, and so is every product with them: a few
    // 2^-24 per layer, far below 1e-5 of the largest output.
    bound_ = 1e-5 * Largest(exact_);
  }
  double Difference(const std::vector<Fold>& folds) const {
    const auto folded = ApplyFolds(*checkpoint_, folds);
    EXPECT_OK(folded);
    return MaxDifference(Outputs(**folded), exact_);
  }

  std::unique_ptr<const Checkpoint> checkpoint_;
  const ModelFamily* family_ = nullptr;
  ModelSpec spec_;
  std::vector<float> exact_;
  double bound_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Golden, FoldTest,
                         testing::Values("llama2", "llama3", "llama_bias", "llama_linear",
                                         "llama_yarn", "mistral", "qwen2", "qwen3", "smollm",
                                         "bert_mean", "bert_cls", "bert_classifier", "distilbert",
                                         "distilbert_classifier", "roberta", "roberta_classifier"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(FoldTest, LeavesTheFunctionUnchanged) {
  const std::vector<Fold> folds = RandomFolds(spec_, *family_, 0.3f);
  ASSERT_GE(folds.size(), static_cast<size_t>(spec_.layers));
  EXPECT_LE(Difference(folds), bound_);
}

TEST_P(FoldTest, SeesAConsumerThatIsLeftOut) {
  for (size_t g = 0; g < std::min<size_t>(4, family_->folds(spec_).size()); ++g) {
    std::vector<Fold> folds = RandomFolds(spec_, *family_, 0.3f);
    std::vector<std::string>& readers =
        folds[g].group.consumers.empty() ? folds[g].group.partners : folds[g].group.consumers;
    readers.pop_back();
    EXPECT_GT(Difference(folds), 10 * bound_) << folds[g].group.slot;
  }
}

TEST_P(FoldTest, SeesAProducerThatIsLeftOut) {
  for (size_t g = 0; g < std::min<size_t>(4, family_->folds(spec_).size()); ++g) {
    std::vector<Fold> folds = RandomFolds(spec_, *family_, 0.3f);
    folds[g].group.producers.pop_back();
    EXPECT_GT(Difference(folds), 10 * bound_) << folds[g].group.slot;
  }
}

TEST_P(FoldTest, SeesHeadsThatAreMixedUp) {
  std::vector<Fold> folds = RandomFolds(spec_, *family_, 0.3f);
  bool grouped = false;
  for (Fold& fold : folds) {
    if (fold.group.heads_per_channel <= 1 || fold.group.rotary_pairs) continue;
    grouped = true;
    fold.group.head_dim /= 2;  // the wrong query heads read each value channel
  }
  if (!grouped) return;  // nothing to mix up
  EXPECT_GT(Difference(folds), 10 * bound_);
}

TEST_P(FoldTest, RefusesARotaryPairWithTwoScales) {
  for (Fold& fold : RandomFolds(spec_, *family_, 0.3f)) {
    if (!fold.group.rotary_pairs) continue;
    fold.scales[1] *= 1.5f;
    EXPECT_THAT(ApplyFolds(*checkpoint_, {fold}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rotary pair: channel=1")));
    fold.group.rotary_pairs = false;  // and rightly so
    EXPECT_GT(Difference({fold}), 10 * bound_);
    return;
  }
}

TEST_P(FoldTest, HashNamesTheFolds) {
  std::vector<Fold> folds = RandomFolds(spec_, *family_, 0.3f);
  const std::string base = checkpoint_->ContentHash().value();
  const std::string first = ApplyFolds(*checkpoint_, folds).value()->ContentHash().value();
  EXPECT_NE(first, base);
  EXPECT_EQ(ApplyFolds(*checkpoint_, folds).value()->ContentHash().value(), first);
  folds[0].scales[0] *= 1.0001f;
  EXPECT_NE(ApplyFolds(*checkpoint_, folds).value()->ContentHash().value(), first);
}

TEST_P(FoldTest, RefusesScalesAndGroupsThatDoNotFit) {
  std::vector<Fold> folds = RandomFolds(spec_, *family_, 0.3f);
  Fold& fold = folds[0];
  const float good = fold.scales[2];
  for (const float bad : {0.0f, -1.0f, INFINITY, NAN, 1e-42f}) {
    fold.scales[2] = bad;
    EXPECT_THAT(ApplyFolds(*checkpoint_, folds),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         testing::AllOf(HasSubstr(fold.group.slot), HasSubstr("channel=2"))));
  }
  fold.scales[2] = good;
  fold.scales.pop_back();
  EXPECT_THAT(ApplyFolds(*checkpoint_, folds),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("scales=")));
  fold.scales.push_back(1);
  fold.group.producers[0] = "no.such.tensor";
  EXPECT_THAT(ApplyFolds(*checkpoint_, folds),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no.such.tensor")));
}

}  // namespace
}  // namespace assay
