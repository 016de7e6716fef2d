// The contract of every scheme (quant/scheme.h) over AllSchemes(), then what is special to each.
#include "quant/scheme.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "gtest/gtest.h"
#include "quant/schemes/schemes.h"
#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> DecodeAll(const QuantizedTensor& q) {
  std::vector<float> out(static_cast<size_t>(q.shape.elements()));
  EXPECT_OK(q.scheme->DecodeRows(q, 0, q.shape[0], std::span<float>(out)));
  return out;
}

// The largest |w - decode(encode(w))| that rounding to nearest allows.
double RoundingBound(const QuantizedTensor& q, int64_t row, float w) {
  // Half a step, and one f32 rounding each of scale, quotient and product: 4 eps |w|.
  if (q.scheme == &Int8ChannelScheme()) {
    return std::max(q.scales.data<float>()[row], FLT_MIN) * 0.5 + 4 * FLT_EPSILON * std::fabs(w);
  }
  // 8 bits of significand: half an ulp is at most 2^-8 |w|; below normal, half of 2^-133.
  if (q.scheme == &Bf16Scheme()) return std::fabs(w) * 0x1p-8 + 0x1p-134;
  return 0;
}

double Sqnr(const std::vector<float>& w, const std::vector<float>& decoded) {
  double signal = 0, noise = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    signal += static_cast<double>(w[i]) * w[i];
    noise += std::pow(static_cast<double>(w[i]) - decoded[i], 2);
  }
  return 10 * std::log10(signal / noise);
}

class EverySchemeTest : public testing::TestWithParam<const QuantScheme*> {
 protected:
  const QuantScheme& scheme() const { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(All, EverySchemeTest,
                         testing::ValuesIn(AllSchemes().begin(), AllSchemes().end()),
                         [](const auto& info) { return std::string(info.param->name()); });

TEST_P(EverySchemeTest, IsFoundByItsName) {
  EXPECT_THAT(FindScheme(scheme().name()), IsOkAndHolds(&scheme()));
}

TEST_P(EverySchemeTest, RoundTripsWithinHalfAStep) {
  for (const Shape shape : {Shape{1, 1}, Shape{3, 17}, Shape{16, 64}, Shape{5, 577}}) {
    for (const float stddev : {1e-3f, 1.0f, 1e4f}) {
      const std::vector<float> w = RandomNormal(shape.elements(), 7, stddev);
      const Tensor tensor = TensorOf(shape, w);
      ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, scheme().Encode(tensor.view()));
      EXPECT_EQ(q.scheme, &scheme());
      EXPECT_EQ(q.shape, shape);
      const std::vector<float> decoded = DecodeAll(q);
      for (int64_t i = 0; i < shape.elements(); ++i) {
        ASSERT_LE(std::fabs(w[i] - decoded[i]), RoundingBound(q, i / shape[1], w[i]))
            << "element " << i << " of " << ToString(shape);
      }
    }
  }
}

TEST_P(EverySchemeTest, RoundTripsTinyHugeAndZeroRows) {
  const std::vector<float> w = {0,      0,       0,        0,       // all zero
                                1e-45f, -2e-45f, 3e-44f,   0,       // subnormal
                                1e-37f, 1e-38f,  -5e-38f,  2e-38f,  // scale below normal
                                3e38f,  -1e38f,  FLT_MIN,  -3e38f,  // near the top
                                1.0f,   -1.0f,   0.49999f, 0.00001f};
  const Tensor tensor = TensorOf({5, 4}, w);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, scheme().Encode(tensor.view()));
  const std::vector<float> decoded = DecodeAll(q);
  for (size_t i = 0; i < w.size(); ++i) {
    EXPECT_LE(std::fabs(w[i] - decoded[i]), RoundingBound(q, static_cast<int64_t>(i / 4), w[i]))
        << i;
  }
  EXPECT_THAT(scheme().Inspect(q).defect, IsEmpty());
}

TEST_P(EverySchemeTest, EncodingWhatItDecodedChangesNothing) {
  const Tensor tensor = RandomTensor({9, 33}, 3);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor once, scheme().Encode(tensor.view()));
  const std::vector<float> first = DecodeAll(once);
  const Tensor again = TensorOf({9, 33}, first);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor twice, scheme().Encode(again.view()));
  const std::vector<float> second = DecodeAll(twice);
  for (size_t i = 0; i < first.size(); ++i) {
    // The scale is recomputed from its own multiple: one rounding away at most.
    EXPECT_NEAR(first[i], second[i], 2 * FLT_EPSILON * std::fabs(first[i])) << i;
  }
}

