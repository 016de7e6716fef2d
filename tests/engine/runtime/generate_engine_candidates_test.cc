// The generate engine over a model that leaves rows of logits on its device.
#include <gmock/gmock.h>

#include "tests/engine/runtime/generate_engine_fixture.h"
#include "tests/support/fake_device_model.h"

namespace assay {
namespace {

using ::testing::HasSubstr;
using Code = absl::StatusCode;

constexpr int kVocab = 1000;

class GenerateEngineCandidatesTest : public testing::Test {
 protected:
  std::unique_ptr<GenerateEngine> Start(std::shared_ptr<const Model> model) {
    metrics_ = std::make_shared<FakeModelMetrics>();
    auto engine = GenerateEngine::Start(
        std::move(model), std::make_shared<FakeTokenizer>(FakeTokenizer::Letters(kVocab, {})),
        {.max_sequences = 8, .max_step_tokens = 32, .max_queue = 64}, {pool_, clock_, metrics_});
    EXPECT_OK(engine);
    return *std::move(engine);
  }
  std::vector<StreamRecorder::Stream> Run(std::shared_ptr<const Model> model,
                                          std::span<const SamplingParams> kinds) {
    auto engine = Start(std::move(model));
    StreamRecorder recorder;
    uint32_t seed = 0;
    for (const SamplingParams& kind : kinds) {
      GenerateRequest request{.prompt = Prompt(4, ++seed, kVocab), .sampling = kind};
      request.sampling.max_tokens = 12;
      request.sampling.ignore_eos = true;
      request.sampling.seed = seed;
      EXPECT_OK(engine->Submit(std::move(request), recorder.NewSink()));
    }
    return recorder.WaitForAll();
  }

  ThreadPool pool_{{.num_threads = 2}};
  FakeClock clock_;
  std::shared_ptr<FakeModelMetrics> metrics_;
};

TEST_F(GenerateEngineCandidatesTest, TokensAreThoseOfWholeRowsHoweverMixedAStepIs) {
  // The fake's logits are uniform in [-4, 4): a nucleus of 0.9 has a tenth of the tokens at 0.3,
  // and more than there are candidates at 2.
  const SamplingParams kinds[] = {{},
                                  {.logprobs = 4},
                                  {.temperature = 0.3f, .top_p = 0.9f},
                                  {.temperature = 2, .top_p = 0.9f},
                                  {.temperature = 1},
                                  {.temperature = 1, .top_k = 30, .repetition_penalty = 1.3f},
                                  {.temperature = 1, .min_p = 0.001f},
                                  {.temperature = 0.7f, .top_k = 50, .top_p = 0.8f}};
  const auto on_host = Run(std::make_shared<FakeModel>(FakeModel::Options{.vocab = kVocab}), kinds);
  EXPECT_EQ(metrics_->sampled_from_rows, 8 * 12);
  EXPECT_EQ(metrics_->sampled_from_candidates, 0);
  const auto on_device =
      Run(std::make_shared<FakeDeviceModel>(FakeModel::Options{.vocab = kVocab}), kinds);
  EXPECT_EQ(metrics_->sampled_from_candidates, 5 * 12);
  EXPECT_EQ(metrics_->sampled_from_rows, 3 * 12);
  for (size_t i = 0; i < std::size(kinds); ++i) {
    EXPECT_OK(on_device[i].end.status);
    EXPECT_EQ(on_device[i].tokens, on_host[i].tokens) << i;
    for (size_t t = 0; t < on_host[i].events.size(); ++t) {
      EXPECT_EQ(on_device[i].events[t].logprob, on_host[i].events[t].logprob) << i;
      EXPECT_EQ(on_device[i].events[t].top, on_host[i].events[t].top) << i;
    }
  }
}

TEST_F(GenerateEngineCandidatesTest, ANanOnTheDeviceEndsItsRequest) {
  const SamplingParams greedy;
  const auto streams =
      Run(std::make_shared<FakeDeviceModel>(FakeModel::Options{.vocab = kVocab, .nan_at_step = 2}),
          std::span(&greedy, 1));
  EXPECT_THAT(streams[0].end.status,
              StatusIs(Code::kInternal, HasSubstr("logits at position 6 have a NaN")));
}

TEST_F(GenerateEngineCandidatesTest, RowsThatCannotBeFetchedEndTheirRequestsAlone) {
  const SamplingParams kinds[] = {{}, {.temperature = 2, .top_p = 0.9f}};
  const auto streams =
      Run(std::make_shared<FakeDeviceModel>(FakeModel::Options{.vocab = kVocab}, true), kinds);
  EXPECT_OK(streams[0].end.status);
  EXPECT_EQ(streams[0].tokens.size(), 12u);
  EXPECT_THAT(streams[1].end.status, StatusIs(Code::kInternal, HasSubstr("keeps its logits")));
}

}  // namespace
}  // namespace assay
