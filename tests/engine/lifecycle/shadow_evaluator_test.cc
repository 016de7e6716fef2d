// Requests computed again: against the verifier's own figures, and what must be seen.
#include "engine/lifecycle/shadow_evaluator.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <filesystem>

#include "base/thread_pool.h"
#include "engine/lifecycle/verifier.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class ShadowEvaluatorTest : public testing::Test {
 protected:
  void Open(const std::string& path) {
    ASSERT_OK_AND_ASSIGN(checkpoint_, OpenCheckpoint(path));
    ASSERT_OK_AND_ASSIGN(evaluator_, ShadowEvaluator::Create(checkpoint_));
  }
  void OpenStories() { Open(GoldenPath("../../data/stories260k/stories260K-f32.gguf")); }
  std::shared_ptr<const Model> Uniform(std::string_view scheme, ActivationMode mode) {
    return BuildUniform(*checkpoint_, scheme, {.activation = mode}).value();
  }
  ShadowScore Score(const Model& served, const ServedRequest& request,
                    const ShadowEvaluator::Options& options) {
    const auto go_on = [] { return absl::OkStatus(); };
    const auto score = evaluator_->Score(served, DType::kF16, request, options, pool_, go_on);
    EXPECT_OK(score);
    return score.value_or(ShadowScore{});
  }
  // A prompt of eight tokens, the rest as the answer; log probabilities as `model` computes them.
  ServedRequest Request(const Model& model, int tokens) {
    ServedRequest request{.tokens = {}, .num_prompt = 8, .logprobs = {}, .token_types = {}};
    for (int i = 0; i < tokens; ++i) request.tokens.push_back((i * 37 + 11) % model.spec().vocab);
    ModelPass pass = ModelPass::Create(model,
                                       {.sequences = 1,
                                        .context = tokens,
                                        .rows = tokens,
                                        .out_rows = tokens,
                                        .kv_format = DType::kF16},
                                       pool_)
                         .value();
    const ModelPass::Span span{0, 0, request.tokens};
    const std::span<const float> logits = pass.Forward(std::span(&span, 1)).value();
    const auto vocab = static_cast<size_t>(model.spec().vocab);
    for (size_t p = 7; p + 1 < request.tokens.size(); ++p) {
      const std::span<const float> row = logits.subspan(p * vocab, vocab);
      request.logprobs.push_back(
          static_cast<float>(-ScorePosition(row, row, request.tokens[p + 1]).nll));
    }
    return request;
  }

  ThreadPool pool_{{.num_threads = 1}};
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::unique_ptr<ShadowEvaluator> evaluator_;
};

TEST_F(ShadowEvaluatorTest, AnExactModelLosesNothingButItsKvCachesRounding) {
  OpenStories();
  const auto exact = Uniform("f32", ActivationMode::kA16);
  const ServedRequest request = Request(*exact, 150);  // two chunks
  const ShadowScore score = Score(*exact, request, {.max_positions = 32, .seed = 5});
  EXPECT_EQ(score.positions, 32);
  EXPECT_LT(score.loss, 1e-5);  // f16 keys: relative 2^-11, logits of order 10
  EXPECT_EQ(score.top1_flip, 0);
  EXPECT_LT(score.replay_difference, 1e-5);  // f32 in the request's log probabilities
  // Of one token at most about 2^-11 times 10, so of their mean.
  EXPECT_LT(std::abs(score.logprob_difference), 5e-3);
}

// Seeds count up by one per request: the windows, one of 32 places here, must neither miss a part
// of the answers nor move along with the count.
TEST_F(ShadowEvaluatorTest, WindowsOfConsecutiveSeedsAreSpreadOverTheAnswer) {
  OpenStories();
  const auto served = Uniform("int8_channel", ActivationMode::kA16);
  ServedRequest request{
      .tokens = std::vector<int32_t>(43, 20), .num_prompt = 8, .logprobs = {}, .token_types = {}};
  constexpr int kSeeds = 256, kBins = 8;
  std::array<int, kBins> hits{};
  int near = 0, before = 1000;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const ShadowScore score = Score(*served, request, {.max_positions = 4, .seed = seed});
    ASSERT_EQ(score.positions, 4);
    const int place = score.tokens - 11;  // its end, from the first on
    ASSERT_GE(place, 0);
    ASSERT_LT(place, 32);
    ++hits[static_cast<size_t>(place / 4)];
    near += std::abs(place - before) <= 1 ? 1 : 0;
    before = place;
  }
  double chi_square = 0;
  for (const int count : hits) chi_square += std::pow(count - 32, 2) / 32;
  EXPECT_LT(chi_square, 24.3);  // of 7 degrees of freedom: 0.1 %
  // By chance 3 of 32 (less at the ends): 24, deviation 4.6. Of seeds taken as places: 247.
  EXPECT_LT(near, 24 + 4 * 5);
}

