// Bit for bit what Encode of fp8_e4m3:block and :tensor makes on the CPU.
#include "quant/kernels/cuda/quantize_tiles.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/quant/kernels/cuda/awkward_rows.h"

namespace assay::ASSAY_WORLD {
namespace {

constexpr Tiles kWhole = {1 << 30, 1 << 30};

template <typename T>
std::vector<int> Largest(const DeviceArray<T>& w, int rows, const Tiles& tiles) {
  const int k = static_cast<int>(w.size()) / rows;
  const int count = TilesAlong(rows, tiles.rows) * TilesAlong(k, tiles.columns);
  const DeviceArray<int> largest(std::vector<int>(static_cast<size_t>(count), 0));
  EXPECT_EQ(TilesRefuse(tiles, rows, k), nullptr);
  EXPECT_EQ(Ran(LargestOfTiles({.from = w.data(),
                                .largest = largest.data(),
                                .rows = rows,
                                .k = k,
                                .tiles = tiles,
                                .number = kNumber<T>},
                               {})),
            0);
  return largest.values();
}

template <typename T>
bool SameTiles(const std::string& spelling, const std::vector<float>& w, int rows,
               const Tiles& tiles) {
  const int k = static_cast<int>(w.size()) / rows;
  const auto q = (*FindScheme(spelling))->Encode(TensorOf({rows, k}, w).view());
  EXPECT_TRUE(q.ok()) << q.status();
  const DeviceArray<T> from = OnDevice<T>(w);
  const DeviceArray<int> largest(Largest<T>(from, rows, tiles));
  const DeviceArray<uint8_t> codes(w.size());
  const DeviceArray<float> scales(largest.size());
  EXPECT_EQ(Ran(QuantizeTiles({.from = from.data(),
                               .largest = largest.data(),
                               .codes = codes.data(),
                               .scales = scales.data(),
                               .rows = rows,
                               .k = k,
                               .tiles = tiles,
                               .number = kNumber<T>},
                              {})),
            0);
  return q->scales.bytes() == sizeof(float) * scales.size() && SameBytes(q->scales, scales) &&
         SameBytes(q->codes, codes);
}

class QuantizeTilesTest : public testing::TestWithParam<Order> {
 protected:
  QuantizeTilesTest() { SetWorldOrder(GetParam()); }
  ~QuantizeTilesTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, QuantizeTilesTest, testing::ValuesIn(WorldOrders()));

// All of it at one size, as weights are: an awkward row would leave the others no codes but zero.
std::vector<float> Sized(int rows, int k, float size) {
  return RandomNormal(static_cast<int64_t>(rows) * k, 5, size);
}

TEST_P(QuantizeTilesTest, MakesBlocks) {
  for (const int k : {1, 13, 128, 300}) {
    for (const float size : {1.0f, 1e-42f, 1e-39f, 1e37f})
      EXPECT_TRUE(SameTiles<float>("fp8_e4m3:block", Sized(130, k, size), 130, {})) << k;
    EXPECT_TRUE(SameTiles<float>("fp8_e4m3:block", AwkwardRows<float>(130, k, true), 130, {}));
    EXPECT_TRUE(SameTiles<Bf16>("fp8_e4m3:block", AwkwardRows<Bf16>(7, k, true), 7, {}));
  }
}

TEST_P(QuantizeTilesTest, MakesTensors) {
  for (const int k : {1, 13, 128, 300}) {
    for (const float size : {1.0f, 1e-42f, 1e-39f, 1e37f})
      EXPECT_TRUE(SameTiles<float>("fp8_e4m3:tensor", Sized(70, k, size), 70, kWhole)) << k;
    EXPECT_TRUE(SameTiles<F16>("fp8_e4m3:tensor", AwkwardRows<F16>(7, k, true), 7, kWhole));
  }
}

TEST_P(QuantizeTilesTest, BreaksTiesAsTheCpuDoes) {
  EXPECT_TRUE(SameTiles<float>("fp8_e4m3:block", RowsOfTies(9, 200, 448, 0.5f), 9, {}));
  EXPECT_TRUE(SameTiles<float>("fp8_e4m3:tensor", RowsOfTies(9, 200, 448, 0x1p-10f), 9, kWhole));
  EXPECT_TRUE(SameTiles<float>("fp8_e4m3:block", std::vector<float>(9 * 200, 0.0f), 9, {}));
}

TEST_P(QuantizeTilesTest, KeepsMultiplesOfScalesFinite) {
  std::vector<float> w(64, 1.0f);
  w[3] = -std::numeric_limits<float>::max();
  EXPECT_TRUE(SameTiles<float>("fp8_e4m3:tensor", w, 2, kWhole));
}

TEST_P(QuantizeTilesTest, OneTileSaysWhatIsNotFinite) {
  constexpr int kInfinityBits = 0x7f800000;
  std::vector<float> w = Sized(130, 300, 1e37f);
  EXPECT_LT(Largest(OnDevice<float>(w), 130, kWhole)[0], kInfinityBits);
  for (const size_t at : {size_t{0}, w.size() - 1, w.size() / 2}) {
    for (const float bad : {std::nanf(""), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> broken = w;
      broken[at] = bad;
      EXPECT_GE(Largest(OnDevice<float>(broken), 130, kWhole)[0], kInfinityBits) << at;
    }
  }
}

// What stands there takes part: slices of a weight, one after the other.
TEST(QuantizeTilesEdgeTest, MagnitudesOfSlicesAddUp) {
  const DeviceArray<int> largest(std::vector<int>(1, 0));
  for (const float v : {2.0f, -3.0f, 1.0f}) {
    const DeviceArray<float> w(std::vector<float>(5, v));
    EXPECT_EQ(
        Ran(LargestOfTiles(
            {.from = w.data(), .largest = largest.data(), .rows = 1, .k = 5, .tiles = kWhole}, {})),
        0);
  }
  EXPECT_EQ(std::bit_cast<float>(largest.values()[0]), 3.0f);
}

// The comparisons can fail: other tiles are another scheme.
TEST(QuantizeTilesEdgeTest, NoticesOtherTiles) {
  const std::vector<float> w = Sized(130, 300, 1);
  EXPECT_FALSE(SameTiles<float>("fp8_e4m3:block", w, 130, {.rows = 64}));
  std::vector<float> uneven = w;  // rows of 64 and more have the largest
  uneven[uneven.size() - 1] = 100;
  EXPECT_FALSE(SameTiles<float>("fp8_e4m3:block", uneven, 130, kWhole));
}

TEST(QuantizeTilesRefusalTest, SaysWhyNot) {
  using testing::HasSubstr;
  EXPECT_EQ(TilesRefuse({}, 1, 1), nullptr);
  EXPECT_EQ(TilesRefuse({.rows = 7, .columns = 9}, 7, 9), nullptr);  // all
  EXPECT_THAT(TilesRefuse({}, 0, 1), HasSubstr("at least 1"));
  EXPECT_THAT(TilesRefuse({.rows = 32}, 33, 1), HasSubstr("rows in multiples of 64"));
  EXPECT_THAT(TilesRefuse({.columns = 64}, 1, 65), HasSubstr("columns in multiples of 128"));
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
