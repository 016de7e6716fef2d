// The bert family on a GPU, in the emulator: the real kernels and host code, held to what
// transformers computed for tiny models of every architecture (tests/golden/models/make.py), and to
// what the CPU computes with the same weights.
//
// Bounds, as a part of the length of the whole result: each product rounds both operands to 16 bit,
// attention queries, keys, values and weights too: with f16 2^-12.5 each in the middle, some 14
// times in two layers of which each adds sqrt(2) of it: 2^-12.5 sqrt(28) = 9e-4. Norms divide by
// deviations that vary, and rows of results may be short: four times that.
#include "engine/model/cuda/cuda_bert.h"

#include <future>
#include <random>

#include "engine/model/cuda/cuda_bert_weights.h"
#include "engine/runtime/engine.h"
#include "tests/engine/model/cuda/cuda_bert_fixture.h"
#include "tests/engine/model/cuda/random_bert.h"
#include "tests/support/fake_model_metrics.h"

namespace assay {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;

constexpr double kF16 = 4e-3, kBf16 = 8 * kF16;  // three bits less

const char* const kGoldens[] = {"bert_mean",         "bert_cls",        "distilbert",
                                "roberta",           "bert_classifier", "distilbert_classifier",
                                "roberta_classifier"};

class CudaBertTest : public CudaBertFixture {};

Outputs GoldenOf(const std::vector<Text>& texts) {
  Outputs outputs;
  for (const Text& text : texts) outputs.push_back(text.golden);
  return outputs;
}

std::vector<Text> RandomTexts(const std::vector<int>& lengths, const ModelSpec& spec) {
  std::mt19937 random(5);
  std::vector<Text> texts;
  for (const int length : lengths) {
    Text& text = texts.emplace_back();
    for (int i = 0; i < length; ++i) {
      text.tokens.push_back(static_cast<int32_t>(random() % static_cast<unsigned>(spec.vocab)));
      text.types.push_back(spec.type_vocab > 1 ? static_cast<int32_t>(2 * i >= length) : 0);
    }
  }
  return texts;
}

TEST_F(CudaBertTest, ReproducesTheGoldensOfEveryArchitecture) {
  for (const char* name : kGoldens) {
    SCOPED_TRACE(name);
    const auto checkpoint = OpenGolden(name);
    const auto model = Build(*checkpoint, "f32");
    const auto texts = ReadTexts(name, model->spec());
    ASSERT_EQ(texts.size(), 3u);
    const double worst = Worst(Run(*model, texts), GoldenOf(texts));
    EXPECT_LT(worst, kF16);
  }
}

TEST_F(CudaBertTest, BrainFloatsServeToo) {
  Open("sm86");
  for (const char* name : {"bert_mean", "roberta_classifier"}) {
    const auto checkpoint = OpenGolden(name);
    const auto model = Build(*checkpoint, "f32");
    const auto texts = ReadTexts(name, model->spec());
    const double worst = Worst(Run(*model, texts), GoldenOf(texts));
    EXPECT_LT(worst, kBf16) << name;
    EXPECT_GT(worst, kF16 / 8) << name;  // it is not f16
  }
}

// Where along the way from the right results to those of a model with one property changed the
// GPU's lie: 0 or 1, whatever rounding does across.
struct Sabotage {
  const char* model;
  const char* what;
  std::function<void(ModelSpec&)> apply;
  int texts = 4;  // many where the difference is no larger than what rounding does
};
const Sabotage kSabotages[] = {
    {"bert_mean", "the other pooling", [](ModelSpec& s) { s.pooling = Pooling::kCls; }},
    {"bert_mean", "no normalization", [](ModelSpec& s) { s.normalize = false; }},
    {"bert_mean", "another epsilon", [](ModelSpec& s) { s.norm_eps = 0.1f; }},
    {"bert_cls", "the other gelu", [](ModelSpec& s) { s.activation = "gelu"; }, 24},
    {"distilbert_classifier", "the other activation", [](ModelSpec& s) { s.activation = "silu"; }},
    {"roberta", "positions from 0", [](ModelSpec& s) { s.position_offset = 0; }},
};

double Along(const Outputs& from, const Outputs& to, const Outputs& x) {
  double along = 0, squares = 0;
  for (size_t i = 0; i < from.size(); ++i) {
    for (size_t j = 0; j < from[i].size(); ++j) {
      const double step = double{to[i][j]} - from[i][j];
      along += step * (double{x[i][j]} - from[i][j]);
      squares += step * step;
    }
  }
  return along / squares;
}

TEST_F(CudaBertTest, EveryPropertyOfTheSpecCounts) {
  for (const Sabotage& sabotage : kSabotages) {
    SCOPED_TRACE(std::string(sabotage.model) + ": " + sabotage.what);
    const auto checkpoint = OpenGolden(sabotage.model);
    ASSERT_OK_AND_ASSIGN(const auto right, BuildUniform(*checkpoint, "f32", {}));
    ModelSpec spec = right->spec();
    sabotage.apply(spec);
    ASSERT_OK_AND_ASSIGN(const ModelFamily* const family, FamilyOf(*checkpoint));
    ASSERT_OK_AND_ASSIGN(const auto wrong, family->build(spec, *checkpoint, right->linears()));
    ASSERT_OK_AND_ASSIGN(const auto same, TryBuild(*checkpoint, "f32"));
    ASSERT_OK_AND_ASSIGN(const auto changed,
                         TryBuild(*checkpoint, "f32", ActivationMode::kA16, sabotage.apply));
    const auto texts = RandomTexts(std::vector<int>(static_cast<size_t>(sabotage.texts), 5), spec);
    const Outputs from = Run(*right, texts), to = Run(*wrong, texts);
    const double a = Along(from, to, Run(*same, texts)), b = Along(from, to, Run(*changed, texts));
    EXPECT_NEAR(a, 0, 0.3);
    EXPECT_NEAR(b, 1, 0.3);
  }
}

struct Case {
  const char* scheme;
  ActivationMode activation = ActivationMode::kA16;
};
const Case kA8 = {"int8_channel", ActivationMode::kA8Token};
// Sizes that groups of 32 divide.
const BertSizes kGrouped = {.hidden = 64, .heads = 2, .ffn = 96};

// Few rows and many take different products.
TEST_F(CudaBertTest, AgreesWithTheCpuForEveryScheme) {
  const auto golden = OpenGolden("bert_classifier");
  const RandomBert grouped(kGrouped);
  const auto expect_same = [&](const Checkpoint& checkpoint, const Case& c) {
    SCOPED_TRACE(c.scheme);
    const auto gpu = TryBuild(checkpoint, c.scheme, c.activation);
    ASSERT_OK(gpu);
    ASSERT_OK_AND_ASSIGN(
        const auto cpu,
        BuildUniform(checkpoint, c.scheme, {.activation = c.activation, .kernel = "reference"}));
    for (const auto& lengths : {std::vector{1, 17, 30}, std::vector{40, 1, 26}}) {
      const auto texts = RandomTexts(lengths, cpu->spec());
      // What was rounded to 16 bit first may get the neighbouring code of 8 bit: 1 / 254 of the
      // row's largest, 8 times an error of 16 bit, in a few places.
      EXPECT_LT(Worst(Run(**gpu, texts), Run(*cpu, texts)),
                c.activation == ActivationMode::kA8Token ? 8 * kF16 : kF16);
    }
  };
  for (const Case& c : {Case{"bf16"}, Case{"int8_channel"}, kA8, Case{"int4_group:row"}})
    expect_same(*golden, c);
  for (const Case& c : {kA8, Case{"int8_group:g32"}, Case{"int4_group:g32"},
                        Case{"int4_group:g32,asym"}, Case{"fp8_e4m3"}, Case{"nf4"}})
    expect_same(grouped, c);
}

// Codes of 8 bits turn what was rounded to 16 first into whole steps here and there, and those
// into more in the next layer: after some layers both are off by as much, not by the same numbers.
// After one they still go together.
TEST_F(CudaBertTest, CodesOfActivationsCostWhatTheyCostOnTheCpu) {
  const RandomBert checkpoint(kGrouped);
  const auto gpu = Build(checkpoint, kA8.scheme, kA8.activation);
  const auto texts = RandomTexts({40}, gpu->spec());
  const auto on_cpu = [&](ActivationMode activation) {
    const auto cpu =
        BuildUniform(checkpoint, kA8.scheme, {.activation = activation, .kernel = "reference"});
    EXPECT_OK(cpu);
    return Run(**cpu, texts);
  };
  const auto plain = on_cpu(ActivationMode::kA16), coded = on_cpu(kA8.activation),
             got = Run(*gpu, texts);
  const double cost = Worst(got, plain), cpu_cost = Worst(coded, plain);
  EXPECT_GT(cost, cpu_cost / 2);
  EXPECT_LT(cost, cpu_cost * 2);
  EXPECT_LT(Worst(got, coded), 0.7 * cpu_cost);  // strangers would be sqrt(2) apart
}

TEST_F(CudaBertTest, AnotherSchemeIsNoticed) {
  const RandomBert checkpoint(kGrouped);
  const auto a = Build(checkpoint, "int4_group:g32"), b = Build(checkpoint, "f32");
  const auto texts = RandomTexts({20}, a->spec());
  EXPECT_GT(Worst(Run(*a, texts), Run(*b, texts)), 2 * kF16);
}

// Up to 64 rows take one kernel, more another: within either, company changes no bit.
TEST_F(CudaBertTest, ATextHasTheBitsThatItHasAlone) {
  const RandomBert checkpoint(kGrouped);
  for (const Case& c : {kA8, Case{"int4_group:g32"}, Case{"f32"}}) {
    const auto model = Build(checkpoint, c.scheme, c.activation);
    const auto texts = RandomTexts({3, 1, 33, 20, 64, 61}, model->spec());
    const auto few = Run(*model, {texts[0], texts[1], texts[2], texts[3]});
    for (size_t i = 0; i < 4; ++i)
      EXPECT_EQ(Run(*model, {texts[i]}).front(), few[i]) << c.scheme << " " << i;
    const auto all = Run(*model, texts), back = Run(*model, {texts[5], texts[4], texts[1]});
    EXPECT_EQ(back[0], all[5]) << c.scheme;
    EXPECT_EQ(back[1], all[4]) << c.scheme;
    EXPECT_EQ(back[2], all[1]) << c.scheme;
  }
}

// Sizes that are no multiple of 32 (nor, of a head, of 8), texts of more than one tile.
TEST_F(CudaBertTest, OddSizesAndLongTexts) {
  const RandomBert checkpoint({});
  const auto gpu = Build(checkpoint, "int8_channel");
  ASSERT_OK_AND_ASSIGN(const auto cpu,
                       BuildUniform(checkpoint, "int8_channel", {.kernel = "reference"}));
  for (const auto& lengths : {std::vector{150, 2, 65}, std::vector{7}}) {
    const auto texts = RandomTexts(lengths, cpu->spec());
    const double worst = Worst(Run(*gpu, texts), Run(*cpu, texts));
    EXPECT_LT(worst, kF16);
  }
}

TEST_F(CudaBertTest, WithoutTypesAllAreOfTheFirst) {
  const auto checkpoint = OpenGolden("bert_mean");
  const auto model = Build(*checkpoint, "bf16");
  auto texts = RandomTexts({9}, model->spec());
  const auto two = Run(*model, texts);
  texts[0].types.assign(9, 0);
  const auto first = Run(*model, texts);
  texts[0].types.clear();
  EXPECT_EQ(Run(*model, texts), first);
  EXPECT_NE(first, two);
}

TEST_F(CudaBertTest, BadBatchesAreNamed) {
  const auto checkpoint = OpenGolden("bert_mean");
  const auto model = Build(*checkpoint, "bf16");
  const auto refuse = [&](const Text& text, const std::string& why) {
    EXPECT_THAT(TryRun(*model, {text}).status(),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  refuse({.tokens = std::vector<int32_t>(65, 1), .types = {}, .golden = {}}, "max_context=64");
  refuse({.tokens = {96}, .types = {}, .golden = {}}, "vocab=96");
  refuse({.tokens = {1, 2}, .types = {0, 2}, .golden = {}}, "type=2");
}

TEST_F(CudaBertTest, ObserversAndPartsAreTheCpus) {
  const auto checkpoint = OpenGolden("bert_mean");
  const auto model = Build(*checkpoint, "bf16");
  ASSERT_OK_AND_ASSIGN(ModelPass pass,
                       ModelPass::Create(*model, {.rows = 2, .out_rows = 1}, pool_));
  const std::vector<int32_t> tokens = {1, 2};
  const ModelPass::Span span{.tokens = tokens};
  const LinearObserver observer = [](const LinearSlot&, TensorView, TensorView) {};
  EXPECT_THAT(pass.Forward(std::span(&span, 1), true, &observer).status(),
              StatusIs(StatusCode::kUnimplemented));
  const LayerPart part = {0, 1, {}};
  EXPECT_THAT(pass.Forward(std::span(&span, 1), true, nullptr, &part).status(),
              StatusIs(StatusCode::kUnimplemented));
  EXPECT_OK(pass.Forward(std::span(&span, 1)));
}

TEST_F(CudaBertTest, SmallScratchIsAnError) {
  const auto checkpoint = OpenGolden("bert_mean");
  const auto model = Build(*checkpoint, "bf16");
  ASSERT_OK_AND_ASSIGN(ModelPass pass,
                       ModelPass::Create(*model, {.rows = 2, .out_rows = 1}, pool_));
  const std::vector<int32_t> tokens(60, 1);
  const ModelPass::Span span{.tokens = tokens};
  EXPECT_THAT(pass.Forward(std::span(&span, 1)).status(),
              StatusIs(StatusCode::kInternal, HasSubstr("scratch is too small")));
}

TEST_F(CudaBertTest, SizesThatKernelsRefuseAreNamed) {
  const auto takes = [&](const BertSizes& sizes) -> absl::Status {
    const RandomBert checkpoint(sizes);
    ASSIGN_OR_RETURN(const ModelFamily* const family, FamilyOf(checkpoint));
    ASSIGN_OR_RETURN(const ModelSpec spec, family->parse(checkpoint));
    return backend_->Takes(spec);
  };
  EXPECT_OK(takes({}));
  EXPECT_THAT(takes({.hidden = 42}), StatusIs(StatusCode::kUnimplemented, HasSubstr("=42")));
  EXPECT_THAT(takes({.ffn = 73}), StatusIs(StatusCode::kUnimplemented, HasSubstr("=73")));
  EXPECT_THAT(takes({.hidden = 12, .heads = 4}),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("heads=4")));
  ModelSpec other;
  other.family = "mamba";
  EXPECT_THAT(backend_->Takes(other), StatusIs(StatusCode::kUnimplemented,
                                               HasSubstr("family=mamba supported=llama, bert")));
}

TEST_F(CudaBertTest, ServesThroughTheEngine) {
  const auto checkpoint = OpenGolden("roberta_classifier");
  const auto model = Build(*checkpoint, "f32");
  const auto texts = ReadTexts("roberta_classifier", model->spec());
  const EngineOptions options = {.max_sequences = 4, .max_batch_tokens = 100};
  const size_t before = backend_->device().allocated_bytes();
  auto engine = EncodeEngine::Start(model, options,
                                    {pool_, RealClock(), std::make_shared<FakeModelMetrics>()});
  ASSERT_OK(engine);
  // Scratch lies where the model does.
  EXPECT_GE(backend_->device().allocated_bytes() - before, model->scratch_bytes(100, 4, 64));
  std::vector<std::promise<EncodeResult>> results(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    ASSERT_OK((*engine)->Submit(
        {.tokens = texts[i].tokens, .token_types = texts[i].types},
        [&, i](EncodeResult&& result) { results[i].set_value(std::move(result)); }));
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    const EncodeResult result = results[i].get_future().get();
    ASSERT_OK(result.status);
    EXPECT_LT(Distance(result.values, texts[i].golden), kF16) << i;
  }
  EXPECT_THAT((*engine)->Submit({.tokens = std::vector<int32_t>(65, 1)}, [](EncodeResult&&) {}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("tokens=65 context=64")));
  engine->reset();
  EXPECT_EQ(backend_->device().allocated_bytes(), before);
}

}  // namespace
}  // namespace assay
