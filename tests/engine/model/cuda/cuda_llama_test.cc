// The llama family on a GPU (tests/support/cuda_world.h): kernels, host code, graphs and memory
// plan, on the bundled model, held to the tokens that data/stories260k/reference.py computed in
// float64 and to what the CPU computes with the same weights.
#include "engine/model/cuda/cuda_llama.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/model/cuda/cuda_llama_testing.h"
#include "tests/support/random_tensor.h"

namespace assay {
namespace {

using ::testing::HasSubstr;

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

// A model whose rows all leave the device: what the host's sampler alone makes of them.
class WholeRows final : public Model {
 public:
  explicit WholeRows(std::shared_ptr<const Model> model) : model_(std::move(model)) {}
  const ModelSpec& spec() const override { return model_->spec(); }
  const std::vector<LinearSlot>& slots() const override { return model_->slots(); }
  const LinearMap& linears() const override { return model_->linears(); }
  Device& device() const override { return model_->device(); }
  size_t other_weight_bytes() const override { return model_->other_weight_bytes(); }
  size_t scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context) const override {
    return model_->scratch_bytes(rows, logit_rows, context);
  }
  absl::Status Forward(const ForwardArgs& args, ComputeContext& context) const override {
    ForwardArgs without = args;
    without.candidates = {};
    return model_->Forward(without, context);
  }

