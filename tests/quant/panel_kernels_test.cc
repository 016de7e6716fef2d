// What is particular to the panel kernels (quant/kernels/cpu/panel_int8.cc, panel_f32.cc).
#include <cmath>

#include "gtest/gtest.h"
#include "quant/schemes/schemes.h"
#include "tests/quant/kernel_runner.h"

namespace assay {
namespace {

using testing::HasSubstr;

TEST(Avx2Int8Test, PacksTheExcessOnlyWhereItIsSmall) {
  const Variant v = {&Avx2Int8Kernel(), &Int8ChannelScheme(), ActivationMode::kA8Token};
  if (!v.kernel->Supports({{64, 64}, v.scheme, v.activation, DeviceKind::kCpu}).ok())
    GTEST_SKIP() << "CPU has no AVX2";
  const Tensor gauss = RandomTensor({64, 576}, 1);
  const Tensor extreme = TensorOf({64, 576}, std::vector<float>(64 * 576, 1.0f));
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor usual, v.scheme->Encode(gauss.view()));
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor worst, v.scheme->Encode(extreme.view()));
  EXPECT_GT(Make(v, usual, false).bytes(), usual.bytes() * 102 / 100);
  EXPECT_LT(Make(v, usual, false).bytes(), usual.bytes() * 120 / 100);
  EXPECT_EQ(Make(v, worst, false).bytes(), worst.bytes());
}

TEST(Avx2Int8Test, RefusesACodeThatTheSchemeDoesNotHave) {
  const Tensor weights = RandomTensor({4, 16}, 1);
  ASSERT_OK_AND_ASSIGN(QuantizedTensor w, Int8ChannelScheme().Encode(weights.view()));
  w.codes.data<int8_t>()[2 * 16 + 5] = -128;
  EXPECT_THAT(Avx2Int8Kernel().Pack(w, ActivationMode::kA8Token),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("row=2 column=5")));
}

// What rounding x to 16-bit codes costs, against f32 activations: each x moves by at most half a
// step, absmax / A / 2 with A = 32767 for these weights, so y by at most that times sum |w|; an
// eighth more covers the f32 roundings.
TEST(Avx2Int8Test, A16StaysWithinHalfAStepOfTheReference) {
  const Variant v = {&Avx2Int8Kernel(), &Int8ChannelScheme(), ActivationMode::kA16};
  if (!v.kernel->Supports({{64, 64}, v.scheme, v.activation, DeviceKind::kCpu}).ok())
    GTEST_SKIP() << "CPU has no AVX2";
  const int64_t n = 48, k = 576, m = 20;
  const Tensor weights = RandomTensor({n, k}, 1), x = RandomTensor({m, k}, 2);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, v.scheme->Encode(weights.view()));
  const Variant reference = {&ReferenceKernel(), v.scheme, v.activation};
  const std::vector<float> y = Forward(Make(v, w, false), x.view(), {.m = m});
  const std::vector<float> expected = Forward(Make(reference, w, false), x.view(), {.m = m});
  std::vector<float> decoded(static_cast<size_t>(n * k));
  ASSERT_OK(w.scheme->DecodeRows(w, 0, n, std::span<float>(decoded)));
  double worst = 0;
  for (int64_t r = 0; r < m; ++r) {
    float absmax = 0;
    for (int64_t i = 0; i < k; ++i)
      absmax = std::max(absmax, std::fabs(x.data<float>()[r * k + i]));
    for (int64_t c = 0; c < n; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += std::fabs(decoded[c * k + i]);
      const double bound = absmax / 32767.0 / 2 * sum;
      worst = std::max(worst, std::fabs(y[r * n + c] - expected[r * n + c]) / bound);
    }
  }
  EXPECT_LE(worst, 1.125);
  // Random roundings add up like sqrt(k / 3) half steps, sum |w| is about 0.8 k: a part of
  // 1 / (0.8 sqrt(3 k)) = 3 %, four times that at the worst of 960. Codes of 8 bit would give 256
  // times as much.
  EXPECT_GT(worst, 0.01);
}

TEST(Avx2Int8Test, A16IsRefusedWhereItsCodesWouldBeCoarse) {
  const int64_t k = 5000;  // all codes 127: 2^31 / (127 k) leaves 3381 < 4095
  const Tensor ones = TensorOf({2, k}, std::vector<float>(2 * k, 1.0f));
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, Int8ChannelScheme().Encode(ones.view()));
  EXPECT_THAT(Avx2Int8Kernel().Pack(w, ActivationMode::kA16),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("sums of |code| up to 635000")));
  ASSERT_OK_AND_ASSIGN(const QuantizedLinear linear, QuantizedLinear::Create(w, Tensor(), {}));
  EXPECT_THAT(linear.kernel(), testing::Not(HasSubstr("_int8")));
}

// The registers are twice as wide, the arithmetic is the same: an artifact that was judged on one
// host is what another serves. Rows and channels beside the tiles' edges.
TEST(Avx512Test, KernelsEqualThoseOfAvx2BitForBit) {
  struct Pair {
    const LinearKernel *wide, *narrow;
  };
  const Pair pairs[] = {{&Avx512Int8Kernel(), &Avx2Int8Kernel()},
                        {&Avx512F32Kernel(), &Avx2F32Kernel()}};
  int compared = 0;
  for (const Pair& pair : pairs) {
    for (const QuantScheme* scheme : AllSchemes()) {
      for (const ActivationMode mode : kActivationModes) {
        const LinearProblem problem = {{85, 328}, scheme, mode, DeviceKind::kCpu};
        if (!pair.wide->Supports(problem).ok() || !scheme->Accepts({85, 328}).ok()) continue;
        ASSERT_OK(pair.narrow->Supports(problem));
        const Tensor weights = RandomTensor({85, 328}, 1);
        ASSERT_OK_AND_ASSIGN(const QuantizedTensor w,
                             EncodeFor({pair.wide, scheme, mode}, weights.view()));
        const QuantizedLinear wide = Make({pair.wide, scheme, mode}, w, true);
        const QuantizedLinear narrow = Make({pair.narrow, scheme, mode}, w, true);
        for (const int64_t m : {1, 2, 3, 5, 7, 8, 9, 17, 29}) {
          const Call call = {.m = m, .bias = true, .accumulate = m % 2 == 0, .threads = 2};
          const Tensor x = RandomTensor({m, 328}, 2);
          ++compared;
          EXPECT_EQ(Forward(wide, x.view(), call), Forward(narrow, x.view(), call))
              << ToName({pair.wide, scheme, mode}) << " m=" << m;
        }
      }
    }
  }
  if (compared == 0) GTEST_SKIP() << "CPU has no AVX512";
}

}  // namespace
}  // namespace assay
