// Bit for bit what the CPU makes: activations as quant/activation.cc, weights as their scheme's
// Encode.
#include "quant/kernels/cuda/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "quant/activation.h"
#include "quant/kernels/a8_token.h"
#include "tests/quant/kernels/cuda/device_weight.h"
#include "tests/support/scheme_testing.h"

namespace assay::ASSAY_WORLD {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint32_t Bits(float v) { return std::bit_cast<uint32_t>(v); }
// NaNs alike.
uint32_t Comparable(float v) { return std::isnan(v) ? 0x7fc00000u : Bits(v); }

// Rows of all sizes; of what T can hold, so that its conversion to f32 is exact.
template <typename T>
std::vector<float> Rows(int rows, int k, bool finite) {
  std::vector<float> out = RandomNormal(static_cast<int64_t>(rows) * k, 11);
  const float factors[] = {1, 0, 1e-30f, 3e4f, 6e-5f, 1e-38f, 1e-42f, 0x1p-119f, 1e38f, 2e-39f};
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < k; ++i) {
      float& v = out[static_cast<size_t>(row) * k + i];
      v = ToFloat(FromFloat<T>(std::clamp(v, -3.3f, 3.3f) * factors[row % 10]));
      if (finite && !std::isfinite(v)) v = 1;
    }
  }
  if (finite) return out;
  const auto row = static_cast<size_t>(k);
  out[row] = kInfinity;
  out[2 * row] = std::nanf("");
  out[4 * row - 1] = -kInfinity;
  return out;
}

struct RowsOfCodes {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

template <typename T>
constexpr Number kNumber = Number::kF32;
template <>
constexpr Number kNumber<F16> = Number::kF16;
template <>
constexpr Number kNumber<Bf16> = Number::kBf16;

template <typename T>
DeviceArray<T> OnDevice(const std::vector<float>& values) {
  DeviceArray<T> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) out[i] = FromFloat<T>(values[i]);
  return out;
}

template <typename T>
RowsOfCodes Quantized(RowCodes to, const std::vector<float>& x, int rows, int k) {
  const DeviceArray<T> from = OnDevice<T>(x);
  const DeviceArray<uint8_t> codes(static_cast<size_t>(rows) * k);
  const DeviceArray<float> scales(static_cast<size_t>(rows));
  const QuantizeRowsArgs args = {.from = from.data(),
                                 .codes = codes.data(),
                                 .scales = scales.data(),
                                 .rows = rows,
                                 .k = k,
                                 .from_stride = k,
                                 .codes_stride = k,
                                 .number = kNumber<T>,
                                 .to = to};
  EXPECT_EQ(QuantizeRowsRefuses(args), nullptr);
  EXPECT_EQ(Ran(QuantizeRows(args, {})), 0);
  return {codes.values(), scales.values()};
}

class QuantizeTest : public testing::TestWithParam<Order> {
 protected:
  QuantizeTest() { SetWorldOrder(GetParam()); }
  ~QuantizeTest() override { SetWorldOrder(Order::kAscending); }

  template <typename T>
  static void ExpectA8(int rows, int k) {
    const std::vector<float> x = Rows<T>(rows, k, false);
    const RowsOfCodes got = Quantized<T>(RowCodes::kA8Token, x, rows, k);
    std::vector<int8_t> codes(static_cast<size_t>(k));
    for (int row = 0; row < rows; ++row) {
      const size_t at = static_cast<size_t>(row) * k;
      const float scale = QuantizeA8Token(x.data() + at, k, codes.data());
      EXPECT_EQ(Comparable(got.scales[row]), Comparable(scale)) << row;
      EXPECT_EQ(std::memcmp(codes.data(), got.codes.data() + at, codes.size()), 0) << row;
    }
  }

  template <typename T>
  static void ExpectFp8(int rows, int k) {
    const std::vector<float> x = Rows<T>(rows, k, false);
    const RowsOfCodes got = Quantized<T>(RowCodes::kFp8Token, x, rows, k);
    std::vector<float> seen(static_cast<size_t>(k));
    std::vector<int16_t> scratch(static_cast<size_t>(k));
    for (int row = 0; row < rows; ++row) {
      const size_t at = static_cast<size_t>(row) * k;
      RepresentRow(ActivationMode::kFp8Token, {}, {}, {x.data() + at, seen.size()}, scratch, seen);
      for (int i = 0; i < k; ++i) {
        const float value = got.scales[row] * E4M3ToF32(got.codes[at + i]);
        EXPECT_EQ(Comparable(value), Comparable(seen[i])) << row << " " << i;
      }
    }
  }

  template <typename T>
  static void ExpectScheme(RowCodes to, const char* spelling, int rows, int k) {
    const std::vector<float> w = Rows<T>(rows, k, true);
    const RowsOfCodes got = Quantized<T>(to, w, rows, k);
    const auto q = (*FindScheme(spelling))->Encode(TensorOf({rows, k}, w).view());
    ASSERT_TRUE(q.ok()) << q.status();
    for (int row = 0; row < rows; ++row)
      EXPECT_EQ(Bits(got.scales[row]), Bits(q->scales.data<float>()[row])) << row;
    EXPECT_EQ(std::memcmp(q->codes.data<uint8_t>(), got.codes.data(), got.codes.size()), 0);
  }

