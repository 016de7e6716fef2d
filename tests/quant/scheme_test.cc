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
#include "tests/support/scheme_testing.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The largest |w - decode(encode(w))| that rounding to nearest allows, where codes have no fixed
// width: half a step and a rounding each of scale, quotient and product; half an ulp of bf16 (below
// normal, half of 2^-133); nothing.
double RoundingBound(const QuantizedTensor& q, int64_t row, float w) {
  if (!q.scales.empty()) {
    return std::max(q.scales.data<float>()[row], FLT_MIN) * 0.5 + 4 * FLT_EPSILON * std::fabs(w);
  }
  if (q.scheme == &Bf16Scheme()) return std::fabs(w) * 0x1p-8 + 0x1p-134;
  return 0;
}

// What each code would mean in the place of each weight, [codes][n * k]; codes that no encoder
// writes are left out.
std::vector<std::vector<float>> ValuesOfAllCodes(const Tensor& w, const QuantScheme& scheme) {
  std::vector<std::vector<float>> values;
  QuantizedTensor q = scheme.Encode(w.view()).value();
  for (int code = 0; code < 1 << CodeBits(q); ++code) {
    for (int64_t row = 0; row < q.shape[0]; ++row) FillRow(q, row, code);
    if (scheme.Inspect(q).defect.rfind("code ", 0) == 0) continue;
    values.push_back(DecodeAll(q));
  }
  return values;
}

// torchao's tinygemm rounds the lower end of a group to bf16 before it rounds the weight.
double AllowedSlack(const QuantScheme& scheme, double largest) {
  return scheme.name().find("float") == std::string_view::npos ? 0 : 0x1p-7 * largest;
}

// Of all values that the codes of its block can mean, each weight got the nearest.
void ExpectNearest(const Tensor& tensor, const QuantScheme& scheme) {
  const QuantizedTensor q = scheme.Encode(tensor.view()).value();
  const std::vector<float> decoded = DecodeAll(q);
  const std::vector<std::vector<float>> values =
      CodeBits(q) == 0 ? std::vector<std::vector<float>>() : ValuesOfAllCodes(tensor, scheme);
  const float* w = tensor.data<float>();
  const int64_t k = q.shape[1];
  for (int64_t i = 0; i < q.shape.elements(); ++i) {
    const double error = std::fabs(static_cast<double>(w[i]) - decoded[i]);
    if (values.empty()) {
      ASSERT_LE(error, RoundingBound(q, i / k, w[i])) << "element " << i;
      continue;
    }
    double least = INFINITY, largest = 0;
    for (const std::vector<float>& value : values) {
      least = std::min(least, std::fabs(static_cast<double>(w[i]) - value[i]));
      largest = std::max(largest, std::fabs(static_cast<double>(value[i])));
    }
    // Near a tie the f32 rounding of the quotient decides: 4 eps of the largest value.
    ASSERT_LE(error, least + 4 * FLT_EPSILON * largest + AllowedSlack(scheme, largest) + FLT_MIN)
        << "element " << i << " w=" << w[i] << " decoded=" << decoded[i];
  }
}

