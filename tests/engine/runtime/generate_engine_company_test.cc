#include <algorithm>

#include "tests/engine/runtime/generate_engine_fixture.h"

namespace assay {
namespace {

// The heart of it: what a request gives does not depend on its company.
struct Company {
  const char* name;
  int max_sequences, max_step_tokens, kv_blocks;
  bool prefix_cache;
};
class CompanyTest : public GenerateEngineTest, public testing::WithParamInterface<Company> {};

TEST_P(CompanyTest, EveryRequestGivesTheSameTokensAsAlone) {
  struct Case {
    GenerateRequest request;
    StreamRecorder::Stream alone;
  };
  std::minstd_rand random(3);
  std::vector<Case> cases;
  for (int i = 0; i < 33; ++i) {
    GenerateRequest request =
        Request(1 + static_cast<int>(random() % 100), i % 5, 1 + static_cast<int>(random() % 60));
    if (i % 3 == 1) {  // sampled, with penalties
      request.sampling.temperature = 1.0f;
      request.sampling.seed = i;
      request.sampling.top_p = 0.9f;
      request.sampling.repetition_penalty = 1.2f;
      request.sampling.frequency_penalty = 0.1f;
    }
    StreamRecorder::Stream alone = Alone(request);
    cases.push_back({std::move(request), std::move(alone)});
  }

  EngineSetup setup;
  setup.engine = {.max_sequences = GetParam().max_sequences,
                  .max_step_tokens = GetParam().max_step_tokens,
                  .max_queue = 64,
                  .kv_bytes = size_t{256} * GetParam().kv_blocks,
                  .prefix_cache = GetParam().prefix_cache};
  auto engine = Start(setup);
  for (int round = 0; round < 3; ++round) {
    StreamRecorder recorder;
    std::ranges::shuffle(cases, random);
    for (const Case& c : cases) {
      ASSERT_OK(engine->Submit(c.request, recorder.NewSink()));
      // Random arrival: sometimes only after the loop has made some steps.
      if (random() % 3 == 0) recorder.WaitForEvents(recorder.num_events() + 1 + random() % 20);
    }
    const std::vector<StreamRecorder::Stream> streams = recorder.WaitForAll();
    for (size_t i = 0; i < cases.size(); ++i) {
      EXPECT_OK(streams[i].end.status);
      EXPECT_EQ(streams[i].tokens, cases[i].alone.tokens) << "round " << round;
      EXPECT_EQ(streams[i].text, cases[i].alone.text);
    }
  }
  engine->Drain();
  EXPECT_EQ(engine->load().kv_blocks_used, 0);
  EXPECT_EQ(metrics_->preempted > 0, GetParam().kv_blocks < 30);
  EXPECT_EQ(metrics_->prefix_hits > 0, GetParam().prefix_cache);
}

INSTANTIATE_TEST_SUITE_P(Companies, CompanyTest,
                         testing::Values(Company{"Roomy", 33, 512, 600, true},
                                         Company{"Tight", 16, 64, 14, true},
                                         Company{"TightWithoutCache", 16, 64, 14, false},
                                         Company{"SmallChunks", 7, 7, 40, true},
                                         Company{"OneRow", 1, 1, 30, true}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace assay
