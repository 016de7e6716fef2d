// Bit for bit what the CPU makes: activations as quant/activation.cc, weights as their scheme's
// Encode.
#include "quant/kernels/cuda/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "quant/activation.h"
#include "quant/kernels/a8_token.h"
#include "tests/quant/kernels/cuda/awkward_rows.h"

namespace assay::ASSAY_WORLD {
namespace {

uint32_t Bits(float v) { return std::bit_cast<uint32_t>(v); }
// NaNs alike.
uint32_t Comparable(float v) { return std::isnan(v) ? 0x7fc00000u : Bits(v); }

struct RowsOfCodes {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

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
    const std::vector<float> x = AwkwardRows<T>(rows, k, false);
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
    const std::vector<float> x = AwkwardRows<T>(rows, k, false);
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
    const std::vector<float> w = AwkwardRows<T>(rows, k, true);
    const RowsOfCodes got = Quantized<T>(to, w, rows, k);
    const auto q = (*FindScheme(spelling))->Encode(TensorOf({rows, k}, w).view());
    ASSERT_TRUE(q.ok()) << q.status();
    for (int row = 0; row < rows; ++row)
      EXPECT_EQ(Bits(got.scales[row]), Bits(q->scales.data<float>()[row])) << row;
    EXPECT_EQ(std::memcmp(q->codes.data<uint8_t>(), got.codes.data(), got.codes.size()), 0);
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
  std::vector<float> x = AwkwardRows<float>(12, 64, false);
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
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