  template <typename T>
  static void ExpectInt4(Int4Grid grid, const std::string& spelling, int n, int k) {
    const std::vector<float> w = Rows<T>(n, k, true);
    const auto q = (*FindScheme(spelling))->Encode(TensorOf({n, k}, w).view());
    ASSERT_TRUE(q.ok()) << q.status();
    const DeviceArray<T> from = OnDevice<T>(w);
    const DeviceArray<uint8_t> codes(q->codes.bytes()), zeros(q->zeros.bytes());
    const DeviceArray<uint16_t> scales(q->scales.bytes() / 2);
    const QuantizeInt4Args args = {.from = from.data(),
                                   .codes = codes.data(),
                                   .scales = scales.data(),
                                   .zeros = zeros.data(),
                                   .n = n,
                                   .k = k,
                                   .group = static_cast<int>(q->scheme->group(q->shape)),
                                   .number = kNumber<T>,
                                   .grid = grid};
    EXPECT_EQ(QuantizeInt4Refuses(args), nullptr);
    EXPECT_EQ(Ran(QuantizeInt4(args, {})), 0);
    const auto same = [](const Tensor& a, const auto& b) {
      return a.empty() || std::memcmp(a.data<std::byte>(), b.data(), a.bytes()) == 0;
    };
    EXPECT_TRUE(same(q->scales, scales)) << spelling << " " << k;
    EXPECT_TRUE(same(q->zeros, zeros)) << spelling << " " << k;
    EXPECT_TRUE(same(q->codes, codes)) << spelling << " " << k;
  }
};
INSTANTIATE_TEST_SUITE_P(Orders, QuantizeTest, testing::ValuesIn(WorldOrders()));

TEST_P(QuantizeTest, MakesA8TokenOfActivations) {
  for (const int k : {1, 13, 64, 2056}) {
    ExpectA8<float>(12, k);
    ExpectA8<F16>(12, k);
    ExpectA8<Bf16>(12, k);
  }
}

TEST_P(QuantizeTest, MakesFp8TokenOfActivations) {
  for (const int k : {1, 13, 64, 2056}) {
    ExpectFp8<float>(12, k);
    ExpectFp8<F16>(12, k);
    ExpectFp8<Bf16>(12, k);
  }
}

TEST_P(QuantizeTest, MakesInt8ChannelOfWeights) {
  for (const int k : {1, 13, 64, 2056}) {
    ExpectScheme<float>(RowCodes::kInt8Channel, "int8_channel", 10, k);
    ExpectScheme<Bf16>(RowCodes::kInt8Channel, "int8_channel", 10, k);
  }
}

TEST_P(QuantizeTest, MakesFp8OfWeights) {
  for (const int k : {1, 13, 64, 2056}) {
    ExpectScheme<float>(RowCodes::kE4M3Channel, "fp8_e4m3", 10, k);
    ExpectScheme<F16>(RowCodes::kE4M3Channel, "fp8_e4m3", 10, k);
  }
}

TEST_P(QuantizeTest, MakesInt4OfWeights) {
  for (const int k : {1, 31, 64, 392, 1001}) {
    ExpectInt4<float>(Int4Grid::kSym, "int4_group:g32", 10, k);
    ExpectInt4<Bf16>(Int4Grid::kSym, "int4_group", 10, k);
    ExpectInt4<float>(Int4Grid::kFull, "int4_group:g64,full", 10, k);
    ExpectInt4<float>(Int4Grid::kAsym, "int4_group:g32,asym", 10, k);
    ExpectInt4<F16>(Int4Grid::kAsym, "int4_group:row,asym", 10, k);
  }
}

// A row near the top of f32: scales whose multiples would overflow.
TEST(QuantizeEdgeTest, KeepsMultiplesOfScalesFinite) {
  std::vector<float> w(32, 1.0f);
  w[3] = std::numeric_limits<float>::max();
  w[5] = -std::numeric_limits<float>::max();
  const RowsOfCodes got = Quantized<float>(RowCodes::kE4M3Channel, w, 1, 32);
  EXPECT_TRUE(std::isfinite(got.scales[0] * 448));
  EXPECT_EQ(got.codes[3], 0x7e);
  const auto q = (*FindScheme("fp8_e4m3"))->Encode(TensorOf({1, 32}, w).view());
  ASSERT_TRUE(q.ok());
  EXPECT_EQ(Bits(got.scales[0]), Bits(q->scales.data<float>()[0]));
}

TEST(QuantizeEdgeTest, NoticesAnotherRow) {
  std::vector<float> x = Rows<float>(12, 64, false);
  const RowsOfCodes before = Quantized<float>(RowCodes::kA8Token, x, 12, 64);
  x[4] += 0.5f;
  EXPECT_NE(Quantized<float>(RowCodes::kA8Token, x, 12, 64).codes, before.codes);
}

TEST(QuantizeRefusalTest, SaysWhyNot) {
  using testing::HasSubstr;
  const QuantizeRowsArgs rows = {.rows = 1, .k = 8, .from_stride = 8, .codes_stride = 8};
  EXPECT_EQ(QuantizeRowsRefuses(rows), nullptr);
  QuantizeRowsArgs changed = rows;
  changed.k = 0;
  EXPECT_THAT(QuantizeRowsRefuses(changed), HasSubstr("at least 1"));
  changed.k = 9;
  EXPECT_THAT(QuantizeRowsRefuses(changed), HasSubstr("hold k"));
  QuantizeInt4Args int4 = {.n = 1, .k = 64, .group = 32};
  EXPECT_EQ(QuantizeInt4Refuses(int4), nullptr);
  int4.grid = Int4Grid::kAsym;
  EXPECT_THAT(QuantizeInt4Refuses(int4), HasSubstr("zero points"));
  int4.group = 12;
  EXPECT_THAT(QuantizeInt4Refuses(int4), HasSubstr("multiples of 8"));
  int4.n = 0;
  EXPECT_THAT(QuantizeInt4Refuses(int4), HasSubstr("at least 1"));
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
