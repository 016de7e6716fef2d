// Every kernel against "reference" over awkward shapes, and what linear.h promises of all of them.
#include <cfloat>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "base/thread_pool.h"
#include "gtest/gtest.h"
#include "quant/activation.h"
#include "quant/kernels/kernels.h"
#include "quant/schemes/schemes.h"
#include "tests/quant/kernel_runner.h"
#include "tests/support/random_tensor.h"
#include "tests/support/scheme_testing.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

// Whether it differs from the other variants: two kernels see a weight only through DecodeRows, so
// that a family in its default spelling stands for all, and a few for the modes; avx2_int8 and
// avx512_int8 see integers, which a few more stand for.
bool IsOfItsKind(const Variant& v) {
  const std::string_view name = v.scheme->name();
  if (IsPanelInt8(v.kernel)) {
    if (name == "int8_channel" || name == "int8_group:g32" || name == "int4_group:asym")
      return true;
    return v.activation == ActivationMode::kA16 && name.find(':') == std::string_view::npos;
  }
  if (v.kernel != &ReferenceKernel() && v.kernel != &DecodedF32Kernel()) return true;
  if (name.find(':') != std::string_view::npos) return false;
  return v.activation == ActivationMode::kA16 || v.scheme->is_floating() ||
         name == "int8_channel" || name == "int4_group";
}

// Those that this host can run.
std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  for (const LinearKernel* kernel : AllLinearKernels()) {
    for (const QuantScheme* scheme : AllSchemes()) {
      for (const ActivationMode mode : kActivationModes) {
        if (!IsOfItsKind({kernel, scheme, mode})) continue;
        if (kernel->Supports({{64, 64}, scheme, mode, DeviceKind::kCpu}).ok())
          variants.push_back({kernel, scheme, mode});
      }
    }
  }
  return variants;
}

// Sum of |x| |w| per output, x as its mode sees it: what rounding errors of any order of summation
// are relative to.
std::vector<float> Magnitudes(const Variant& v, const QuantizedTensor& w, TensorView x,
                              bool decode) {
  const int64_t m = x.shape[0], n = w.shape[0], k = w.shape[1];
  std::vector<float> decoded(static_cast<size_t>(n * k)), sums(static_cast<size_t>(m * n));
  EXPECT_OK(w.scheme->DecodeRows(w, 0, n, std::span<float>(decoded)));
  const ActivationParams params = ReadActivationParams(w, v.activation).value();
  std::vector<float> seen(static_cast<size_t>(k));
  std::vector<int16_t> codes(seen.size());
  for (int64_t r = 0; r < m; ++r) {
    RepresentRow(v.activation, params, {decode}, {x.as<float>() + r * k, seen.size()}, codes, seen);
    for (int64_t c = 0; c < n; ++c) {
      for (int64_t i = 0; i < k; ++i) sums[r * n + c] += std::fabs(seen[i] * decoded[c * k + i]);
    }
  }
  return sums;
}