class EverySchemeTest : public testing::TestWithParam<const QuantScheme*> {
 protected:
  const QuantScheme& scheme() const { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(All, EverySchemeTest,
                         testing::ValuesIn(AllSchemes().begin(), AllSchemes().end()),
                         [](const auto& info) { return TestName(info.param->name()); });

TEST_P(EverySchemeTest, IsFoundByItsName) {
  EXPECT_THAT(FindScheme(scheme().name()), IsOkAndHolds(&scheme()));
}

TEST_P(EverySchemeTest, RoundsEachWeightToTheNearestValue) {
  for (const Shape shape : {Shape{1, 8}, Shape{3, 24}, Shape{16, 64}, Shape{3, 584}}) {
    for (const float stddev : {1e-3f, 1.0f, 1e4f}) {
      ExpectNearest(RandomTensor(shape, 7, stddev), scheme());
    }
  }
}

TEST_P(EverySchemeTest, RoundTripsTinyHugeAndZeroRows) {
  const float rows[5][4] = {{0, 0, 0, 0},                       // all zero
                            {1e-45f, -2e-45f, 3e-44f, 0},       // subnormal
                            {1e-37f, 1e-38f, -5e-38f, 2e-38f},  // scale below normal
                            {3e38f, -1e38f, FLT_MIN, -3e38f},   // near the top
                            {1.0f, -1.0f, 0.49999f, 0.00001f}};
  std::vector<float> w;
  for (const auto& row : rows) {
    for (int i = 0; i < 8; ++i) w.push_back(row[i % 4]);
  }
  const Tensor tensor = TensorOf({5, 8}, w);
  ExpectNearest(tensor, scheme());
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, scheme().Encode(tensor.view()));
  EXPECT_THAT(scheme().Inspect(q).defect, IsEmpty());
  for (const float decoded : DecodeAll(q)) EXPECT_TRUE(std::isfinite(decoded));
}

TEST_P(EverySchemeTest, OddWidthsKeepEveryColumn) {
  for (const Shape shape : {Shape{1, 1}, Shape{3, 17}, Shape{5, 577}, Shape{130, 131}}) {
    const Tensor tensor = RandomTensor(shape, 8);
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, scheme().Encode(tensor.view()));
    EXPECT_EQ(q.scheme, &scheme());
    EXPECT_EQ(q.shape, shape);
    const std::vector<float> decoded = DecodeAll(q);
    for (int64_t i = 0; i < shape.elements(); ++i) {
      // The coarsest here is mxfp4 at its end: what is just below 8 units becomes 6, a quarter of
      // the largest magnitude, itself below 5.
      ASSERT_NEAR(tensor.data<float>()[i], decoded[i], 1.25) << i;
    }
  }
}

TEST_P(EverySchemeTest, ValuesOfTheGridStayWhatTheyAre) {
  const Tensor tensor = RandomTensor({9, 133}, 3);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor once, scheme().Encode(tensor.view()));
  const std::vector<float> first = DecodeAll(once);
  ASSERT_OK_AND_ASSIGN(QuantizedTensor grid, scheme().Fit(tensor.view(), {}));
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor twice,
                       scheme().EncodeOn(TensorOf({9, 133}, first).view(), std::move(grid)));
  EXPECT_EQ(first, DecodeAll(twice));
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
  for (const Shape shape : {Shape{16, 96}, Shape{5, 577}, Shape{64, 1024}}) {
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, scheme().Encode(RandomTensor(shape, 2).view()));
    const double stored =
        static_cast<double>(q.bytes()) * 8 / static_cast<double>(shape.elements());
    if (q.extra.count("code_lengths") == 0) {
      EXPECT_DOUBLE_EQ(stored, scheme().bits_per_weight(shape)) << ToString(shape);
    } else {
      // Codes of variable length: what is claimed is the entropy of a large Gaussian weight. A row
      // of 96 has its 99 % quantile at random, +-15 %: +-0.2 bits.
      EXPECT_NEAR(stored, scheme().bits_per_weight(shape), shape[1] < 1000 ? 0.3 : 0.06);
    }
  }
}

TEST_P(EverySchemeTest, InspectCountsZerosAndFindsNothingInGoodWeights) {
  std::vector<float> w = RandomNormal(8 * 64, 9);
  std::fill_n(w.begin() + 64, 64, 0.0f);  // one row of eight, valid
  const Tensor tensor = TensorOf({8, 64}, w);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, scheme().Encode(tensor.view()));
  const IntegrityFinding finding = scheme().Inspect(q);
  EXPECT_THAT(finding.defect, IsEmpty());
  const std::vector<float> decoded = DecodeAll(q);
  EXPECT_DOUBLE_EQ(
      finding.zero_fraction,
      static_cast<double>(std::count(decoded.begin(), decoded.end(), 0.0f)) / (8 * 64));
  EXPECT_GE(finding.zero_fraction, 1.0 / 8);
  EXPECT_LE(finding.saturated_fraction, 0.2);
}

