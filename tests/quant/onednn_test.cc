// onednn_int8 on whatever CPU this is. Where there is VNNI, kernel_test.cc runs the kernel with all
// codes; here the check of the ISA is skipped and weight codes stay in [-63, 63], so that 16-bit
// sums of two products cannot saturate (255 * 63 * 2 < 2^15) and the results must be exact.
#include "base/cpu_info.h"
#include "base/thread_pool.h"
#include "gtest/gtest.h"
#include "quant/kernels/cpu/onednn_int8.h"
#include "quant/kernels/cpu/onednn_matmul.h"
#include "quant/kernels/kernels.h"
#include "quant/schemes/schemes.h"
#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

class OnednnTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HasOnednn()) GTEST_SKIP() << "this binary was built without oneDNN";
    if (!HostCpu().avx2) GTEST_SKIP() << "CPU has no AVX2";
  }
};

// int8_channel with codes of at most `top`.
QuantizedTensor Limited(Shape shape, int top) {
  const Tensor weights = RandomTensor(shape, 3);
  QuantizedTensor w = *Int8ChannelScheme().Encode(weights.view());
  for (int64_t i = 0; i < shape.elements(); ++i) {
    int8_t& code = w.codes.data<int8_t>()[i];
    code = static_cast<int8_t>(code * top / 127);
  }
  return w;
}

struct Call {
  int64_t m;
  bool bias, accumulate;
  int threads;
};

std::vector<float> Product(const LinearKernel& kernel, const QuantizedTensor& w, const Call& call) {
  const int64_t n = w.shape[0], k = w.shape[1];
  const auto packed = kernel.Pack(w, ActivationMode::kA8Token);
  EXPECT_OK(packed);
  if (!packed.ok()) return {};
  const LinearProblem problem = {w.shape, w.scheme, ActivationMode::kA8Token, DeviceKind::kCpu};
  ThreadPool pool({.num_threads = call.threads});
  Arena arena = *Arena::Create(CpuDevice(), kernel.scratch_bytes(problem, call.m));
  ComputeContext context{pool, arena};
  const Tensor x = RandomTensor({call.m, k}, 4), bias = RandomTensor({n}, 5);
  Tensor y = RandomTensor({call.m, n}, 6);
  kernel.Run(**packed,
             {x.view(), call.bias ? bias.view() : TensorView{}, y.mutable_view(), call.accumulate},
             context);
  return {y.data<float>(), y.data<float>() + y.shape().elements()};
}

TEST_F(OnednnTest, EqualsTheReferenceExactly) {
  const auto kernel = MakeOnednnInt8Kernel({.skip_isa_check = true});
  int variation = 0;
  for (const Shape shape : {Shape{1, 1}, Shape{3, 7}, Shape{17, 33}, Shape{129, 64},
                            Shape{300, 131}, Shape{128, 576}}) {
    const QuantizedTensor w = Limited(shape, 63);
    for (const int64_t m : {1, 2, 3, 8, 13, 64, 65, 130}) {
      const Call call = {m, variation % 2 == 1, variation / 2 % 2 == 1, 1 + variation % 3};
      ++variation;
      ASSERT_EQ(Product(*kernel, w, call), Product(ReferenceKernel(), w, call))
          << "shape " << ToString(shape) << " m " << m << " threads " << call.threads;
    }
  }
}

// The sibling: on a CPU without VNNI full-range codes saturate, and the comparison sees it.
TEST_F(OnednnTest, TheComparisonSeesSaturation) {
  if (HostCpu().avx512_vnni || HostCpu().avx_vnni) GTEST_SKIP() << "nothing saturates here";
  const auto kernel = MakeOnednnInt8Kernel({.skip_isa_check = true});
  const QuantizedTensor w = Limited({128, 576}, 127);
  const Call call = {8, false, false, 1};
  EXPECT_NE(Product(*kernel, w, call), Product(ReferenceKernel(), w, call));
}

TEST_F(OnednnTest, DecodesRowsFromTheLibrarysLayout) {
  const auto kernel = MakeOnednnInt8Kernel({.skip_isa_check = true});
  const QuantizedTensor w = Limited({300, 131}, 63);
  ASSERT_OK_AND_ASSIGN(const auto packed, kernel->Pack(w, ActivationMode::kA8Token));
  std::vector<float> expected(131), row(131);
  for (int64_t r = 0; r < 300; ++r) {
    ASSERT_OK(w.scheme->DecodeRows(w, r, 1, std::span<float>(expected)));
    kernel->DecodeRow(*packed, r, std::span<float>(row));
    ASSERT_EQ(row, expected) << r;
  }
}

TEST_F(OnednnTest, RefusesCpusWithoutVnni) {
  if (HostCpu().avx512_vnni || HostCpu().avx_vnni || HostCpu().amx_int8)
    GTEST_SKIP() << "this CPU has VNNI";
  const LinearProblem problem = {
      {8, 8}, &Int8ChannelScheme(), ActivationMode::kA8Token, DeviceKind::kCpu};
  EXPECT_THAT(
      OnednnInt8Kernel().Supports(problem),
      StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("CPU has no VNNI: u8s8 saturates")));
}

TEST_F(OnednnTest, SelfCheckRefusesAMatmulThatSaturates) {
  if (HostCpu().avx512_vnni || HostCpu().avx_vnni) GTEST_SKIP() << "nothing saturates here";
  EXPECT_OK(OnednnMatmul::Get({.k = 64, .width = 32, .max_weight_code = 63}));
  EXPECT_THAT(OnednnMatmul::Get({.k = 64, .width = 32, .max_weight_code = 127}),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("not exact here: k=64 n=32")));
}

TEST_F(OnednnTest, KeepsOnePackedCopyOfTheWeights) {
  const auto kernel = MakeOnednnInt8Kernel({.skip_isa_check = true});
  const QuantizedTensor w = Limited({256, 512}, 63);
  ASSERT_OK_AND_ASSIGN(const auto packed, kernel->Pack(w, ActivationMode::kA8Token));
  EXPECT_LE(packed->bytes(), w.bytes() * 11 / 10);
}

}  // namespace
}  // namespace assay