// avx2_int8 and avx512_int8 with a16, from their definition (the head of their file), in 64-bit
// integers: y of `call`. With a scale per row bit for bit, with a scale per group but for the order
// of f32 sums.
std::vector<float> IntegerA16(const QuantizedTensor& w, TensorView x, const Call& call) {
  const int64_t n = w.shape[0], k = w.shape[1], group = w.scheme->group(w.shape);
  const int64_t groups = (k + group - 1) / group;
  std::vector<int8_t> codes(static_cast<size_t>(n * k));
  std::vector<uint16_t> steps(static_cast<size_t>(n * groups));
  std::vector<float> scales(static_cast<size_t>(n));
  EXPECT_OK(w.scheme->ReadIntegers(w, 0, n, {codes, steps, scales}));
  // Where all scales are the rows', a sum goes over the row.
  const bool by_row =
      std::all_of(steps.begin(), steps.end(), [](uint16_t step) { return step == F32ToBf16(1); });
  int64_t largest = 1;
  for (int64_t c = 0; c < n; ++c) {
    int64_t sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      sum = (i % group == 0 && !by_row ? 0 : sum) + std::abs(codes[c * k + i]);
      largest = std::max(largest, sum);
    }
  }
  const auto max_code = static_cast<float>(std::min<int64_t>(32767, INT32_MAX / largest));
  const Tensor bias = RandomTensor({n}, 5), old_y = RandomTensor({call.m, n}, 6);
  std::vector<float> y;
  for (int64_t r = 0; r < call.m; ++r) {
    const float* row = x.as<float>() + r * k;
    float absmax = 0;
    for (int64_t i = 0; i < k; ++i) absmax = std::max(absmax, std::fabs(row[i]));
    const float inverse = absmax == 0 ? 0 : max_code / absmax;
    for (int64_t c = 0; c < n; ++c) {
      double total = 0;
      for (int64_t g = 0; g < groups; ++g) {
        int64_t sum = 0;
        for (int64_t i = g * group; i < std::min(k, (g + 1) * group); ++i)
          sum += static_cast<int64_t>(std::nearbyint(row[i] * inverse)) * codes[c * k + i];
        EXPECT_LE(std::abs(sum), INT32_MAX);
        total += static_cast<double>(sum) * static_cast<double>(Bf16ToF32(steps[c * groups + g]));
      }
      float v = absmax / max_code * scales[c] * static_cast<float>(total);
      if (call.bias) v += bias.data<float>()[c];
      y.push_back(call.accumulate ? old_y.data<float>()[r * n + c] + v : v);
    }
  }
  return y;
}

// Number of outputs that differ from the reference by more than the formats explain. Integer
// products are exact and share the epilogue's order: no difference is allowed. f32 dot products of
// length k carry at most k + 3 roundings on either side (k products and sums, scale, bias, y), each
// eps / 2 of the running magnitude: together (k + 3) eps of sum |x| |w| + |bias| + |y|.
int64_t CountWrong(const Variant& v, const QuantizedTensor& w, TensorView x, const Call& call,
                   const std::vector<float>& y) {
  const Variant reference = {&ReferenceKernel(), v.scheme, v.activation};
  const bool integer_a16 = IsPanelInt8(v.kernel) && v.activation == ActivationMode::kA16;
  const std::vector<float> expected = integer_a16 ? IntegerA16(w, x, call)
                                                  : Forward(Make(reference, w, call.bias), x,
                                                            {.m = call.m,
                                                             .bias = call.bias,
                                                             .accumulate = call.accumulate,
                                                             .threads = 1,
                                                             .decode = call.decode});
  int64_t wrong = 0;
  if ((integer_a16 || HasIntegerCodes(v.activation)) && v.scheme == &Int8ChannelScheme() &&
      v.kernel != &DecodedF32Kernel()) {
    for (size_t i = 0; i < y.size(); ++i) wrong += !(y[i] == expected[i]);
    return wrong;
  }
  const std::vector<float> magnitudes = Magnitudes(v, w, x, call.decode);
  for (size_t i = 0; i < y.size(); ++i) {
    const float bound =
        (magnitudes[i] + 8) * static_cast<float>(w.shape[1] + 3) * FLT_EPSILON;  // |bias|+|y| < 8
    wrong += !(std::fabs(y[i] - expected[i]) <= bound);
  }
  return wrong;
}

class EveryKernelTest : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(All, EveryKernelTest, testing::ValuesIn(Variants()),
                         [](const auto& info) { return ToName(info.param); });

struct Problem {
  int64_t n, k, m;
};

std::vector<Problem> AwkwardProblems() {
  std::vector<Problem> problems;
  for (const int64_t n : {1, 2, 3, 7, 15, 16, 17, 31, 33}) {
    for (const int64_t k : {1, 2, 3, 7, 15, 16, 17, 31, 33})
      problems.push_back({n, k, (n + k) % 9});
  }
  for (int64_t m = 1; m <= 34; ++m) problems.push_back({35, 67, m});
  for (const int64_t m : {47, 48, 96, 97, 131}) problems.push_back({49, 101, m});
  problems.insert(problems.end(), {{576, 576, 1},
                                   {576, 576, 2},
                                   {576, 576, 7},
                                   {577, 576, 33},
                                   {96, 1543, 14},
                                   {16, 577, 200},
                                   {1, 64, 300},
                                   {40, 6007, 25},
                                   {1031, 64, 3}});
  return problems;
}