TEST_F(ShadowEvaluatorTest, AgreesWithTheVerifierOnTheSameTokens) {
  OpenStories();
  const auto served = Uniform("int4_group:g32", ActivationMode::kA16);
  const ServedRequest request = Request(*served, 60);
  const EvaluationSet set{.name = "", .hash = "", .documents = {request.tokens}};
  const auto reference = Uniform("f32", ActivationMode::kA16);
  const auto verifier = Verifier::Create(ResidentLayers(reference), set, pool_).value();
  const VerificationResult expected =
      verifier->Compare(*served, DType::kF16, {.decode_path = false}, nullptr).value();
  const ShadowScore score = Score(*served, request, {.max_positions = 100, .clip = 1e9});
  EXPECT_EQ(score.positions, 59);
  // The same logits, bit for bit, and sums of 59 doubles in the same order.
  EXPECT_NEAR(score.loss, expected.mean_kl.mean, 1e-12);
  EXPECT_NEAR(1 - score.top1_flip, expected.top1_agreement.mean, 1e-12);
  EXPECT_GT(score.loss, 1e-4);
}

TEST_F(ShadowEvaluatorTest, ClipsByPosition) {
  OpenStories();
  const auto served = Uniform("int3_group", ActivationMode::kA16);
  const ServedRequest request = Request(*served, 60);
  const double all = Score(*served, request, {.max_positions = 100, .clip = 1e9}).loss;
  EXPECT_NEAR(Score(*served, request, {.max_positions = 100, .clip = 100}).clipped, all / 100,
              1e-12);
  const double clipped = Score(*served, request, {.max_positions = 100, .clip = all / 2}).clipped;
  EXPECT_LT(clipped, 1);
  EXPECT_GT(clipped, 0.3);
}

TEST_F(ShadowEvaluatorTest, SeesAnAnswerThatTheModelNoLongerComputes) {
  OpenStories();
  const auto proven = Uniform("int8_channel", ActivationMode::kA16);
  const auto spoiled = Uniform("int3_group", ActivationMode::kA16);
  const ServedRequest request = Request(*proven, 60);
  EXPECT_LT(Score(*proven, request, {}).replay_difference, 1e-5);
  EXPECT_GT(Score(*spoiled, request, {}).replay_difference, 0.05);
}

TEST_F(ShadowEvaluatorTest, EncodersAndClassifiers) {
  Open(GoldenPath("models/bert_mean"));
  ServedRequest request{
      .tokens = {1, 5, 9, 4, 2}, .num_prompt = 5, .logprobs = {}, .token_types = {0, 0, 1, 1, 1}};
  EXPECT_LT(Score(*Uniform("f32", ActivationMode::kA16), request, {}).loss, 1e-12);
  const double loss = Score(*Uniform("int3_group", ActivationMode::kA16), request, {}).loss;
  EXPECT_GT(loss, 1e-4);
  EXPECT_LT(loss, 1);
  const auto exact = Uniform("f32", ActivationMode::kA16);
  Open(GoldenPath("models/bert_classifier"));
  const ShadowScore score = Score(*Uniform("f32", ActivationMode::kA16), request, {});
  EXPECT_EQ(score.loss, 0);
  EXPECT_EQ(score.positions, 1);
}

TEST_F(ShadowEvaluatorTest, BadInputIsSaidAndPausesEndIt) {
  OpenStories();
  const auto model = Uniform("f32", ActivationMode::kA16);
  const auto go_on = [] { return absl::OkStatus(); };
  const ServedRequest one{.tokens = {3}, .num_prompt = 1, .logprobs = {}, .token_types = {}};
  EXPECT_THAT(evaluator_->Score(*model, DType::kF16, one, {}, pool_, go_on),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("tokens=1")));
  const ServedRequest unknown{
      .tokens = {3, 99999, 4}, .num_prompt = 1, .logprobs = {}, .token_types = {}};
  EXPECT_THAT(evaluator_->Score(*model, DType::kF16, unknown, {}, pool_, go_on),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("vocab")));
  const auto stop = [] { return absl::UnavailableError("stopped"); };
  EXPECT_THAT(evaluator_->Score(*model, DType::kF16, Request(*model, 20), {}, pool_, stop),
              StatusIs(StatusCode::kUnavailable));
}

// Drift must not be called on the strength of a reference that somebody wrote over.
TEST_F(ShadowEvaluatorTest, AReferenceWhoseFileChangesIsRefused) {
  TempDir directory;
  const std::string path = directory.path() + "/model.gguf";
  std::filesystem::copy_file(GoldenPath("../../data/stories260k/stories260K-f32.gguf"), path);
  Open(path);
  const std::shared_ptr<const Model> model = Uniform("f32", ActivationMode::kA16);
  const ServedRequest request = Request(*model, 20);
  EXPECT_LT(Score(*model, request, {}).loss, 1e-4);  // KV cache in f16 against f32
  const auto go_on = [] { return absl::OkStatus(); };
  std::filesystem::resize_file(path, 100'000);  // reads behind that would raise SIGBUS
  EXPECT_THAT(evaluator_->Score(*model, DType::kF16, request, {}, pool_, go_on),
              StatusIs(StatusCode::kDataLoss, HasSubstr(path)));
}

}  // namespace
}  // namespace assay
