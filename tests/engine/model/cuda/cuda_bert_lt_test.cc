// Encoders whose batches of more than 64 rows are multiplied by cuBLASLt, a CPU's stand-in of it.
#include "engine/model/cuda/cuda_bert.h"
#include "quant/kernels/cuda/cuda_kernel.h"
#include "tests/engine/model/cuda/cuda_bert_fixture.h"
#include "tests/engine/model/cuda/random_bert.h"
#include "tests/quant/kernels/cuda/fake_cublas_lt.h"

namespace assay {
namespace {

class CudaBertLtTest : public CudaBertFixture {
 protected:
  void SetUp() override {
    Open("");  // compute capability 9.0
    ResetFakeCublasLt(FAKE_CUBLAS_LT).enqueue = [](std::function<void()> work) {
      emulated::Enqueue(std::move(work));
    };
    ASSERT_OK_AND_ASSIGN(auto library, CublasLt::Load(FAKE_CUBLAS_LT));
    LtOptions timed_by_a_constant;
    timed_by_a_constant.timer = [](const LtAlgorithm&, const auto&) { return 1.0; };
    ASSERT_OK_AND_ASSIGN(
        lt_, LtProducts::Create(backend_->device(), std::move(library), timed_by_a_constant));
  }
  std::shared_ptr<const Model> BuildByLt(std::string_view spelling, ActivationMode activation) {
    const CudaBackend backend = {backend_->device(), world_.linear, Half::kF16, lt_.get()};
    kernel_ = std::make_unique<CudaLinearKernel>("cuda", backend);
    const auto scheme = FindScheme(spelling);
    const auto family = FamilyOf(checkpoint_);
    const auto spec = (*family)->parse(checkpoint_);
    LinearMap linears;
    for (const LinearSlot& slot : (*family)->slots(*spec)) {
      const auto w = (*scheme)->Encode(ReadSlotWeight(checkpoint_, slot)->view());
      const bool table = slot.kind == LinearSlot::Kind::kEmbedding;
      auto linear = MakeCudaQuantizedLinear(*kernel_, *w, *ReadSlotBias(checkpoint_, slot),
                                            table ? ActivationMode::kA16 : activation);
      EXPECT_OK(linear);
      linears[slot.name] = std::make_shared<const QuantizedLinear>(*std::move(linear));
    }
    auto model = BuildCudaBert(backend, world_.ops, *spec, checkpoint_, std::move(linears));
    EXPECT_OK(model);
    return *std::move(model);
  }
  Outputs OnCpu(const char* scheme, ActivationMode activation, const std::vector<Text>& texts) {
    const auto cpu =
        BuildUniform(checkpoint_, scheme, {.activation = activation, .kernel = "reference"});
    EXPECT_OK(cpu);
    return Run(**cpu, texts);
  }
  // `rows` in all, the last text of three.
  static std::vector<Text> Texts(int rows) {
    std::vector<Text> texts(2);
    for (int i = 0; i < rows; ++i)
      texts[i < rows - 3 ? 0 : 1].tokens.push_back((i * 7 + i * i) % 50);
    return texts;
  }

  const RandomBert checkpoint_{{.hidden = 64, .heads = 2, .ffn = 96}};
  std::unique_ptr<LtProducts> lt_;
  std::unique_ptr<CudaLinearKernel> kernel_;
};

TEST_F(CudaBertLtTest, SixteenBitAgreesWithTheCpu) {
  const auto model = BuildByLt("int8_channel", ActivationMode::kA16);
  const FakeCublasLt& fake = FakeOf(FAKE_CUBLAS_LT);
  const auto texts = Texts(75);
  // The bound of cuda_bert_test.cc.
  EXPECT_LT(Worst(Run(*model, texts), OnCpu("int8_channel", ActivationMode::kA16, texts)), 4e-3);
  EXPECT_EQ(fake.products, 4);
  EXPECT_EQ(fake.last_m, 76);  // in fours
}

// In FP8 the CPU quantizes all rows, the GPU those of batches of more than 64. What is rounded to
// 16 bit first gets other codes in places: in the end both are off the same way, not by the same
// numbers. So each is compared with activations that are not quantized.
TEST_F(CudaBertLtTest, Fp8CostsOnLongBatchesWhatItCostsOnTheCpu) {
  const FakeCublasLt& fake = FakeOf(FAKE_CUBLAS_LT);
  const auto gpu = BuildByLt("fp8_e4m3", ActivationMode::kFp8Token);
  const auto few = Texts(40), many = Texts(75);
  EXPECT_LT(Worst(Run(*gpu, few), OnCpu("fp8_e4m3", ActivationMode::kA16, few)), 4e-3);
  EXPECT_EQ(fake.scaled_products, 0);
  const auto plain = OnCpu("fp8_e4m3", ActivationMode::kA16, many),
             coded = OnCpu("fp8_e4m3", ActivationMode::kFp8Token, many), got = Run(*gpu, many);
  EXPECT_EQ(fake.scaled_products, 4);
  const double cost = Worst(got, plain), cpu_cost = Worst(coded, plain);
  EXPECT_GT(cost, cpu_cost / 2);
  EXPECT_LT(cost, cpu_cost * 2);
  EXPECT_LT(Worst(got, coded), cost / 2);
}

TEST_F(CudaBertLtTest, OddBatchesAreMultipliedLikeOthers) {
  const auto gpu = BuildByLt("fp8_e4m3:block", ActivationMode::kFp8Block);
  const FakeCublasLt& fake = FakeOf(FAKE_CUBLAS_LT);
  auto texts = Texts(71);
  const auto odd = Run(*gpu, texts);
  EXPECT_EQ(fake.scaled_products, 4);
  EXPECT_EQ(fake.last_m, 72);
  texts.push_back({.tokens = std::vector<int32_t>(9, 3), .types = {}, .golden = {}});
  auto even = Run(*gpu, texts);
  even.pop_back();
  EXPECT_EQ(odd, even);
}

}  // namespace
}  // namespace assay