TEST_P(EverySchemeTest, DecodesAnyRangeOfRows) {
  const Tensor tensor = RandomTensor({7, 5}, 11);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, scheme().Encode(tensor.view()));
  const std::vector<float> all = DecodeAll(q);
  std::vector<float> part(3 * 5);
  ASSERT_OK(scheme().DecodeRows(q, 2, 3, std::span<float>(part)));
  EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + 2 * 5));
  EXPECT_OK(scheme().DecodeRows(q, 7, 0, {}));
}

TEST_P(EverySchemeTest, RefusesRowsOutsideTheWeight) {
  const Tensor tensor = RandomTensor({7, 5}, 11);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, scheme().Encode(tensor.view()));
  std::vector<float> out(2 * 5);
  for (const int64_t row : {int64_t{-1}, int64_t{6}, int64_t{1} << 62}) {
    EXPECT_THAT(scheme().DecodeRows(q, row, 2, std::span<float>(out)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(absl::StrCat("row=", row))));
  }
  EXPECT_THAT(scheme().DecodeRows(q, 0, 1, std::span<float>(out)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected=5")));
}

TEST_P(EverySchemeTest, RefusesTensorsOfAnotherLayout) {
  const Tensor tensor = RandomTensor({7, 5}, 11);
  ASSERT_OK_AND_ASSIGN(QuantizedTensor q, scheme().Encode(tensor.view()));
  q.shape = Shape{5, 7};
  EXPECT_THAT(scheme().DecodeRows(q, 0, 0, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[5,7]")));
}

TEST_P(EverySchemeTest, RefusesNaNAndInfinityNamingTheRow) {
  for (const float bad : {kNaN, kInfinity, -kInfinity}) {
    std::vector<float> w = RandomNormal(6 * 300, 5);
    w[4 * 300 + 299] = bad;
    const Tensor tensor = TensorOf({6, 300}, w);
    EXPECT_THAT(scheme().Encode(tensor.view()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("row=4 column=299")));
  }
}

TEST_P(EverySchemeTest, AcceptsMatricesOnly) {
  EXPECT_OK(scheme().Accepts({1, 1}));
  EXPECT_OK(scheme().Accepts({49152, 576}));
  for (const Shape shape : {Shape{}, Shape{4}, Shape{0, 4}, Shape{4, 0}, Shape{2, 2, 2}}) {
    EXPECT_THAT(scheme().Accepts(shape),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(ToString(shape))));
  }
}

TEST_P(EverySchemeTest, StoresTheBitsItClaims) {
  const Tensor tensor = RandomTensor({16, 96}, 2);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, scheme().Encode(tensor.view()));
  EXPECT_DOUBLE_EQ(static_cast<double>(q.bytes()) * 8 / (16 * 96),
                   scheme().bits_per_weight({16, 96}));
}

TEST_P(EverySchemeTest, InspectCountsZerosAndFindsNothingInGoodWeights) {
  std::vector<float> w = RandomNormal(8 * 64, 9);
  std::fill_n(w.begin() + 64, 64, 0.0f);  // one row of eight, valid
  const Tensor tensor = TensorOf({8, 64}, w);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, scheme().Encode(tensor.view()));
  const IntegrityFinding finding = scheme().Inspect(q);
  EXPECT_THAT(finding.defect, IsEmpty());
  EXPECT_GE(finding.zero_fraction, 1.0 / 8);
  EXPECT_LE(finding.zero_fraction, 1.0 / 8 + 0.03);  // int8 rounds ~1 % of a Gaussian to zero
}

TEST(SchemeListTest, NamesAreStable) {
  std::vector<std::string> names;
  for (const QuantScheme* scheme : AllSchemes()) names.emplace_back(scheme->name());
  EXPECT_THAT(names, testing::ElementsAre("f32", "bf16", "int8_channel"));
}

