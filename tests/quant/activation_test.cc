// Activation modes by their definitions (quant/activation.h), by hand and against NumPy-like loops.
#include "quant/activation.h"

#include <cmath>
#include <limits>

#include "base/float8.h"
#include "base/thread_pool.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "quant/kernels/a8_token.h"
#include "quant/linear.h"
#include "quant/schemes/schemes.h"
#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Row {
  float scale;
  std::vector<int16_t> codes;
};
Row Quantize(ActivationMode mode, const ActivationParams& params, const std::vector<float>& x,
             bool decode = false) {
  Row row{0, std::vector<int16_t>(x.size())};
  row.scale = QuantizeRow(mode, params, {decode}, x, row.codes);
  return row;
}

std::vector<float> Represent(ActivationMode mode, const ActivationParams& params,
                             const std::vector<float>& x) {
  std::vector<int16_t> codes(x.size());
  std::vector<float> out(x.size());
  RepresentRow(mode, params, {}, x, codes, out);
  return out;
}

TEST(ActivationTest, A8TokenIsTheKernelsDefinition) {
  const std::vector<float> x = RandomNormal(577, 3);
  std::vector<int8_t> codes(x.size());
  const float scale = QuantizeA8Token(x.data(), 577, codes.data());
  const Row row = Quantize(ActivationMode::kA8Token, {}, x);
  EXPECT_EQ(row.scale, scale);
  EXPECT_TRUE(std::equal(codes.begin(), codes.end(), row.codes.begin()));
}

TEST(ActivationTest, A8TensorClampsAroundItsZeroPoint) {
  const ActivationParams params = {.scale = 0.5f, .zero = -28};
  // rint(x / 0.5) - 28 in [-128, 127]: x / 0.5 in [-100, 155].
  const Row row = Quantize(ActivationMode::kA8Tensor, params, {0, 0.25f, 0.75f, 1, 77.5f, 78, -60});
  EXPECT_EQ(row.scale, 0.5f);
  EXPECT_THAT(row.codes, ElementsAre(0, 0, 2, 2, 155, 155, -100));
}

// Up to the ends of the range a value is off by half a step at most; beyond it is cut off.
TEST(ActivationTest, TheStaticRangeIsWhereNothingIsCutOff) {
  const ActivationParams params = {.scale = 0.5f, .zero = -28};
  const StaticRange range = *StaticRangeOf(ActivationMode::kA8Tensor, params);
  EXPECT_EQ(StaticRangeOf(ActivationMode::kA8Mix, params)->low, range.low);
  const std::vector<float> x = {range.low, range.high, range.low - 0.01f, range.high + 0.01f};
  const std::vector<float> seen = Represent(ActivationMode::kA8Tensor, params, x);
  EXPECT_LE(std::abs(seen[0] - x[0]), 0.25f);
  EXPECT_LE(std::abs(seen[1] - x[1]), 0.25f);
  EXPECT_GT(std::abs(seen[2] - x[2]), 0.25f);
  EXPECT_GT(std::abs(seen[3] - x[3]), 0.25f);
  EXPECT_EQ(StaticRangeOf(ActivationMode::kFp8Tensor, params)->high, 224.0f);  // 448 * 0.5
  for (const ActivationMode mode : {ActivationMode::kA16, ActivationMode::kA8Token,
                                    ActivationMode::kFp8Token, ActivationMode::kInt8Outlier})
    EXPECT_FALSE(StaticRangeOf(mode, params).has_value());
}

TEST(ActivationTest, A8MixChangesWithThePhase) {
  const ActivationParams params = {.scale = 0.5f, .zero = 0};
  const std::vector<float> x = {1, -2, 0.1f};
  EXPECT_THAT(Quantize(ActivationMode::kA8Mix, params, x, false).codes, ElementsAre(64, -127, 6));
  EXPECT_THAT(Quantize(ActivationMode::kA8Mix, params, x, true).codes, ElementsAre(2, -4, 0));
}

TEST(ActivationTest, OutlierColumnsDoNotSetTheScale) {
  const ActivationParams params = {.outliers = {0, 2}};
  const std::vector<float> x = {1000, 1.27f, -500, 0.1f};
  const Row row = Quantize(ActivationMode::kInt8Outlier, params, x);
  EXPECT_FLOAT_EQ(row.scale, 0.01f);
  EXPECT_THAT(row.codes, ElementsAre(0, 127, 0, 10));
  std::vector<int16_t> codes(4);
  std::vector<float> seen(4);
  RepresentRow(ActivationMode::kInt8Outlier, params, {}, x, codes, seen);
  EXPECT_EQ(seen[0], 1000);
  EXPECT_EQ(seen[2], -500);
}