 private:
  const std::shared_ptr<const Model> model_;
};

// Of kinds that candidates decide, always or as a rule, and of some that they cannot.
std::vector<SamplingParams> ManyKinds() {
  return {{},
          {.logprobs = -1},
          {.logprobs = 3},
          {.temperature = 0.7f, .top_p = 0.9f},
          {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f, .logprobs = 2},
          {.temperature = 1.2f, .top_k = 40, .min_p = 0.02f},
          {.temperature = 1, .min_p = 0.1f},
          {.temperature = 0.8f, .top_k = 10, .repetition_penalty = 1.2f},
          {.temperature = 50, .top_p = 0.99f},  // asks for candidates, needs the row
          {.temperature = 1},
          {.temperature = 1, .top_p = 0.9f, .presence_penalty = -0.5f}};
}

// Tokens and logprobs are those of the host's sampler over whole rows, bit for bit, whatever is in
// the same step, graphs or not.
TEST_F(CudaLlamaTest, CandidatesGiveWhatWholeRowsGive) {
  constexpr int kTokens = 8;
  const std::shared_ptr<const Model> model = Build("int8_channel");
  std::vector<std::vector<StreamRecorder::Stream>> runs;
  for (const auto& of : {model, std::shared_ptr<const Model>(new WholeRows(model))}) {
    const auto engine = Start(of);
    StreamRecorder recorder;
    uint64_t seed = 40;
    for (const SamplingParams& params : ManyKinds()) {
      GenerateRequest request{.prompt = goldens_[seed % 3].prompt, .sampling = params};
      request.sampling.max_tokens = kTokens;
      request.sampling.ignore_eos = true;
      request.sampling.seed = seed++;
      ASSERT_OK(engine->Submit(std::move(request), recorder.NewSink()));
    }
    runs.push_back(recorder.WaitForAll());
    const int tokens = kTokens * static_cast<int>(ManyKinds().size());
    EXPECT_EQ(metrics_->sampled_from_candidates + metrics_->sampled_from_rows, tokens);
    if (of != model) {
      EXPECT_EQ(metrics_->sampled_from_candidates, 0);
    } else {
      EXPECT_GT(metrics_->sampled_from_candidates, 7 * kTokens);  // of the first eight, nearly all
      EXPECT_GE(metrics_->sampled_from_rows, 3 * kTokens);        // the last three
    }
  }
  for (size_t i = 0; i < runs[0].size(); ++i) {
    EXPECT_OK(runs[0][i].end.status);
    EXPECT_EQ(runs[0][i].tokens, runs[1][i].tokens) << i;
    for (size_t t = 0; t < runs[0][i].events.size(); ++t) {
      EXPECT_EQ(runs[0][i].events[t].logprob, runs[1][i].events[t].logprob) << i << " " << t;
      EXPECT_EQ(runs[0][i].events[t].top, runs[1][i].events[t].top) << i << " " << t;
    }
  }
}

// What candidates are for: not one row of such requests leaves the device.
TEST_F(CudaLlamaTest, RowsOfChatsStayOnTheDevice) {
  const auto engine = Start(Build("int8_channel"));
  StreamRecorder recorder;
  for (const SamplingParams& params :
       {SamplingParams{}, SamplingParams{.temperature = 0.7f, .top_p = 0.9f},
        SamplingParams{.temperature = 0.7f, .top_k = 20, .top_p = 0.8f, .logprobs = 5}}) {
    GenerateRequest request{.prompt = goldens_[1].prompt, .sampling = params};
    request.sampling.max_tokens = 12;
    request.sampling.ignore_eos = true;
    ASSERT_OK(engine->Submit(std::move(request), recorder.NewSink()));
  }
  for (const auto& stream : recorder.WaitForAll()) EXPECT_OK(stream.end.status);
  EXPECT_EQ(metrics_->sampled_from_candidates, 3 * 12);
  EXPECT_EQ(metrics_->sampled_from_rows, 0);
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

// The library itself, where it and a device are there; the emulated device has none. FP8 is
// compared with weights and activations that the CPU quantizes: codes differ in places
// (cuda_llama_lt_test.cc says why), by less than they cost.
TEST_F(CudaLlamaTest, LongStepsByTheDevicesCublasLtAgreeWithTheCpu) {
  half_ = WorldTakes(Half::kBf16) ? Half::kBf16 : Half::kF16;
  ASSERT_OK_AND_ASSIGN(lt_, LtProducts::Open(*device_, "", {}));
  if (lt_ == nullptr) GTEST_SKIP() << "SKIPPED: no cuBLASLt for this device";
  const std::vector<int32_t> tokens = LongPrompt();
  for (const Case& c :
       {Case{"int8_channel", ActivationMode::kA16}, Case{"fp8_e4m3", ActivationMode::kFp8Token},
        Case{"fp8_e4m3:block", ActivationMode::kFp8Block}}) {
    const auto gpu = Build(c.scheme, c.activation);
    ASSERT_OK_AND_ASSIGN(
        const auto cpu,
        BuildUniform(*checkpoint_, c.scheme, {.activation = c.activation, .kernel = "reference"}));
    const auto exact = Logits(*cpu, tokens, 1000, 90);
    EXPECT_LT(MeanKl(exact, Logits(*gpu, tokens, 1000, 90), 512), 0.02) << c.scheme;
  }
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

// A race between kernels would show now and then: on a device many times.
TEST_F(CudaLlamaTest, StepsGiveTheSameBitsAgainAndWithKernelsThatBeginEarly) {
  const auto plain = Build("int4_group:g32"), early = Build("int4_group:g32", ActivationMode::kA16,
                                                            {.decode_splits = 2, .pdl = true});
  std::vector<int32_t> tokens = goldens_[0].prompt;
  tokens.insert(tokens.end(), goldens_[0].greedy.begin(), goldens_[0].greedy.begin() + 6);
  const auto prompt = static_cast<int>(goldens_[0].prompt.size());
  const auto expected = Logits(*plain, tokens, prompt, 5);
  for (int i = 0; i < WorldRepeats(); ++i) {
    ASSERT_EQ(Logits(*plain, tokens, prompt, 5), expected) << i;
    ASSERT_EQ(Logits(*early, tokens, prompt, 5), expected) << i;
  }
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
  if (!WorldTakes(Half::kBf16)) GTEST_SKIP() << kNoBf16;
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
  const CudaLinearKernel kernel("cuda", {*device_, kLinearKernels, half_});
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
