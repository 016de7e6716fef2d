// The oracle of weight schemes: SQNR on i.i.d. Gaussian weights [256, 4096], from an independent
// NumPy experiment (its figures have two digits after the point), and what the options are for.
#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "quant/scheme.h"
#include "tests/support/random_tensor.h"
#include "tests/support/scheme_testing.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

struct Oracle {
  const char* spelling;
  double sqnr_db;
};
// 10 lg of the variance of an estimate over 2^20 weights: below 0.01 dB; the two experiments drew
// other numbers, and row and tensor maxima are random: 0.1 dB.
constexpr double kTolerance = 0.1;
constexpr Oracle kOracles[] = {
    {"int8_channel", 41.22},
    {"fp8_e4m3", 31.54},
    {"int4_group:g32,asym", 21.85},
    {"int4_group:g32,signed_max", 21.31},
    {"nf4", 20.72},
    {"nvfp4", 20.45},
    {"int4_group:asym", 19.95},
    {"int4_group:signed_max", 19.73},
    {"int4_group:full", 19.11},
    {"mxfp4", 18.78},
    {"int4_group", 18.62},
    {"int4_group:row", 16.04},
    {"int3_group:asym", 13.34},
};

const std::vector<float>& Weights() {
  static const std::vector<float>& w = *new std::vector<float>(RandomNormal(256 * 4096, 1));
  return w;
}

QuantizedTensor EncodeGaussian(std::string_view spelling) {
  static const Tensor& tensor = *new Tensor(TensorOf({256, 4096}, Weights()));
  return FindScheme(spelling).value()->Encode(tensor.view()).value();
}

double GaussianSqnr(std::string_view spelling) {
  return Sqnr(Weights(), DecodeAll(EncodeGaussian(spelling)));
}

TEST(SqnrTest, GaussianWeightsReachTheExpectedSqnr) {
  for (const Oracle& oracle : kOracles) {
    EXPECT_NEAR(GaussianSqnr(oracle.spelling), oracle.sqnr_db, kTolerance) << oracle.spelling;
  }
}

// The sibling of the oracle: rounding towards zero costs 6 dB and must be seen.
TEST(SqnrTest, TheOracleSeesTruncation) {
  QuantizedTensor q = EncodeGaussian("int8_channel");
  for (int64_t i = 0; i < q.shape.elements(); ++i) {
    q.codes.data<int8_t>()[i] =
        static_cast<int8_t>(Weights()[i] / q.scales.data<float>()[i / q.shape[1]]);
  }
  EXPECT_LT(Sqnr(Weights(), DecodeAll(q)), 41.22 - 3);
}

TEST(SqnrTest, FinerGridsAreMoreAccurate) {
  EXPECT_GT(GaussianSqnr("int8_group:g32"), GaussianSqnr("int8_group") + 1);
  EXPECT_GT(GaussianSqnr("int8_group"), GaussianSqnr("int8_channel"));
  EXPECT_GT(GaussianSqnr("int8_group:asym"), GaussianSqnr("int8_group"));
  EXPECT_GT(GaussianSqnr("int4_group:float"), GaussianSqnr("int4_group:full"));
  EXPECT_GT(GaussianSqnr("fp8_e4m3"), GaussianSqnr("fp8_e5m2") + 4);  // a bit of mantissa
  EXPECT_GT(GaussianSqnr("int4_group:g32"), GaussianSqnr("int4_group") + 1);
  EXPECT_GT(GaussianSqnr("nf4"), GaussianSqnr("fp4"));
  EXPECT_GT(GaussianSqnr("int8_sparse:f10"), GaussianSqnr("int8_sparse") + 2);
}

TEST(SqnrTest, DoubleQuantizationCostsLittle) {
  EXPECT_NEAR(GaussianSqnr("nf4:double"), GaussianSqnr("nf4"), 0.1);
  EXPECT_NEAR(GaussianSqnr("fp4:double"), GaussianSqnr("fp4"), 0.1);
}

// 8 bits, then 4: the integer group scale (1 of about 12 steps) costs at most half a dB.
TEST(SqnrTest, ProgressiveQuantizationIsCloseToAsymmetricFourBit) {
  EXPECT_NEAR(GaussianSqnr("w4a8"), GaussianSqnr("int4_group:asym"), 0.5);
}

// All but 1 % of a Gaussian lie within 2.576 standard deviations = 7 steps:
// 10 lg(12 / (2.576 / 7)^2) = 19.5 dB at 3.5 bits.
TEST(SqnrTest, SparseCodesTakeFewBits) {
  const QuantizedTensor q = EncodeGaussian("int8_sparse");
  EXPECT_NEAR(Sqnr(Weights(), DecodeAll(q)), 19.5, 0.2);
  EXPECT_NEAR(static_cast<double>(q.bytes()) * 8 / (256 * 4096), 3.5, 0.1);
}

// Weights pruned to 2 of 4 load like any others; what is stored is what is counted. Half of the
// codes are zero (1 bit each to say so), the others the larger halves of their fours: at most
// log2(14) bits, so 1 + 3.8 / 2 = 2.9 at the most, where dense weights take 3.5.
TEST(SqnrTest, PrunedWeightsTakeFewerBitsAndStayPruned) {
  std::vector<float> pruned(Weights().begin(), Weights().end());
  for (size_t i = 0; i < pruned.size(); i += 4) {
    std::array<size_t, 4> order = {i, i + 1, i + 2, i + 3};
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return std::abs(pruned[a]) < std::abs(pruned[b]); });
    pruned[order[0]] = pruned[order[1]] = 0;
  }
  const Tensor tensor = TensorOf({256, 4096}, pruned);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q,
                       FindScheme("int8_sparse").value()->Encode(tensor.view()));
  size_t stored = q.codes.bytes() + q.scales.bytes() + q.zeros.bytes();
  for (const auto& [name, tensor] : q.extra) stored += tensor.bytes();
  EXPECT_EQ(q.bytes(), stored);
  EXPECT_LT(static_cast<double>(stored) * 8 / (256 * 4096), 2.9);
  const std::vector<float> decoded = DecodeAll(q);
  for (size_t i = 0; i < pruned.size(); ++i) {
    if (pruned[i] == 0) {
      ASSERT_EQ(decoded[i], 0) << i;
    }
  }
}

}  // namespace
}  // namespace assay
