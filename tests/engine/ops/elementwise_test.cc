// Norms, rotation and activations of every variant against float64.
#include <gmock/gmock.h>

#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <span>

#include "engine/ops/ops.h"
#include "tests/engine/ops/variants.h"
#include "tests/support/random_tensor.h"

namespace assay {
namespace {

constexpr double kEps = std::numeric_limits<float>::epsilon();

class ElementwiseTest : public OpsVariant {};
ASSAY_OPS_VARIANTS(ElementwiseTest);

// A sum of d squares in eight lanes has relative error <= (d / 8 + 3) eps; the root halves it, and
// scale, gain and division add about 4 roundings.
double NormTolerance(int64_t d) { return (static_cast<double>(d) / 16 + 6) * kEps; }

TEST_P(ElementwiseTest, RmsNormMatchesFloat64) {
  for (const int64_t d : {1, 7, 8, 64, 100, 577}) {
    const int64_t rows = 41;
    const auto x = RandomNormal(rows * d, 1, 3.0f), gain = RandomNormal(d, 2);
    std::vector<float> y(rows * d);
    ops.RmsNorm(ViewOf(x, {rows, d}), ViewOf(gain, {d}), 1e-5f, ViewOf(y, {rows, d}), context);
    for (int64_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (int64_t i = 0; i < d; ++i) squares += double{x[r * d + i]} * x[r * d + i];
      for (int64_t i = 0; i < d; ++i) {
        const double want = x[r * d + i] / std::sqrt(squares / d + 1e-5f) * gain[i];
        ASSERT_NEAR(y[r * d + i], want, NormTolerance(d) * std::abs(want)) << "d=" << d;
      }
    }
  }
}

double LayerNormError(const std::vector<float>& y, const std::vector<float>& x,
                      const std::vector<float>& gain, const std::vector<float>& bias, int64_t d) {
  double worst = 0;
  for (size_t r = 0; r < x.size() / d; ++r) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < d; ++i) mean += x[r * d + i] / static_cast<double>(d);
    for (int64_t i = 0; i < d; ++i) variance += std::pow(x[r * d + i] - mean, 2) / d;
    for (int64_t i = 0; i < d; ++i) {
      const double want = (x[r * d + i] - mean) / std::sqrt(variance + 1e-12f) * gain[i] + bias[i];
      worst = std::max(worst, std::abs(y[r * d + i] - want));
    }
  }
  return worst;
}

// x ~ N(1, 9): |x - mean| / sigma <= 6 here, gain and bias below 5, so |y| <= 35; the mean adds an
// absolute error of (d / 8) eps |mean| / sigma, which is smaller.
TEST_P(ElementwiseTest, LayerNormMatchesFloat64AndDetectsAMissingBias) {
  for (const int64_t d : {8, 60, 384, 769}) {
    const int64_t rows = 19;
    auto x = RandomNormal(rows * d, 3, 3.0f);
    for (float& v : x) v += 1;
    const auto gain = RandomNormal(d, 4), bias = RandomNormal(d, 5);
    std::vector<float> y(rows * d);
    ops.LayerNorm(ViewOf(x, {rows, d}), ViewOf(gain, {d}), ViewOf(bias, {d}), 1e-12f,
                  ViewOf(y, {rows, d}), context);
    const double tolerance = 35 * NormTolerance(d);
    EXPECT_LT(LayerNormError(y, x, gain, bias, d), tolerance) << "d=" << d;
    const std::vector<float> none(d);
    EXPECT_GT(LayerNormError(y, x, gain, none, d), 100 * tolerance) << "the check cannot fail";
  }
}

TEST_P(ElementwiseTest, NormsInPlaceEqualNormsIntoAnotherBuffer) {
  const auto x = RandomNormal(5 * 70, 6), gain = RandomNormal(70, 7), bias = RandomNormal(70, 8);
  std::vector<float> y(x.size()), z = x;
  ops.RmsNorm(ViewOf(x, {5, 70}), ViewOf(gain, {70}), 1e-5f, ViewOf(y, {5, 70}), context);
  ops.RmsNorm(ViewOf(z, {5, 70}), ViewOf(gain, {70}), 1e-5f, ViewOf(z, {5, 70}), context);
  EXPECT_EQ(y, z);
  z = x;
  ops.LayerNorm(ViewOf(x, {5, 70}), ViewOf(gain, {70}), ViewOf(bias, {70}), 1e-5f,
                ViewOf(y, {5, 70}), context);
  ops.LayerNorm(ViewOf(z, {5, 70}), ViewOf(gain, {70}), ViewOf(bias, {70}), 1e-5f,
                ViewOf(z, {5, 70}), context);
  EXPECT_EQ(y, z);
}