TEST_P(EveryKernelTest, AgreesWithTheReferenceOnAwkwardShapes) {
  int variation = 0;
  for (const Problem& p : AwkwardProblems()) {
    const int64_t m = std::max<int64_t>(1, p.m);
    const Tensor weights = RandomTensor({p.n, p.k}, 100 + p.n);
    const Tensor x = RandomTensor({m, p.k}, 200 + p.k);
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, EncodeFor(GetParam(), weights.view()));
    const Call call = {.m = m,
                       .bias = variation % 2 == 1,
                       .accumulate = variation / 2 % 2 == 1,
                       .threads = 1 + variation % 3,
                       .decode = variation % 5 < 2};
    ++variation;
    const std::vector<float> y = Forward(Make(GetParam(), w, call.bias), x.view(), call);
    ASSERT_EQ(CountWrong(GetParam(), w, x.view(), call, y), 0)
        << "n=" << p.n << " k=" << p.k << " m=" << m << " bias=" << call.bias
        << " accumulate=" << call.accumulate << " threads=" << call.threads;
  }
}

TEST_P(EveryKernelTest, BiasAccumulateAndThreadsInEveryCombination) {
  const Tensor weights = RandomTensor({83, 57}, 1), x = RandomTensor({19, 57}, 2);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, EncodeFor(GetParam(), weights.view()));
  for (int i = 0; i < 12; ++i) {
    const Call call = {
        .m = 19, .bias = i % 2 == 1, .accumulate = i / 2 % 2 == 1, .threads = 1 + i / 4};
    const std::vector<float> y = Forward(Make(GetParam(), w, call.bias), x.view(), call);
    EXPECT_EQ(CountWrong(GetParam(), w, x.view(), call, y), 0) << i;
  }
}

TEST_P(EveryKernelTest, ExtremeCodesDoNotSaturate) {
  // Rows of +-absmax only: every code is +-127, the largest sums that there are.
  for (const int64_t k : {2, 64, 577}) {
    constexpr int64_t kRows = 25;
    std::vector<float> weights(static_cast<size_t>(33 * k)), inputs(static_cast<size_t>(kRows * k));
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = i / k % 3 == 0 || i % 2 == 0 ? 1 : -1;
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = i / k % 2 == 0 || i % 2 == 0 ? -2 : 2;
    const Tensor weight = TensorOf({33, k}, weights), x = TensorOf({kRows, k}, inputs);
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, EncodeFor(GetParam(), weight.view()));
    const Call call = {.m = kRows};
    const std::vector<float> y = Forward(Make(GetParam(), w, false), x.view(), call);
    EXPECT_EQ(CountWrong(GetParam(), w, x.view(), call, y), 0) << "k=" << k;
    // The weights are 1 as far as their scheme's grid allows.
    std::vector<float> row(static_cast<size_t>(k));
    ASSERT_OK(w.scheme->DecodeRows(w, 0, 1, std::span<float>(row)));
    double sum = 0;
    for (const float weight_0 : row) sum += weight_0;
    EXPECT_NEAR(y[0], -2 * sum, 1e-3 * static_cast<double>(k));
  }
}