TEST_P(EverySchemeTest, NearestColumnIsEncodeOnAndDecode) {
  const int64_t n = 13, k = 70;
  const Tensor fitted = RandomTensor({n, k}, 21), other = RandomTensor({n, k}, 22);
  ASSERT_OK_AND_ASSIGN(QuantizedTensor grid, scheme().Fit(fitted.view(), {}));
  std::vector<std::vector<float>> columns(k, std::vector<float>(n));
  for (int64_t i = 0; i < k; ++i) {
    std::vector<float> column(n);
    for (int64_t r = 0; r < n; ++r) column[r] = 1.5f * other.data<float>()[r * k + i];
    scheme().NearestColumn(grid, i, column, std::span<float>(columns[i]));
  }
  std::vector<float> wide(other.data<float>(), other.data<float>() + n * k);
  for (float& v : wide) v *= 1.5f;  // beyond the grid's range, too
  const Tensor tensor = TensorOf({n, k}, wide);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, scheme().EncodeOn(tensor.view(), std::move(grid)));
  const std::vector<float> decoded = DecodeAll(q);
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t i = 0; i < k; ++i) ASSERT_EQ(columns[i][r], decoded[r * k + i]) << r << "," << i;
  }
}

TEST_P(EverySchemeTest, ShrinkKeepsAPartOfTheRangeOrIsRefused) {
  const int64_t n = 4, k = 64;
  const Tensor tensor = RandomTensor({n, k}, 23);
  const int64_t groups = n * ((k + scheme().group({n, k}) - 1) / scheme().group({n, k}));
  const std::vector<float> half(static_cast<size_t>(groups), 0.5f);
  absl::StatusOr<QuantizedTensor> fitted = scheme().Fit(tensor.view(), {.shrink = half});
  if (!fitted.ok()) {
    EXPECT_THAT(fitted, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("clipped")));
    return;
  }
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor whole, scheme().Encode(tensor.view()));
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor clipped,
                       scheme().EncodeOn(tensor.view(), *std::move(fitted)));
  const std::vector<float> a = DecodeAll(whole), b = DecodeAll(clipped);
  const float most_whole = std::fabs(*std::max_element(
      a.begin(), a.end(), [](float x, float y) { return std::fabs(x) < std::fabs(y); }));
  const float most_clipped = std::fabs(*std::max_element(
      b.begin(), b.end(), [](float x, float y) { return std::fabs(x) < std::fabs(y); }));
  EXPECT_NEAR(most_clipped, most_whole / 2, most_whole / 10);
  const std::vector<float> bad(static_cast<size_t>(groups), 1.5f);
  EXPECT_THAT(scheme().Fit(tensor.view(), {.shrink = bad}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1.5")));
  EXPECT_THAT(scheme().Fit(tensor.view(), {.shrink = std::span(half).first(1)}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("shrink=1")));
}

TEST(SchemeListTest, OptionsAreCheckedByTheFamily) {
  EXPECT_THAT(
      FindScheme("int8_channel:g32"),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("int8_channel:g32: unknown option \"g32\"; int8_channel takes no")));
  EXPECT_EQ(FindScheme("f32").value(), FindScheme("f32").value());
}

TEST(SchemeListTest, FindListsTheNamesThatExist) {
  EXPECT_THAT(FindScheme("int9"), StatusIs(absl::StatusCode::kNotFound,
                                           HasSubstr("int9; known: f32, bf16, int8_channel")));
}

TEST(ActivationModeTest, NamesRoundTrip) {
  for (const ActivationMode mode : {ActivationMode::kA16, ActivationMode::kA8Token}) {
    EXPECT_EQ(FindActivationMode(Name(mode)), mode);
  }
  EXPECT_EQ(FindActivationMode("a9"), std::nullopt);
}

TEST(Bf16SchemeTest, RefusesWhatRoundsToInfinity) {
  const Tensor tensor = TensorOf({1, 2}, {1.0f, FLT_MAX});
  EXPECT_THAT(Bf16Scheme().Encode(tensor.view()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("row=0 column=1")));
}

TEST(FloatSchemesTest, InspectNamesTheRowOfANaN) {
  const Tensor tensor = RandomTensor({4, 8}, 1);
  ASSERT_OK_AND_ASSIGN(QuantizedTensor f32, F32Scheme().Encode(tensor.view()));
  f32.codes.data<float>()[2 * 8 + 3] = kNaN;
  EXPECT_EQ(F32Scheme().Inspect(f32).defect, "weight is NaN or infinite: row=2");
  ASSERT_OK_AND_ASSIGN(QuantizedTensor bf16, Bf16Scheme().Encode(tensor.view()));
  bf16.codes.data<uint16_t>()[3 * 8] = F32ToBf16(kInfinity);
  EXPECT_EQ(Bf16Scheme().Inspect(bf16).defect, "weight is NaN or infinite: row=3");
}

