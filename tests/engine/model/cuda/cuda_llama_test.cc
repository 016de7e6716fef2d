// The llama family on a GPU, in the emulator: the real kernels, host code, graphs and memory plan,
// on the bundled model, held to the tokens that data/stories260k/reference.py computed in float64
// and to what the CPU computes with the same weights.
#include "engine/model/cuda/cuda_llama.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/thread_pool.h"
#include "engine/lifecycle/model_pass.h"
#include "engine/model/checkpoint.h"
#include "engine/model/families/llama_spec.h"
#include "engine/runtime/engine.h"
#include "quant/kernels/cuda/cuda_kernel.h"
#include "tests/quant/kernels/cuda/fake_cublas_lt.h"
#include "tests/support/fake_model_metrics.h"
#include "tests/support/golden.h"
#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"
#include "tests/support/stream_recorder.h"

namespace assay {
namespace {

using ::testing::HasSubstr;

struct Golden {
  std::vector<int32_t> prompt, greedy;
};

class CudaLlamaTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(checkpoint_,
                         OpenCheckpoint(GoldenPath("../../data/stories260k/stories260K-f32.gguf")));
    ASSERT_OK_AND_ASSIGN(device_, CudaDevice::Open(EmulatedCuda(), 0));
    ASSERT_OK_AND_ASSIGN(tokenizer_, MakeTokenizer(checkpoint_->tokenizer()));
    ResetFakeCublasLt(FAKE_CUBLAS_LT).enqueue = [](std::function<void()> work) {
      emulated::Enqueue(std::move(work));
    };
    for (const nlohmann::json& g : ReadGoldenJson("../../data/stories260k/golden.json"))
      goldens_.push_back({g["prompt_ids"], g["greedy_ids"]});
    ASSERT_EQ(goldens_.size(), 3u);
  }
  // Every layer in one scheme. The table is read, not multiplied: a16.
  absl::StatusOr<std::shared_ptr<const Model>> TryBuild(std::string_view spelling,
                                                        ActivationMode activation,
                                                        const CudaModelOptions& options) {
    const CudaBackend backend = {*device_, EmulatedLinearKernels(), half_, lt_.get()};
    kernels_.push_back(std::make_unique<CudaLinearKernel>("cuda", backend));
    ASSIGN_OR_RETURN(const QuantScheme* const scheme, FindScheme(spelling));
    ASSIGN_OR_RETURN(const ModelFamily* const family, FamilyOf(*checkpoint_));
    ASSIGN_OR_RETURN(const ModelSpec spec, family->parse(*checkpoint_));
    LinearMap linears;
    for (const LinearSlot& slot : family->slots(spec)) {
      ASSIGN_OR_RETURN(const Tensor weight, ReadSlotWeight(*checkpoint_, slot));
      ASSIGN_OR_RETURN(const QuantizedTensor w, scheme->Encode(weight.view()));
      const bool table = slot.kind == LinearSlot::Kind::kEmbedding;
      ASSIGN_OR_RETURN(QuantizedLinear linear,
                       MakeCudaQuantizedLinear(*kernels_.back(), w, Tensor(),
                                               table ? ActivationMode::kA16 : activation));
      linears[slot.name] = std::make_shared<const QuantizedLinear>(std::move(linear));
    }
    ASSIGN_OR_RETURN(std::unique_ptr<const Model> model,
                     BuildCudaLlama(backend, EmulatedOpsKernels(), spec, *checkpoint_,
                                    std::move(linears), options));
    return std::shared_ptr<const Model>(std::move(model));
  }
  std::shared_ptr<const Model> Build(std::string_view spelling,
                                     ActivationMode activation = ActivationMode::kA16,
                                     const CudaModelOptions& options = {.decode_splits = 2}) {
    auto model = TryBuild(spelling, activation, options);
    EXPECT_OK(model);
    return *std::move(model);
  }
  // cuBLASLt, on the CPU, for what is built from now on.
  void UseLt() {
    ASSERT_OK_AND_ASSIGN(auto library, CublasLt::Load(FAKE_CUBLAS_LT));
    LtOptions timed_by_a_constant;
    timed_by_a_constant.timer = [](const LtAlgorithm&, const auto&) { return 1.0; };
    ASSERT_OK_AND_ASSIGN(lt_,
                         LtProducts::Create(*device_, std::move(library), timed_by_a_constant));
  }
  std::unique_ptr<GenerateEngine> Start(std::shared_ptr<const Model> model) {
    EngineOptions options;
    options.kv_format = kv_format_;
    options.max_step_tokens = 48;
    options.max_sequences = 4;
    options.max_context = 256;
    auto engine = GenerateEngine::Start(std::move(model), tokenizer_, options,
                                        {pool_, RealClock(), std::make_shared<FakeModelMetrics>()});
    EXPECT_OK(engine);
    return *std::move(engine);
  }
  std::vector<int32_t> LongPrompt() const {
    std::vector<int32_t> tokens;
    for (const Golden& g : goldens_) tokens.insert(tokens.end(), g.greedy.begin(), g.greedy.end());
    tokens.resize(90);
    return tokens;
  }
  // Logits after each token of `tokens`, as one prompt cut into `chunk` rows.
  std::vector<float> Logits(const Model& model, std::span<const int32_t> tokens, int num_prompt,
                            int chunk) {
    auto pass = ModelPass::Create(model,
                                  {.sequences = 1,
                                   .context = static_cast<int>(tokens.size()),
                                   .rows = chunk,
                                   .out_rows = chunk,
                                   .kv_format = kv_format_},
                                  pool_);
    EXPECT_OK(pass.status());
    std::vector<float> all;
    for (size_t at = 0; at < tokens.size(); at += static_cast<size_t>(chunk)) {
      const auto part =
          tokens.subspan(at, std::min(tokens.size() - at, static_cast<size_t>(chunk)));
      const ModelPass::Span span{0, static_cast<int32_t>(at), part, num_prompt};
      const auto logits = pass->Forward(std::span(&span, 1), true, nullptr);
      EXPECT_OK(logits.status());
      if (!logits.ok()) return all;
      all.insert(all.end(), logits->begin(), logits->end());
    }
    return all;
  }

