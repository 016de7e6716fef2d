// The generate engine with a real model: the tokens that data/stories260k/reference.py computed in
// float64 come out whatever the company, the chunks, the prefix cache and the preemptions are.
#include <gmock/gmock.h>

#include <random>

#include "base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/kv_cache.h"
#include "quant/activation.h"
#include "quant/schemes/schemes.h"
#include "tests/support/fake_model_metrics.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"
#include "tests/support/stream_recorder.h"

namespace assay {
namespace {

struct Golden {
  std::vector<int32_t> prompt, greedy;
};

class Stories260kEngineTest : public testing::Test {
 protected:
  static constexpr size_t kBlockBytes = size_t{2} * 5 * 4 * 16 * 8 * 4;  // 5 layers, 4 heads of 8

  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(const auto checkpoint,
                         OpenCheckpoint(GoldenPath("../../data/stories260k/stories260K-f32.gguf")));
    ASSERT_OK_AND_ASSIGN(model_, BuildUniform(*checkpoint, "f32", {}));
    ASSERT_OK_AND_ASSIGN(tokenizer_, MakeTokenizer(checkpoint->tokenizer()));
    for (const nlohmann::json& g : ReadGoldenJson("../../data/stories260k/golden.json"))
      goldens_.push_back({g["prompt_ids"], g["greedy_ids"]});
    ASSERT_EQ(goldens_.size(), 3u);
  }
  std::unique_ptr<GenerateEngine> Start(EngineOptions options) {
    options.kv_format = kv_format_;
    metrics_ = std::make_shared<FakeModelMetrics>();
    auto engine =
        GenerateEngine::Start(model_, tokenizer_, options, {pool_, RealClock(), metrics_});
    EXPECT_OK(engine);
    return *std::move(engine);
  }
  // Golden `g` from the middle: its prompt and `given` of its greedy tokens, to be continued.
  GenerateRequest Continue(const Golden& g, size_t given) {
    GenerateRequest request{.prompt = g.prompt};
    request.prompt.insert(request.prompt.end(), g.greedy.begin(), g.greedy.begin() + given);
    request.sampling.max_tokens = static_cast<int>(g.greedy.size() - given);
    request.sampling.ignore_eos = true;
    return request;
  }
  static std::vector<int32_t> Rest(const Golden& g, size_t given) {
    return {g.greedy.begin() + static_cast<std::ptrdiff_t>(given), g.greedy.end()};
  }