// Oracle: an independent numpy experiment on i.i.d. Gaussian weights gave 41.22 dB.
TEST(Int8ChannelTest, GaussianRowsReachTheExpectedSqnr) {
  const std::vector<float> w = RandomNormal(256 * 4096, 1);
  const Tensor tensor = TensorOf({256, 4096}, w);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, Int8ChannelScheme().Encode(tensor.view()));
  EXPECT_NEAR(Sqnr(w, DecodeAll(q)), 41.22, 0.1);
}

// The sibling of the oracle: rounding towards zero costs 6 dB and must be seen.
TEST(Int8ChannelTest, TheSqnrOracleSeesTruncation) {
  const std::vector<float> w = RandomNormal(256 * 4096, 1);
  const Tensor tensor = TensorOf({256, 4096}, w);
  ASSERT_OK_AND_ASSIGN(QuantizedTensor q, Int8ChannelScheme().Encode(tensor.view()));
  for (int64_t i = 0; i < q.shape.elements(); ++i) {
    q.codes.data<int8_t>()[i] = static_cast<int8_t>(w[i] / q.scales.data<float>()[i / q.shape[1]]);
  }
  EXPECT_LT(Sqnr(w, DecodeAll(q)), 41.22 - 3);
}

TEST(Int8ChannelTest, RoundsHalfToEvenWithinPlusMinus127) {
  // absmax 127 makes the scale exactly 1.
  const Tensor tensor = TensorOf({1, 8}, {127, -127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f});
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, Int8ChannelScheme().Encode(tensor.view()));
  EXPECT_EQ(q.scales.data<float>()[0], 1.0f);
  const std::vector<int8_t> codes(q.codes.data<int8_t>(), q.codes.data<int8_t>() + 8);
  EXPECT_THAT(codes, testing::ElementsAre(127, -127, 0, 2, 2, 0, -2, -2));
}

TEST(Int8ChannelTest, InspectFindsEachDefectAndNamesTheRow) {
  struct Case {
    const char* defect;
    void (*sabotage)(QuantizedTensor& q);
  };
  const Case cases[] = {
      {"scale is NaN: row=3", [](QuantizedTensor& q) { q.scales.data<float>()[3] = kNaN; }},
      {"scale is infinite: row=3",
       [](QuantizedTensor& q) { q.scales.data<float>()[3] = kInfinity; }},
      {"scale is negative: row=3", [](QuantizedTensor& q) { q.scales.data<float>()[3] *= -1; }},
      {"scale is zero but codes are not: row=3",
       [](QuantizedTensor& q) { q.scales.data<float>()[3] = 0; }},
      {"all codes are zero but the scale is not: row=3",
       [](QuantizedTensor& q) { std::fill_n(q.codes.data<int8_t>() + 3 * 64, 64, 0); }},
      {"all codes of the row are equal: row=3",
       [](QuantizedTensor& q) { std::fill_n(q.codes.data<int8_t>() + 3 * 64, 64, 127); }},
      {"code -128 is outside [-127, 127]: row=3",
       [](QuantizedTensor& q) { q.codes.data<int8_t>()[3 * 64 + 1] = -128; }},
  };
  const Tensor tensor = RandomTensor({5, 64}, 4);
  for (const Case& c : cases) {
    ASSERT_OK_AND_ASSIGN(QuantizedTensor q, Int8ChannelScheme().Encode(tensor.view()));
    EXPECT_THAT(Int8ChannelScheme().Inspect(q).defect, IsEmpty());
    c.sabotage(q);
    EXPECT_EQ(Int8ChannelScheme().Inspect(q).defect, c.defect);
  }
}

TEST(Int8ChannelTest, InspectMeasuresSaturation) {
  // One code in eight at an end of the range: +1 and -1 in rows of sixteen.
  std::vector<float> w(2 * 16, 0.25f);
  w[0] = 1, w[15] = -1, w[16] = -1, w[31] = 1;
  const Tensor tensor = TensorOf({2, 16}, w);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, Int8ChannelScheme().Encode(tensor.view()));
  EXPECT_DOUBLE_EQ(Int8ChannelScheme().Inspect(q).saturated_fraction, 4.0 / 32);
}

}  // namespace
}  // namespace assay