TEST(ActivationTest, A4TokenClipsAndRoundsHalfToEven) {
  EXPECT_THAT(Quantize(ActivationMode::kA4Token, {}, {7, -7, 0.5f, 1.5f, 2.5f}).codes,
              ElementsAre(7, -7, 0, 2, 2));
  const Row clipped = Quantize(ActivationMode::kA4Token, {.clip = 0.5f}, {14, -3, 1});
  EXPECT_EQ(clipped.scale, 1);
  EXPECT_THAT(clipped.codes, ElementsAre(7, -3, 1));
}

TEST(ActivationTest, ABrokenRowStaysVisible) {
  for (const ActivationMode mode : kActivationModes) {
    if (!HasIntegerCodes(mode)) continue;
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      EXPECT_TRUE(std::isnan(Quantize(mode, {.scale = 0.1f}, {1, bad, 2}).scale)) << Name(mode);
    }
    EXPECT_THAT(Quantize(mode, {.scale = 0.1f}, {0, -0.0f, 1e-40f}).codes, ElementsAre(0, 0, 0));
  }
}

// A row whose absmax is 448 has scale 1: every value of E4M3, both neighbours of each middle
// between two values, and each middle, through the codes of base/float8.h.
TEST(Fp8ActivationTest, RoundsAsTheCodesDo) {
  std::vector<float> x = {448};
  for (int code = 0; code < 0x7e; ++code) {
    const float value = kE4M3Values[code], middle = (value + kE4M3Values[code + 1]) / 2;
    for (const float v :
         {value, std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 500.0f)}) {
      x.push_back(v);
      x.push_back(-v);
    }
  }
  const std::vector<float> seen = Represent(ActivationMode::kFp8Token, {}, x);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(seen[i], E4M3ToF32(F32ToE4M3(x[i]))) << x[i];
}

TEST(Fp8ActivationTest, ScalesByRowOrBlockOrCalibration) {
  std::vector<float> x(200, 0.0f);
  x[0] = 896;
  x[1] = 34;  // 17 at scale 2: a tie between 16 and 18
  x[130] = 0.44f;
  x[131] = 0.017f;
  const std::vector<float> row = Represent(ActivationMode::kFp8Token, {}, x);
  EXPECT_EQ(row[0], 896);
  EXPECT_EQ(row[1], 32);
  EXPECT_EQ(row[130], 2 * E4M3ToF32(F32ToE4M3(0.22f)));
  const std::vector<float> block = Represent(ActivationMode::kFp8Block, {}, x);
  EXPECT_EQ(block[1], 32);
  EXPECT_FLOAT_EQ(block[130], 0.44f);  // the largest of its block
  EXPECT_NEAR(block[131], 0.017f, 0.017f / 16);
  EXPECT_NE(row[131], block[131]);
  const std::vector<float> tensor = Represent(ActivationMode::kFp8Tensor, {.scale = 0.5f}, x);
  EXPECT_EQ(tensor[0], 224);  // saturates
  EXPECT_EQ(tensor[1], 32);   // 68: a tie between 64 and 72
}

TEST(Fp8ActivationTest, ABrokenRowStaysVisibleAndZeroStaysZero) {
  for (const ActivationMode mode : kActivationModes) {
    if (!HasFp8Codes(mode)) continue;
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> x(300, 1.0f);
      x[290] = bad;
      for (const float seen : Represent(mode, {.scale = 0.1f}, x)) EXPECT_TRUE(std::isnan(seen));
    }
    EXPECT_THAT(Represent(mode, {.scale = 0.1f}, {0, -0.0f, 1e-40f}), ElementsAre(0, 0, 0));
  }
}

TEST(ActivationParamsTest, SurviveTheirTensors) {
  const Tensor weights = RandomTensor({4, 40}, 1);
  for (const ActivationMode mode : kActivationModes) {
    ASSERT_OK_AND_ASSIGN(QuantizedTensor w, Int8ChannelScheme().Encode(weights.view()));
    const ActivationParams params = {
        .scale = 0.25f, .zero = -3, .outliers = {0, 17, 39}, .clip = 0.875f};
    ASSERT_OK(WriteActivationParams(params, mode, w));
    ASSERT_OK_AND_ASSIGN(const ActivationParams read, ReadActivationParams(w, mode));
    const std::vector<float> x = RandomNormal(40, 2);
    if (mode == ActivationMode::kFp8Tensor) {
      EXPECT_EQ(Represent(mode, params, x), Represent(mode, read, x));
      EXPECT_FALSE(w.extra.contains("x_zero"));
    }
    if (!HasIntegerCodes(mode) || mode == ActivationMode::kA8Token) continue;
    const Row a = Quantize(mode, params, x, true), b = Quantize(mode, read, x, true);
    EXPECT_EQ(a.codes, b.codes) << Name(mode);
  }
}