  ThreadPool pool_{{.num_threads = 2}};
  KvFormat kv_format_ = DType::kF32;
  std::shared_ptr<const Model> model_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<FakeModelMetrics> metrics_;
  std::vector<Golden> goldens_;
};

TEST_F(Stories260kEngineTest, AloneItReproducesTheGoldenTokensAndTheirText) {
  auto engine = Start({});
  for (const Golden& g : goldens_) {
    StreamRecorder recorder;
    ASSERT_OK(engine->Submit(Continue(g, 0), recorder.NewSink()));
    const auto stream = recorder.WaitForAll()[0];
    EXPECT_OK(stream.end.status);
    EXPECT_EQ(stream.tokens, g.greedy);
    std::unique_ptr<Tokenizer::StreamDecoder> decoder = tokenizer_->NewStreamDecoder();
    std::string text;
    for (int32_t token : g.greedy) text += decoder->Push(token);
    EXPECT_EQ(stream.text, text + decoder->Flush());
    EXPECT_THAT(stream.text, testing::HasSubstr(" "));
  }
}

TEST_F(Stories260kEngineTest, AReusedPrefixGivesTheSameTokens) {
  auto engine = Start({});
  for (int round = 0; round < 3; ++round) {
    for (const Golden& g : goldens_) {
      StreamRecorder recorder;
      ASSERT_OK(engine->Submit(Continue(g, 40), recorder.NewSink()));
      const auto stream = recorder.WaitForAll()[0];
      EXPECT_EQ(stream.tokens, Rest(g, 40));
      EXPECT_EQ(stream.end.usage.cached_tokens > 0, round > 0);
    }
  }
}

// Every linear in a8_mix, with a static range so narrow that decode steps see other inputs than
// prefill does.
std::shared_ptr<const Model> MixedPhases() {
  const auto checkpoint =
      OpenCheckpoint(GoldenPath("../../data/stories260k/stories260K-f32.gguf")).value();
  const ModelFamily* family = FamilyOf(*checkpoint).value();
  const ModelSpec spec = family->parse(*checkpoint).value();
  LinearMap linears;
  for (const LinearSlot& slot : family->slots(spec)) {
    QuantizedTensor w =
        Int8ChannelScheme().Encode(ReadSlotWeight(*checkpoint, slot)->view()).value();
    const bool table = slot.kind == LinearSlot::Kind::kEmbedding;
    const ActivationMode mode = table ? ActivationMode::kA16 : ActivationMode::kA8Mix;
    EXPECT_OK(WriteActivationParams({.scale = 0.004f}, mode, w));
    linears[slot.name] = std::make_shared<const QuantizedLinear>(
        *QuantizedLinear::Create(w, Tensor(), {.activation = mode}));
  }
  return family->build(spec, *checkpoint, std::move(linears)).value();
}

// What a decode step put into the cache is not what a prompt of the same tokens would: such blocks
// are nobody else's.
TEST_F(Stories260kEngineTest, DecodeStepsAreNotSharedWhereTheyDifferFromPrefill) {
  model_ = MixedPhases();
  const auto run = [](GenerateEngine& engine, const GenerateRequest& request) {
    StreamRecorder recorder;
    EXPECT_OK(engine.Submit(request, recorder.NewSink()));
    return recorder.WaitForAll()[0];
  };
  GenerateRequest first{.prompt = goldens_[0].prompt};
  first.prompt.insert(first.prompt.end(), goldens_[0].greedy.begin(),
                      goldens_[0].greedy.begin() + 30);
  first.sampling = {.max_tokens = 70, .ignore_eos = true};
  auto engine = Start({});
  const std::vector<int32_t> generated = run(*engine, first).tokens;
  GenerateRequest second = first;  // with what the first one said, as a conversation goes on
  second.prompt.insert(second.prompt.end(), generated.begin(), generated.end());
  second.sampling.max_tokens = 50;
  const auto reused = run(*engine, second);
  EXPECT_EQ(reused.end.usage.cached_tokens,
            static_cast<int>(first.prompt.size()) / KvCache::kBlockTokens * KvCache::kBlockTokens)
      << "prompts are shared all the same";
  auto fresh = Start({.prefix_cache = false});
  const auto alone = run(*fresh, second);
  EXPECT_EQ(alone.end.usage.cached_tokens, 0);
  EXPECT_EQ(reused.tokens, alone.tokens);
}

TEST_F(Stories260kEngineTest, AStopStringEndsTheStoryBeforeIt) {
  auto engine = Start({});
  StreamRecorder recorder;
  GenerateRequest request = Continue(goldens_[0], 0);
  ASSERT_OK(engine->Submit(request, recorder.NewSink()));
  const std::string whole = recorder.WaitForAll()[0].text;
  request.sampling.stop = {whole.substr(30, 4)};
  ASSERT_OK(engine->Submit(request, recorder.NewSink()));
  const auto stopped = recorder.WaitForAll()[1];
  EXPECT_EQ(stopped.end.reason, FinishReason::kStop);
  EXPECT_EQ(stopped.text, whole.substr(0, whole.find(request.sampling.stop[0])));
}

// 4-bit rows, the latest and the first in 16 bit: tokens do not depend on chunks, company,
// preemption, or on who had the slot before.
TEST_F(Stories260kEngineTest, RowsInSixteenBitAreOneSequencesOwn) {
  kv_format_ = {DType::kU4, 10, 2};
  const std::vector<size_t> given = {0, 30, 17, 55, 40, 8, 20, 3, 33};
  std::vector<std::vector<int32_t>> expected;
  for (size_t i = 0; i < given.size(); ++i) {
    auto engine = Start({});
    StreamRecorder recorder;
    ASSERT_OK(engine->Submit(Continue(goldens_[i % 3], given[i]), recorder.NewSink()));
    expected.push_back(recorder.WaitForAll()[0].tokens);
  }
  const KvPool::Layout layout = model_->kv_layout(kv_format_);
  for (const int max_step_tokens : {7, 64}) {
    // Eight at once, in blocks for little more than one.
    const size_t bytes = 8 * layout.slot_bytes() + 9 * layout.block_bytes();
    auto engine =
        Start({.max_sequences = 8, .max_step_tokens = max_step_tokens, .kv_bytes = bytes});
    StreamRecorder recorder;
    for (size_t i = 0; i < given.size(); ++i)
      ASSERT_OK(engine->Submit(Continue(goldens_[i % 3], given[i]), recorder.NewSink()));
    const auto streams = recorder.WaitForAll();
    for (size_t i = 0; i < streams.size(); ++i) {
      EXPECT_OK(streams[i].end.status);
      EXPECT_EQ(streams[i].tokens, expected[i]) << "request " << i;
      EXPECT_EQ(streams[i].end.usage.cached_tokens, 0);
    }
    EXPECT_EQ(engine->kv_bytes(), bytes);
    EXPECT_GT(metrics_->preempted, 0);
  }
}

struct Company {
  const char* name;
  int max_step_tokens, kv_blocks;
  bool prefix_cache;
};
class Stories260kCompanyTest : public Stories260kEngineTest,
                               public testing::WithParamInterface<Company> {};

TEST_P(Stories260kCompanyTest, Among32OthersEveryRequestGivesTheGoldenTokens) {
  auto engine = Start({.max_sequences = 33,
                       .max_step_tokens = GetParam().max_step_tokens,
                       .kv_bytes = kBlockBytes * GetParam().kv_blocks,
                       .prefix_cache = GetParam().prefix_cache});
  std::minstd_rand random(5);
  StreamRecorder recorder;
  std::vector<std::vector<int32_t>> expected;
  for (int i = 0; i < 33; ++i) {
    const Golden& g = goldens_[i % 3];
    const size_t given = i < 3 ? 0 : random() % 60;
    expected.push_back(Rest(g, given));
    ASSERT_OK(engine->Submit(Continue(g, given), recorder.NewSink()));
    if (i % 4 == 3) recorder.WaitForEvents(recorder.num_events() + 1 + random() % 20);
  }
  const auto streams = recorder.WaitForAll();
  for (size_t i = 0; i < streams.size(); ++i) {
    EXPECT_OK(streams[i].end.status);
    EXPECT_EQ(streams[i].tokens, expected[i]) << "request " << i;
  }
  engine->Drain();
  EXPECT_EQ(engine->load().kv_blocks_used, 0);
  if (GetParam().kv_blocks < 30 && !GetParam().prefix_cache) {
    EXPECT_GT(metrics_->preempted, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Companies, Stories260kCompanyTest,
                         testing::Values(Company{"Roomy", 512, 400, true},
                                         Company{"Chunks64", 64, 400, true},
                                         Company{"Chunks7", 7, 400, true},
                                         Company{"Chunks1", 1, 400, true},
                                         Company{"WithoutPrefixCache", 64, 400, false},
                                         Company{"Preempting", 64, 14, false}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace assay