// Weights as avx2_int8's bounded product finds them hardest: one group of eight in sixteen is full
// of the largest codes, of one sign, of alternating signs or in pairs; the rest is small.
TEST_P(EveryKernelTest, CrowdedExtremesInFewGroups) {
  for (const int64_t k : {128, 260, 1029}) {
    const int64_t n = 35, m = 70;
    std::vector<float> weights = RandomNormal(n * k, 3, 0.05f);
    for (int64_t i = 0; i < n * k; ++i) {
      const int64_t row = i / k, column = i % k;
      if ((column / 8 + row) % 16 != 0 && column != 0) continue;
      const int64_t pattern = row % 4;
      const bool negative =
          pattern == 1 || (pattern == 2 && column % 2 == 1) || (pattern == 3 && column % 4 >= 2);
      weights[i] = negative ? -1.0f : 1.0f;
    }
    std::vector<float> inputs = RandomNormal(m * k, 4);
    for (int64_t i = 0; i < 3 * k; ++i)
      inputs[i] = i / k == 0 || (i / k == 1 && i % 2 == 0) ? 1 : -1;
    const Tensor weight = TensorOf({n, k}, weights), x = TensorOf({m, k}, inputs);
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, EncodeFor(GetParam(), weight.view()));
    const Call call = {.m = m, .threads = 2};
    const std::vector<float> y = Forward(Make(GetParam(), w, false), x.view(), call);
    EXPECT_EQ(CountWrong(GetParam(), w, x.view(), call, y), 0) << "k=" << k;
  }
}

TEST_P(EveryKernelTest, ARowDoesNotDependOnItsBatch) {
  const int64_t n = 83, k = 131;
  const Tensor weights = RandomTensor({n, k}, 1), x = RandomTensor({97, k}, 2);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, EncodeFor(GetParam(), weights.view()));
  const QuantizedLinear linear = Make(GetParam(), w, true);
  std::vector<std::vector<float>> alone;
  for (int64_t r = 0; r < 97; ++r) {
    const TensorView row = {x.view().data + r * k * 4, {1, k}, DType::kF32, nullptr};
    alone.push_back(Forward(linear, row, {.m = 1}));
    // y is pre-filled by RandomTensor; without accumulate nothing of it may remain.
  }
  for (const int64_t m : {2, 3, 4, 5, 6, 7, 8, 11, 13, 16, 33, 64, 97}) {
    const TensorView batch = {x.view().data, {m, k}, DType::kF32, nullptr};
    const std::vector<float> y = Forward(linear, batch, {.m = m, .threads = 2});
    for (int64_t r = 0; r < m; ++r) {
      ASSERT_TRUE(std::equal(alone[r].begin(), alone[r].end(), y.begin() + r * n))
          << "row " << r << " of " << m;
    }
  }
}

TEST_P(EveryKernelTest, DecodeRowIsTheSchemesDecode) {
  for (const Shape shape : {Shape{1, 1}, Shape{37, 45}, Shape{16, 64}, Shape{33, 131}}) {
    const Tensor weights = RandomTensor(shape, 8);
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, EncodeFor(GetParam(), weights.view()));
    const QuantizedLinear linear = Make(GetParam(), w, false);
    std::vector<float> expected(static_cast<size_t>(shape[1])), row(expected.size());
    for (int64_t r = 0; r < shape[0]; ++r) {
      ASSERT_OK(w.scheme->DecodeRows(w, r, 1, std::span<float>(expected)));
      linear.DecodeRow(r, std::span<float>(row));
      ASSERT_EQ(row, expected) << "row " << r << " of " << ToString(shape);
    }
  }
}

TEST_P(EveryKernelTest, NaNInOneRowStaysInThatRow) {
  const int64_t n = 19, k = 40;
  const Tensor weights = RandomTensor({n, k}, 1);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Tensor x = RandomTensor({3, k}, 2);
    x.data<float>()[k + 39] = bad;
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, EncodeFor(GetParam(), weights.view()));
    const std::vector<float> y = Forward(Make(GetParam(), w, false), x.view(), {.m = 3});
    for (int64_t c = 0; c < n; ++c) {
      EXPECT_TRUE(std::isfinite(y[c]));
      EXPECT_FALSE(std::isfinite(y[n + c]));
      EXPECT_TRUE(std::isfinite(y[2 * n + c]));
    }
  }
}