  Half half_ = Half::kF16;
  KvFormat kv_format_ = DType::kF16;
  ThreadPool pool_{{.num_threads = 2}};
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<LtProducts> lt_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<std::unique_ptr<CudaLinearKernel>> kernels_;
  std::vector<Golden> goldens_;
};

// Mean KL of `other` from `exact`, both [rows, vocab].
double MeanKl(std::span<const float> exact, std::span<const float> other, size_t vocab) {
  double total = 0;
  for (size_t row = 0; row < exact.size(); row += vocab) {
    double max_a = -1e30, max_b = -1e30, sum_a = 0, sum_b = 0, kl = 0;
    for (size_t i = 0; i < vocab; ++i) {
      max_a = std::max(max_a, static_cast<double>(exact[row + i]));
      max_b = std::max(max_b, static_cast<double>(other[row + i]));
    }
    for (size_t i = 0; i < vocab; ++i) {
      sum_a += std::exp(exact[row + i] - max_a);
      sum_b += std::exp(other[row + i] - max_b);
    }
    for (size_t i = 0; i < vocab; ++i) {
      const double a = exact[row + i] - max_a - std::log(sum_a);
      kl += std::exp(a) * (a - (other[row + i] - max_b - std::log(sum_b)));
    }
    total += kl;
  }
  return total * static_cast<double>(vocab) / static_cast<double>(exact.size());
}

TEST_F(CudaLlamaTest, ReproducesTheGoldenTokensThroughTheEngine) {
  const auto engine = Start(Build("f32"));
  StreamRecorder recorder;
  for (const Golden& g : goldens_) {
    GenerateRequest request{.prompt = g.prompt};
    request.sampling.max_tokens = static_cast<int>(g.greedy.size());
    request.sampling.ignore_eos = true;
    ASSERT_OK(engine->Submit(std::move(request), recorder.NewSink()));
  }
  const auto streams = recorder.WaitForAll();
  for (size_t i = 0; i < goldens_.size(); ++i) {
    EXPECT_OK(streams[i].end.status);
    EXPECT_EQ(streams[i].tokens, goldens_[i].greedy) << "golden " << i;
  }
}