TEST(ActivationParamsTest, MissingOrWrongTensorsAreNamed) {
  const Tensor weights = RandomTensor({4, 40}, 1);
  ASSERT_OK_AND_ASSIGN(QuantizedTensor w, Int8ChannelScheme().Encode(weights.view()));
  EXPECT_THAT(ReadActivationParams(w, ActivationMode::kA8Tensor),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("a8_tensor needs x_scale: absent; was the model calibrated?")));
  const auto with = [&](const ActivationParams& params, ActivationMode mode) {
    EXPECT_OK(WriteActivationParams(params, mode, w));
    return ReadActivationParams(w, mode).status();
  };
  EXPECT_THAT(with({.scale = -1}, ActivationMode::kA8Mix),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not -1")));
  EXPECT_THAT(with({.scale = 1, .zero = 128}, ActivationMode::kA8Mix),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not 128")));
  EXPECT_THAT(with({.outliers = {3, 3}}, ActivationMode::kInt8Outlier),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("below 40, not 3")));
  EXPECT_THAT(with({.outliers = {40}}, ActivationMode::kInt8Outlier),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("below 40, not 40")));
  EXPECT_THAT(with({.scale = 0}, ActivationMode::kFp8Tensor),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("fp8_tensor needs x_scale")));
  EXPECT_THAT(with({.clip = 0}, ActivationMode::kA4Token),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not 0")));
  EXPECT_THAT(QuantizedLinear::Create(w, Tensor(), {.activation = ActivationMode::kA4Token}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("x_clip")));
}

// Rows of prefill and of decode in one batch get what each gets alone.
TEST(ActivationPhaseTest, RowsOfBothPhasesShareABatch) {
  const int64_t n = 24, k = 64, m = 40;
  const Tensor weights = RandomTensor({n, k}, 1), x = RandomTensor({m, k}, 2);
  ASSERT_OK_AND_ASSIGN(QuantizedTensor w, Int8ChannelScheme().Encode(weights.view()));
  ASSERT_OK(WriteActivationParams({.scale = 0.03f, .zero = 11}, ActivationMode::kA8Mix, w));
  ThreadPool pool({.num_threads = 2});
  for (const char* kernel : {"", "decoded_f32", "reference"}) {
    ASSERT_OK_AND_ASSIGN(
        const QuantizedLinear linear,
        QuantizedLinear::Create(w, Tensor(),
                                {.activation = ActivationMode::kA8Mix, .kernel = kernel}));
    Arena arena = *Arena::Create(CpuDevice(), linear.scratch_bytes(m));
    const auto run = [&](const std::vector<uint8_t>& phases) {
      ComputeContext context = {pool, arena, phases.data()};
      std::vector<float> y(static_cast<size_t>(m * n));
      linear.Forward(x.view(),
                     {reinterpret_cast<std::byte*>(y.data()), {m, n}, DType::kF32, nullptr},
                     context);
      return y;
    };
    std::vector<uint8_t> mixed(m);
    for (int64_t r = 0; r < m; ++r) mixed[r] = r % 3 == 0;
    const std::vector<float> prefill = run(std::vector<uint8_t>(m, 0)),
                             decode = run(std::vector<uint8_t>(m, 1)), both = run(mixed);
    EXPECT_NE(prefill, decode);
    for (int64_t r = 0; r < m; ++r) {
      const std::vector<float>& expected = mixed[r] != 0 ? decode : prefill;
      EXPECT_TRUE(
          std::equal(both.begin() + r * n, both.begin() + (r + 1) * n, expected.begin() + r * n))
          << kernel << " row " << r;
    }
  }
}

TEST(ActivationQuantizationTest, FollowsItsDefinition) {
  std::vector<int8_t> codes(5);
  const std::vector<float> x = {127, -127, 0.5f, 1.5f, -2.5f};
  EXPECT_EQ(QuantizeA8Token(x.data(), 5, codes.data()), 1.0f);
  EXPECT_THAT(codes, testing::ElementsAre(127, -127, 0, 2, -2));
  const std::vector<float> zero(5, -0.0f);
  EXPECT_EQ(QuantizeA8Token(zero.data(), 5, codes.data()), 0.0f);
  EXPECT_THAT(codes, testing::Each(0));
  const std::vector<float> tiny(5, 1e-40f);
  EXPECT_EQ(QuantizeA8Token(tiny.data(), 5, codes.data()), 0.0f);
  std::vector<float> bad = x;
  bad[2] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(QuantizeA8Token(bad.data(), 5, codes.data())));
  EXPECT_THAT(codes, testing::Each(0));
}

}  // namespace
}  // namespace assay