TEST_P(EveryKernelTest, ZeroRowsAndEmptyBatches) {
  const int64_t n = 19, k = 40;
  std::vector<float> weights = RandomNormal(n * k, 1);
  std::fill_n(weights.begin() + 3 * k, k, 0.0f);
  const Tensor weight = TensorOf({n, k}, weights);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, EncodeFor(GetParam(), weight.view()));
  const QuantizedLinear linear = Make(GetParam(), w, false);
  const Tensor zero = TensorOf({1, k}, std::vector<float>(k, 0.0f));
  for (const float y : Forward(linear, zero.view(), {.m = 1})) EXPECT_EQ(y, 0.0f);
  const Tensor x = RandomTensor({1, k}, 2);
  EXPECT_EQ(Forward(linear, x.view(), {.m = 1})[3], 0.0f);
  const TensorView none = {x.view().data, {0, k}, DType::kF32, nullptr};
  EXPECT_TRUE(Forward(linear, none, {.m = 0}).empty());
}

// Siblings: the comparison above sees each of these.
TEST_P(EveryKernelTest, TheComparisonSeesAWrongWeight) {
  const int64_t n = 33, k = 64;
  const Tensor weights = RandomTensor({n, k}, 1), x = RandomTensor({4, k}, 2);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, EncodeFor(GetParam(), weights.view()));
  const Call call = {.m = 4};
  ASSERT_EQ(CountWrong(GetParam(), w, x.view(), call,
                       Forward(Make(GetParam(), w, false), x.view(), call)),
            0);
  {  // two rows of W swapped
    std::vector<float> swapped(weights.data<float>(), weights.data<float>() + n * k);
    std::swap_ranges(swapped.begin() + 5 * k, swapped.begin() + 6 * k, swapped.begin() + 6 * k);
    const Tensor tensor = TensorOf({n, k}, swapped);
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor bad, EncodeFor(GetParam(), tensor.view()));
    EXPECT_GE(CountWrong(GetParam(), w, x.view(), call,
                         Forward(Make(GetParam(), bad, false), x.view(), call)),
              2 * 4);
  }
  {  // two codes of one row swapped: the largest and the smallest differ on every grid
    std::vector<float> swapped(weights.data<float>(), weights.data<float>() + n * k);
    const auto row = swapped.begin() + 7 * k;
    std::iter_swap(std::min_element(row, row + k), std::max_element(row, row + k));
    const Tensor tensor = TensorOf({n, k}, swapped);
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor bad, EncodeFor(GetParam(), tensor.view()));
    EXPECT_GE(CountWrong(GetParam(), w, x.view(), call,
                         Forward(Make(GetParam(), bad, false), x.view(), call)),
              4);
  }
  {  // one row's scale off by 0.1 %, or by what a scale of 16 bit or less can show
    const bool fine =
        GetParam().scheme == &F32Scheme() || GetParam().scheme == &Int8ChannelScheme();
    std::vector<float> scaled(weights.data<float>(), weights.data<float>() + n * k);
    for (int64_t i = 0; i < k; ++i) scaled[9 * k + i] *= fine ? 1.001f : 1.1f;
    const Tensor tensor = TensorOf({n, k}, scaled);
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor bad, EncodeFor(GetParam(), tensor.view()));
    EXPECT_GE(CountWrong(GetParam(), w, x.view(), call,
                         Forward(Make(GetParam(), bad, false), x.view(), call)),
              3);  // an output near zero may hide it
  }
}

TEST(ReferenceKernelTest, MultipliesByHand) {
  const Tensor weight = TensorOf({2, 3}, {1, 2, 3, -4, 5, -6}), x = TensorOf({1, 3}, {1, 10, 100});
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, F32Scheme().Encode(weight.view()));
  const Variant v = {&ReferenceKernel(), &F32Scheme(), ActivationMode::kA16};
  EXPECT_THAT(Forward(Make(v, w, false), x.view(), {.m = 1}), testing::ElementsAre(321, -554));
}

TEST(KernelRefusalTest, EachKernelSaysWhatItMultiplies) {
  EXPECT_THAT(
      Avx2Int8Kernel().Supports({{8, 8}, &F32Scheme(), ActivationMode::kA16, DeviceKind::kCpu}),
      StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("integers times scales")));
  EXPECT_THAT(
      DecodedF32Kernel().Supports({{8, 8}, &F32Scheme(), ActivationMode::kA16, DeviceKind::kCpu}),
      StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("need no decoding")));
}

}  // namespace
}  // namespace assay
