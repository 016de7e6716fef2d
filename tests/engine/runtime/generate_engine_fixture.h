// What the tests of the generate engine share: an engine over fakes.
#pragma once
#include <gmock/gmock.h>

#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "base/thread_pool.h"
#include "engine/runtime/engine.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_model.h"
#include "tests/support/fake_model_metrics.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/stream_recorder.h"

namespace assay {

inline std::vector<int32_t> Prompt(int size, uint32_t seed, int vocab = 64) {
  std::minstd_rand random(seed + 1);
  std::vector<int32_t> prompt(size);
  for (int32_t& token : prompt) token = static_cast<int32_t>(random() % vocab);
  return prompt;
}

inline GenerateRequest Request(int prompt, uint32_t seed, int max_tokens) {
  GenerateRequest request{.prompt = Prompt(prompt, seed)};
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

struct EngineSetup {
  FakeModel::Options model;
  EngineOptions engine = {.max_sequences = 8, .max_step_tokens = 32, .max_queue = 64};
  std::vector<int32_t> end_tokens = {0};
};

class GenerateEngineTest : public testing::Test {
 protected:
  std::unique_ptr<GenerateEngine> Start(const EngineSetup& setup) {
    model_ = std::make_shared<FakeModel>(setup.model);
    metrics_ = std::make_shared<FakeModelMetrics>();
    auto engine = GenerateEngine::Start(model_,
                                        std::make_shared<FakeTokenizer>(FakeTokenizer::Letters(
                                            setup.model.vocab, setup.end_tokens)),
                                        setup.engine, {pool_, clock_, metrics_});
    EXPECT_OK(engine);
    return *std::move(engine);
  }
  absl::Status StartStatus(const EngineSetup& setup) {
    return GenerateEngine::Start(std::make_shared<FakeModel>(setup.model),
                                 std::make_shared<FakeTokenizer>(FakeTokenizer::Letters(64, {})),
                                 setup.engine,
                                 {pool_, clock_, std::make_shared<FakeModelMetrics>()})
        .status();
  }
  // What the request gives when nothing else runs.
  StreamRecorder::Stream Alone(const GenerateRequest& request, const EngineSetup& setup = {}) {
    auto engine = Start(setup);
    StreamRecorder recorder;
    EXPECT_OK(engine->Submit(request, recorder.NewSink()));
    return recorder.WaitForAll()[0];
  }

  ThreadPool pool_{{.num_threads = 2}};
  FakeClock clock_;
  std::shared_ptr<FakeModel> model_;
  std::shared_ptr<FakeModelMetrics> metrics_;
};

}  // namespace assay