// The token that the device picks, and its logprob, are those that the host's sampler finds in the
// logits; both in one batch, some rows of which leave the device and some do not.
TEST_F(CudaLlamaTest, TheDevicePicksWhatTheHostWould) {
  const auto engine = Start(Build("int8_channel"));
  StreamRecorder recorder;
  for (const int alternatives : {0, 1, 0, -1}) {
    GenerateRequest request{.prompt = goldens_[2].prompt};
    request.sampling.max_tokens = 12;
    request.sampling.ignore_eos = true;
    request.sampling.logprobs = alternatives;
    ASSERT_OK(engine->Submit(std::move(request), recorder.NewSink()));
  }
  const auto streams = recorder.WaitForAll();
  const auto& host = streams[1];
  ASSERT_EQ(host.events.size(), 12u);
  for (const size_t device : {0, 2, 3}) {
    EXPECT_EQ(streams[device].tokens, host.tokens);
    for (size_t i = 0; i < host.events.size(); ++i) {
      const float expected = device == 3 ? 0 : host.events[i].logprob;
      EXPECT_NEAR(streams[device].events[i].logprob, expected, 2e-5) << i;  // 1e-5 each
    }
  }
}

struct Case {
  const char* scheme;
  ActivationMode activation;
};

// The same weights on the CPU, activations in f32 there, in 16 bit here. Bound: 16-bit operands
// (2^-11 relative each) move logits by less than 0.02; KL of that is about its square / 2.
TEST_F(CudaLlamaTest, AgreesWithTheCpuForEveryScheme) {
  const std::vector<int32_t> tokens = [&] {
    std::vector<int32_t> all = goldens_[0].prompt;
    all.insert(all.end(), goldens_[0].greedy.begin(), goldens_[0].greedy.begin() + 24);
    return all;
  }();
  const auto vocab = static_cast<size_t>(512);
  for (const Case& c :
       {Case{"bf16", ActivationMode::kA16}, Case{"int8_channel", ActivationMode::kA16},
        Case{"int8_channel", ActivationMode::kA8Token},
        Case{"int8_group:g32", ActivationMode::kA16}, Case{"int4_group:g32", ActivationMode::kA16},
        Case{"int4_group:g32,asym", ActivationMode::kA16}, Case{"fp8_e4m3", ActivationMode::kA16},
        Case{"nf4", ActivationMode::kA16}}) {
    const auto gpu = TryBuild(c.scheme, c.activation, {.decode_splits = 2});
    ASSERT_OK(gpu) << c.scheme;
    ASSERT_OK_AND_ASSIGN(
        const auto cpu,
        BuildUniform(*checkpoint_, c.scheme, {.activation = c.activation, .kernel = "reference"}));
    for (const int chunk : {17, 64}) {
      const auto got = Logits(**gpu, tokens, static_cast<int>(goldens_[0].prompt.size()), chunk);
      const auto exact = Logits(*cpu, tokens, static_cast<int>(goldens_[0].prompt.size()), chunk);
      ASSERT_EQ(got.size(), exact.size());
      // What was rounded to 16 bit first may get the neighbouring code of 8 bit: an error of 1 /
      // 254 of the row's largest, 8 times that of 16 bit, in a few places of each row.
      const double most = c.activation == ActivationMode::kA8Token ? 2e-3 : 2e-4;
      EXPECT_LT(MeanKl(exact, got, vocab), most) << c.scheme << " chunk " << chunk;
    }
  }
}

// Steps of more than 64 rows by cuBLASLt; bounds as above.
TEST_F(CudaLlamaTest, LongStepsByCublasLtAgreeWithTheCpu) {
  UseLt();
  const std::vector<int32_t> tokens = LongPrompt();
  const FakeCublasLt& fake = FakeOf(FAKE_CUBLAS_LT);
  for (const char* scheme : {"int8_channel", "bf16"}) {
    const auto gpu = Build(scheme);
    ASSERT_OK_AND_ASSIGN(const auto cpu,
                         BuildUniform(*checkpoint_, scheme, {.kernel = "reference"}));
    const int before = fake.products;
    const auto got = Logits(*gpu, tokens, 1000, 90);
    EXPECT_EQ(fake.products - before, 4 * gpu->spec().layers + 1);  // the head's
    EXPECT_LT(MeanKl(Logits(*cpu, tokens, 1000, 90), got, 512), 2e-4) << scheme;
  }
}

