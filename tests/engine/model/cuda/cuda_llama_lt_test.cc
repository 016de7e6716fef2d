// The llama family with products by cuBLASLt, which is the library of fake_cublas_lt.cc: in the
// emulator alone. Bounds as in cuda_llama_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/model/cuda/cuda_llama_testing.h"
#include "tests/quant/kernels/cuda/fake_cublas_lt.h"

namespace assay {
namespace {

class CudaLlamaLtTest : public CudaLlamaTest {
 protected:
  void SetUp() override {
    CudaLlamaTest::SetUp();
    ResetFakeCublasLt(FAKE_CUBLAS_LT).enqueue = [](std::function<void()> work) {
      emulated::Enqueue(std::move(work));
    };
    ASSERT_OK_AND_ASSIGN(auto library, CublasLt::Load(FAKE_CUBLAS_LT));
    LtOptions timed_by_a_constant;
    timed_by_a_constant.timer = [](const LtAlgorithm&, const auto&) { return 1.0; };
    ASSERT_OK_AND_ASSIGN(lt_,
                         LtProducts::Create(*device_, std::move(library), timed_by_a_constant));
  }
};

// Steps of more than 64 rows by cuBLASLt; bounds as above.
TEST_F(CudaLlamaLtTest, LongStepsByCublasLtAgreeWithTheCpu) {
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
TEST_F(CudaLlamaLtTest, Fp8CostsOnLongStepsWhatItCostsOnTheCpu) {
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
TEST_F(CudaLlamaLtTest, OddStepsAreMultipliedLikeOthers) {
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

TEST_F(CudaLlamaLtTest, AGraphOfCublasLtGivesTheBitsOfEagerSteps) {
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

}  // namespace
}  // namespace assay