TEST_P(ElementwiseTest, HeadRmsNormIsRmsNormOfEachHeadAndLeavesTheRestAlone) {
  const int rows = 6, heads = 3, d = 20, stride = 100;
  const auto x = RandomNormal(rows * stride, 9), gain = RandomNormal(d, 10);
  std::vector<float> y = x, want(d);
  ops.HeadRmsNorm(y.data(), stride, rows, heads, ViewOf(gain, {d}), 1e-6f, context);
  for (int r = 0; r < rows; ++r) {
    for (int h = 0; h < heads; ++h) {
      const std::vector<float> head(x.begin() + r * stride + h * d,
                                    x.begin() + r * stride + (h + 1) * d);
      ops.RmsNorm(ViewOf(head, {1, d}), ViewOf(gain, {d}), 1e-6f, ViewOf(want, {1, d}), context);
      for (int i = 0; i < d; ++i) ASSERT_EQ(y[r * stride + h * d + i], want[i]);
    }
    for (int i = heads * d; i < stride; ++i) ASSERT_EQ(y[r * stride + i], x[r * stride + i]);
  }
}

struct RopeCase {
  int heads = 3, head_dim = 0, stride = 0;
  std::vector<float> cos, sin;  // [rows, head_dim / 2]
};
RopeCase MakeRope(int head_dim, std::span<const int> positions) {
  RopeCase c{.head_dim = head_dim, .stride = 3 * head_dim + 5};
  for (const int p : positions) {
    for (int i = 0; i < head_dim / 2; ++i) {
      const double angle = p * std::pow(100.0, -2.0 * i / head_dim);
      c.cos.push_back(static_cast<float>(std::cos(angle)));
      c.sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return c;
}

// Two products and one sum of numbers up to |x|: three roundings.
TEST_P(ElementwiseTest, RopeRotatesByTheRowsOwnAngles) {
  for (const int d : {2, 6, 16, 48, 64}) {
    const int positions[] = {40, 41, 0, 1, 2};
    const RopeCase c = MakeRope(d, positions);
    const auto x = RandomNormal(5 * c.stride, 11);
    std::vector<float> y = x;
    ops.Rope(y.data(), c.stride, c.heads, ViewOf(c.cos, {5, d / 2}), ViewOf(c.sin, {5, d / 2}),
             context);
    for (int r = 0; r < 5; ++r) {
      for (int h = 0; h < c.heads; ++h) {
        for (int i = 0; i < d / 2; ++i) {
          const double angle = positions[r] * std::pow(100.0, -2.0 * i / d);
          const double a = x[r * c.stride + h * d + i], b = x[r * c.stride + h * d + d / 2 + i];
          const double tolerance = 4 * kEps * (std::abs(a) + std::abs(b));
          ASSERT_NEAR(y[r * c.stride + h * d + i], a * std::cos(angle) - b * std::sin(angle),
                      tolerance);
          ASSERT_NEAR(y[r * c.stride + h * d + d / 2 + i],
                      b * std::cos(angle) + a * std::sin(angle), tolerance);
        }
      }
    }
  }
}

TEST_P(ElementwiseTest, RopeIsTheSameBitForBitHoweverRowsAreChunked) {
  std::vector<int> positions(40);
  std::iota(positions.begin(), positions.end(), 0);
  const RopeCase all = MakeRope(36, positions);
  const auto x = RandomNormal(40 * all.stride, 12);
  const auto rotate = [&](std::vector<float>& y, int first, int rows) {
    const RopeCase c = MakeRope(36, std::span(positions).subspan(first, rows));
    ops.Rope(y.data() + first * c.stride, c.stride, c.heads, ViewOf(c.cos, {rows, 18}),
             ViewOf(c.sin, {rows, 18}), context);
  };
  std::vector<float> whole = x, chunked = x;
  rotate(whole, 0, 40);
  for (const auto& [first, rows] : {std::pair{0, 7}, {7, 1}, {8, 31}, {39, 1}}) {
    rotate(chunked, first, rows);
  }
  EXPECT_EQ(whole, chunked);
}

double Gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
double GeluTanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
const struct {
  Activation act;
  std::function<double(double)> exact;
} kActivations[] = {
    {Activation::kSilu, [](double x) { return x / (1 + std::exp(-x)); }},
    {Activation::kGelu, Gelu},
    {Activation::kGeluTanh, GeluTanh},
    {Activation::kRelu, [](double x) { return std::max(0.0, x); }},
    {Activation::kTanh, [](double x) { return std::tanh(x); }},
};

std::vector<float> ActivationInputs() {
  std::vector<float> x;
  for (double v = -30; v <= 30; v += 0.0017) x.push_back(static_cast<float>(v));
  for (const float v : {-1e30f, -200.0f, -88.5f, -0.0f, 0.0f, 1e-30f, 88.5f, 200.0f, 1e30f}) {
    x.push_back(v);
  }
  return x;
}

// The stated errors of Exp, Tanh and Erf (kernels_impl.h) are at most 5e-7 absolute on a factor
// bounded by 1; times x, plus the roundings of the product.
TEST_P(ElementwiseTest, ActivationsMatchFloat64) {
  for (const auto& [act, exact] : kActivations) {
    const std::vector<float> x = ActivationInputs();
    std::vector<float> y = x;
    const auto n = static_cast<int64_t>(x.size());
    ops.Activate(act, ViewOf(y, {1, n}), context);
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_NEAR(y[i], exact(x[i]), 6e-7 * std::max(1.0, std::abs(double{x[i]})))
          << "activation " << static_cast<int>(act) << " of " << x[i];
    }
  }
}

TEST_P(ElementwiseTest, TheTwoGelusAreToldApart) {
  // They differ by up to 4.7e-4: 800 times the tolerance above.
  double apart = 0;
  for (const float x : ActivationInputs()) {
    if (std::abs(x) < 30) apart = std::max(apart, std::abs(Gelu(x) - GeluTanh(x)));
  }
  EXPECT_GT(apart, 4e-4);
}

TEST_P(ElementwiseTest, ActivationsKeepNaN) {
  for (const auto& [act, exact] : kActivations) {
    std::vector<float> y(9, std::numeric_limits<float>::quiet_NaN());
    ops.Activate(act, ViewOf(y, {1, 9}), context);
    for (const float v : y) EXPECT_TRUE(std::isnan(v)) << static_cast<int>(act);
  }
}

TEST_P(ElementwiseTest, GatedActivationMultipliesTheHalves) {
  for (const int64_t f : {1, 8, 21, 1536}) {
    const int64_t rows = 7;
    const auto x = RandomNormal(rows * 2 * f, 13, 3.0f);
    std::vector<float> y(rows * f);
    ops.GatedActivation(Activation::kSilu, ViewOf(x, {rows, 2 * f}), ViewOf(y, {rows, f}), context);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < f; ++i) {
        const double gate = x[r * 2 * f + i], up = x[r * 2 * f + f + i];
        const double want = gate / (1 + std::exp(-gate)) * up;
        ASSERT_NEAR(y[r * f + i], want, 6e-7 * std::max(1.0, std::abs(gate)) * std::abs(up) + 1e-9);
      }
    }
  }
}

TEST_P(ElementwiseTest, AddAdds) {
  const auto x = RandomNormal(300 * 77, 14);
  auto y = RandomNormal(300 * 77, 15);
  const auto before = y;
  ops.Add(ViewOf(x, {300, 77}), ViewOf(y, {300, 77}), context);
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], before[i] + x[i]);
}

TEST(FindActivationTest, KnowsTheNamesOfTransformers) {
  EXPECT_EQ(FindActivation("silu"), Activation::kSilu);
  EXPECT_EQ(FindActivation("gelu"), Activation::kGelu);
  EXPECT_EQ(FindActivation("gelu_new"), Activation::kGeluTanh);
  EXPECT_EQ(FindActivation("gelu_pytorch_tanh"), Activation::kGeluTanh);
  EXPECT_EQ(FindActivation("relu"), Activation::kRelu);
  EXPECT_EQ(FindActivation("mish"), std::nullopt);
}

}  // namespace
}  // namespace assay