TEST(SchemeListTest, NamesAreStable) {
  std::vector<std::string> names;
  for (const QuantScheme* scheme : AllSchemes()) names.emplace_back(scheme->name());
  EXPECT_THAT(names,
              testing::ElementsAre(
                  "f32", "bf16", "int8_channel", "int8_group", "int8_group:g32", "int8_group:asym",
                  "int8_sparse", "int8_sparse:f10", "fp8_e4m3", "fp8_e4m3:tensor", "fp8_e4m3:block",
                  "fp8_e5m2", "int4_group", "int4_group:g32", "int4_group:row", "int4_group:asym",
                  "int4_group:g32,asym", "int4_group:float", "int4_group:full",
                  "int4_group:signed_max", "int4_group:g32,signed_max", "w4a8", "nf4", "nf4:double",
                  "fp4", "fp4:double", "mxfp4", "nvfp4", "int3_group", "int3_group:asym"));
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
  for (const char* bad : {"int4_group:g48", "int4_group:g32,g64", "int4_group:sym,asym",
                          "int8_group:row", "int8_group:float", "nf4:b48", "nf4:double,double",
                          "nf4:b8192", "fp8_e4m3:row", "fp8_e4m3:tensor,block", "mxfp4:b16",
                          "w4a8:asym", "int8_sparse:f3", "int8_sparse:f1,f2", "int3_group:"}) {
    EXPECT_THAT(FindScheme(bad), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("option")))
        << bad;
  }
}

TEST(SchemeListTest, SpellingsHaveOneCanonicalForm) {
  const std::pair<const char*, const char*> cases[] = {
      {"int4_group:asym,g32", "int4_group:g32,asym"},
      {"int4_group:g128,sym", "int4_group"},
      {"int4_group:row", "int4_group:row"},
      {"int8_group:g64,sym", "int8_group:g64"},
      {"nf4:double,b64", "nf4:double"},
      {"nf4:double,b4096", "nf4:b4096,double"},
      {"fp8_e5m2:channel", "fp8_e5m2"},
      {"int8_sparse:f1", "int8_sparse"},
      {"w4a8:g128", "w4a8"}};
  for (const auto& [spelling, canonical] : cases) {
    ASSERT_OK_AND_ASSIGN(const QuantScheme* scheme, FindScheme(spelling));
    EXPECT_EQ(scheme->name(), canonical);
    EXPECT_EQ(FindScheme(canonical).value(), scheme);
  }
}

TEST(SchemeListTest, GroupsAreWhatTheSpellingSays) {
  EXPECT_EQ(FindScheme("int4_group:g32").value()->group({8, 256}), 32);
  EXPECT_EQ(FindScheme("int4_group:row").value()->group({8, 256}), 256);
  EXPECT_EQ(FindScheme("int8_group").value()->group({8, 70}), 70);
  EXPECT_EQ(FindScheme("fp8_e4m3:block").value()->group({8, 256}), 128);
  EXPECT_EQ(FindScheme("fp8_e4m3:tensor").value()->group({8, 256}), 256);
  EXPECT_EQ(FindScheme("nvfp4").value()->group({8, 256}), 16);
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

// What a scheme says in integers is what it decodes to.
TEST(IntegerRowsTest, AreTheSchemesDecode) {
  int with_integers = 0;
  for (const QuantScheme* scheme : AllSchemes()) {
    const int64_t n = 19, k = 261;
    const Tensor weights = RandomTensor({n, k}, 3);
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor w, scheme->Encode(weights.view()));
    const int64_t group = scheme->group(w.shape), groups = (k + group - 1) / group;
    std::vector<int8_t> codes(static_cast<size_t>(7 * k));
    std::vector<uint16_t> steps(static_cast<size_t>(7 * groups));
    std::vector<float> scales(7), decoded(codes.size());
    const IntegerRows rows = {codes, steps, scales};
    if (!scheme->has_integers()) {
      EXPECT_THAT(scheme->ReadIntegers(w, 5, 7, rows),
                  StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("integers")));
      continue;
    }
    ++with_integers;
    ASSERT_OK(scheme->ReadIntegers(w, 5, 7, rows)) << scheme->name();
    ASSERT_OK(scheme->DecodeRows(w, 5, 7, std::span<float>(decoded)));
    for (int64_t i = 0; i < 7 * k; ++i) {
      const float step = Bf16ToF32(steps[i / k * groups + i % k / group]);
      ASSERT_EQ(static_cast<float>(codes[i]) * step * scales[i / k], decoded[i])
          << scheme->name() << " element " << i;
    }
    EXPECT_THAT(scheme->ReadIntegers(w, 13, 7, rows),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("row=13")));
    EXPECT_THAT(scheme->ReadIntegers(w, 5, 7, {codes, steps, std::span(scales).first(6)}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("row_scales=6")));
  }
  EXPECT_GE(with_integers, 10);  // families of integers in their spellings
}

}  // namespace
}  // namespace assay