// In FP8 the CPU quantizes all rows, the GPU those of steps of more than 64. From layer to layer
// codes differ in more places, as what is rounded does by 2^-11: in the end both are off the same
// way, not by the same numbers. So each is compared with activations that are not quantized.
TEST_F(CudaLlamaTest, Fp8CostsOnLongStepsWhatItCostsOnTheCpu) {
  UseLt();
  const std::vector<int32_t> tokens = LongPrompt();
  const FakeCublasLt& fake = FakeOf(FAKE_CUBLAS_LT);
  const auto gpu = Build("fp8_e4m3", ActivationMode::kFp8Token);
  const auto on_cpu = [&](ActivationMode activation) {
    const auto cpu =
        BuildUniform(*checkpoint_, "fp8_e4m3", {.activation = activation, .kernel = "reference"});
    EXPECT_OK(cpu.status());
    return Logits(**cpu, tokens, 1000, 90);
  };
  const auto plain = on_cpu(ActivationMode::kA16), coded = on_cpu(ActivationMode::kFp8Token);
  EXPECT_LT(MeanKl(plain, Logits(*gpu, tokens, 1000, 30), 512), 2e-4);
  EXPECT_EQ(fake.products, 0);
  const auto got = Logits(*gpu, tokens, 1000, 90);
  EXPECT_EQ(fake.scaled_products, 4 * gpu->spec().layers);
  const double cost = MeanKl(plain, got, 512), cpu_cost = MeanKl(plain, coded, 512);
  EXPECT_GT(cost, cpu_cost / 2);
  EXPECT_LT(cost, cpu_cost * 2);
  EXPECT_LT(MeanKl(coded, got, 512), 2 * (cost + cpu_cost));
}

// Rows of scales come in fours, and steps are filled up to that: the last row of an odd step gets
// the bits that it has in company.
TEST_F(CudaLlamaTest, OddStepsAreMultipliedLikeOthers) {
  UseLt();
  const FakeCublasLt& fake = FakeOf(FAKE_CUBLAS_LT);
  const auto gpu = Build("fp8_e4m3:block", ActivationMode::kFp8Block);
  const std::vector<int32_t> tokens = LongPrompt();
  const auto odd = Logits(*gpu, std::span(tokens).first(67), 1000, 90);
  EXPECT_EQ(fake.last_m, 68);
  EXPECT_EQ(fake.scaled_products, 4 * gpu->spec().layers);
  const auto even = Logits(*gpu, std::span(tokens).first(88), 1000, 90);
  EXPECT_EQ(odd,
            std::vector<float>(even.begin(), even.begin() + static_cast<ptrdiff_t>(odd.size())));
}

TEST_F(CudaLlamaTest, AGraphOfCublasLtGivesTheBitsOfEagerSteps) {
  UseLt();
  const auto graph = Build("fp8_e4m3", ActivationMode::kFp8Token),
             eager = Build("fp8_e4m3", ActivationMode::kFp8Token,
                           {.max_graph_rows = 0, .decode_splits = 2});
  const FakeCublasLt& fake = FakeOf(FAKE_CUBLAS_LT);
  const std::vector<int32_t> tokens = LongPrompt();
  // Three steps of 70 decode rows, each of a sequence of its own: the second is captured.
  const auto steps = [&](const Model& model) {
    auto pass = ModelPass::Create(
        model, {.sequences = 70, .context = 4, .rows = 70, .out_rows = 70, .kv_format = kv_format_},
        pool_);
    EXPECT_OK(pass.status());
    std::vector<float> all;
    for (int32_t step = 0; step < 3; ++step) {
      std::vector<ModelPass::Span> spans;
      for (int i = 0; i < 70; ++i)
        spans.push_back({i, step, std::span(tokens).subspan(static_cast<size_t>(i + step), 1), 0});
      const auto logits = pass->Forward(spans, true, nullptr);
      EXPECT_OK(logits.status());
      if (logits.ok()) all.insert(all.end(), logits->begin(), logits->end());
    }
    return all;
  };
  const auto exact = steps(*eager);
  const int eager_products = fake.products;
  EXPECT_GT(fake.scaled_products, 0);
  EXPECT_EQ(steps(*graph), exact);
  // The graph's launches do not call the library: once as it is, once captured.
  EXPECT_EQ(3 * (fake.products - eager_products), 2 * eager_products);
}

TEST_F(CudaLlamaTest, AnotherModelIsNoticed) {
  const auto a = Build("int4_group:g32"), b = Build("f32");
  const auto& tokens = goldens_[1].prompt;
  const auto x = Logits(*a, tokens, 100, 64), y = Logits(*b, tokens, 100, 64);
  EXPECT_GT(MeanKl(y, x, 512), 2e-4);  // what the bound above would catch
}

