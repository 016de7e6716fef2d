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