TEST_F(CudaLlamaTest, AGraphGivesTheBitsOfEagerSteps) {
  const auto graph = Build("int8_channel"),
             eager = Build("int8_channel", ActivationMode::kA16,
                           {.max_graph_rows = 0, .decode_splits = 2});
  std::vector<int32_t> tokens = goldens_[0].prompt;
  tokens.insert(tokens.end(), goldens_[0].greedy.begin(), goldens_[0].greedy.begin() + 12);
  // Decode steps of one row each: the second of them is captured, the others are launched.
  EXPECT_EQ(Logits(*graph, tokens, 1, 1), Logits(*eager, tokens, 1, 1));
}

TEST_F(CudaLlamaTest, PrefillDoesNotDependOnItsChunks) {
  const auto model = Build("int8_channel");
  const std::vector<int32_t>& tokens = goldens_[2].prompt;
  const auto whole = Logits(*model, tokens, 1000, 64);
  EXPECT_EQ(Logits(*model, tokens, 1000, 3), whole);
}

TEST_F(CudaLlamaTest, EightBitKeysAndValuesStayClose) {
  const auto model = Build("bf16");
  std::vector<int32_t> tokens = goldens_[0].prompt;
  tokens.insert(tokens.end(), goldens_[0].greedy.begin(), goldens_[0].greedy.begin() + 20);
  const auto exact = Logits(*model, tokens, 4, 1);
  kv_format_ = DType::kI8;
  const auto coded = Logits(*model, tokens, 4, 1);
  const double kl = MeanKl(exact, coded, 512);
  EXPECT_LT(kl, 0.02);
  // 3 bits of mantissa instead of 7: 16 times the error of the largest, less of others. That scales
  // and codes are used as they are written is decode_attention_test's.
  kv_format_ = DType::kF8E4M3;
  const double floating = MeanKl(exact, Logits(*model, tokens, 4, 8), 512);
  EXPECT_LT(floating, 0.1);
  EXPECT_GT(floating, kl);
  kv_format_ = DType::kI8;
  EXPECT_GT(kl, 1e-9);  // they are in use
  ASSERT_OK_AND_ASSIGN(const auto cpu, BuildUniform(*checkpoint_, "bf16", {.kernel = "reference"}));
  EXPECT_LT(MeanKl(Logits(*cpu, tokens, 4, 1), coded, 512), 0.002);  // the CPU's codes are the same
}

TEST_F(CudaLlamaTest, BrainFloatsServeToo) {
  half_ = Half::kBf16;
  const auto gpu = Build("int8_channel");
  ASSERT_OK_AND_ASSIGN(const auto cpu,
                       BuildUniform(*checkpoint_, "int8_channel", {.kernel = "reference"}));
  const auto& tokens = goldens_[1].prompt;
  // 8 bits of mantissa: 8 times the error of f16, 64 times the KL.
  EXPECT_LT(MeanKl(Logits(*cpu, tokens, 100, 64), Logits(*gpu, tokens, 100, 64), 512), 0.01);
}

// What a weight has besides its codes would be left out silently.
TEST_F(CudaLlamaTest, RefusesWeightsThatNeedMoreThanTheirCodes) {
  const CudaLinearKernel kernel("cuda", {*device_, EmulatedLinearKernels(), half_});
  ASSERT_OK_AND_ASSIGN(const QuantScheme* const scheme, FindScheme("int8_channel"));
  ASSERT_OK_AND_ASSIGN(QuantizedTensor w, scheme->Encode(RandomTensor({8, 64}, 1).view()));
  EXPECT_OK(MakeCudaQuantizedLinear(kernel, w, Tensor(), ActivationMode::kA16));
  w.extra["rotation_signs"] = RandomTensor({64}, 2);
  EXPECT_THAT(MakeCudaQuantizedLinear(kernel, w, Tensor(), ActivationMode::kA16).status(),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("rotation_signs")));
}

TEST_F(CudaLlamaTest, RefusesWhatItCannotDo) {
  EXPECT_THAT(TryBuild("mxfp4", ActivationMode::kA16, {}).status(),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("mxfp4")));
  EXPECT_THAT(TryBuild("int8_channel", ActivationMode::kA4Token, {}).status(),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("a4_token")));
  EXPECT_THAT(TryBuild("int4_group:g32", ActivationMode::kA8Token, {}).status(),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("int8_channel")));
  EXPECT_THAT(TryBuild("int4_group:g32", ActivationMode::kFp8Token, {}).status(),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("fp8_e4m3")));
}

}  // namespace
}  // namespace assay
