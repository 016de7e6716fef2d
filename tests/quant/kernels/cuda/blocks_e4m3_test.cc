// Bit for bit what the schemes and the mode fp8_block say.
#include "quant/kernels/cuda/blocks_e4m3.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/float8.h"
#include "quant/activation.h"
#include "tests/quant/kernels/cuda/device_weight.h"
#include "tests/support/scheme_testing.h"

namespace assay::ASSAY_WORLD {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Blocks {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

template <typename T>
Blocks Quantized(const std::vector<T>& x, int rows, int k) {
  const DeviceArray<T> from(x);
  const DeviceArray<uint8_t> codes(x.size());
  const DeviceArray<float> scales(static_cast<size_t>(E4M3Blocks(k) * rows));
  const QuantizeBlocksArgs args = {.x = from.data(),
                                   .codes = codes.data(),
                                   .scales = scales.data(),
                                   .rows = rows,
                                   .k = k,
                                   .t = kHalfOf<T>};
  EXPECT_EQ(QuantizeBlocksRefuses(args), nullptr);
  EXPECT_EQ(Ran(QuantizeBlocks(args, {})), 0);
  return {codes.values(), scales.values()};
}

// What a row stands for, as the CPU represents it.
template <typename T>
std::vector<float> Represented(const std::vector<T>& x, int row, int k) {
  std::vector<float> exact, out(static_cast<size_t>(k));
  for (int i = 0; i < k; ++i) exact.push_back(ToFloat(x[static_cast<size_t>(row) * k + i]));
  std::vector<int16_t> codes(out.size());
  RepresentRow(ActivationMode::kFp8Block, {}, {}, exact, codes, out);
  return out;
}

template <typename T>
void ExpectRowsAreRepresented(const std::vector<T>& x, int rows, int k) {
  const Blocks got = Quantized(x, rows, k);
  for (int row = 0; row < rows; ++row) {
    const std::vector<float> expected = Represented(x, row, k);
    for (int i = 0; i < k; ++i) {
      const float value = E4M3ToF32(got.codes[static_cast<size_t>(row) * k + i]) *
                          got.scales[static_cast<size_t>(i / kE4M3Block) * rows + row];
      EXPECT_EQ(value, expected[static_cast<size_t>(i)]) << row << " " << i;
    }
  }
}

class BlocksTest : public testing::TestWithParam<Order> {
 protected:
  void SetUp() override { SetWorldOrder(GetParam()); }
  ~BlocksTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, BlocksTest, testing::ValuesIn(WorldOrders()));

TEST_P(BlocksTest, RowsAreWhatTheModeMakesOfThem) {
  for (const int k : {8, 96, 128, 136, 400}) {
    for (const int rows : {1, 3, 16}) {
      const size_t count = static_cast<size_t>(rows) * k;
      ExpectRowsAreRepresented(RandomOf<F16>(count, 5), rows, k);
      ExpectRowsAreRepresented(RandomOf<Bf16>(count, 6), rows, k);
    }
  }
}

TEST_P(BlocksTest, EdgesOfRows) {
  constexpr int kK = 256;
  std::vector<Bf16> x = RandomOf<Bf16>(3 * kK, 7);
  for (int i = 0; i < 128; ++i) x[static_cast<size_t>(i)] = FromFloat<Bf16>(0);  // an empty block
  for (int i = 0; i < kK; ++i)  // below what has a reciprocal
    x[static_cast<size_t>(kK + i)] = FromFloat<Bf16>(0x1p-121f);
  ExpectRowsAreRepresented(x, 3, kK);
  x[2 * kK + 200] = FromFloat<Bf16>(-kInfinity);
  const Blocks got = Quantized(x, 3, kK);
  EXPECT_TRUE(std::isnan(got.scales[3 + 2]));   // its block, and with it the row's product
  EXPECT_FALSE(std::isnan(got.scales[0 + 2]));  // not another one's
  EXPECT_FALSE(std::isnan(got.scales[3 + 1]));
}

Blocks OfWeight(const DeviceWeight& w) {
  const auto n = static_cast<size_t>(w.stored.n), k = static_cast<size_t>(w.stored.k);
  const DeviceArray<uint8_t> codes(n * k);
  const DeviceArray<float> scales(static_cast<size_t>(E4M3Blocks(w.stored.k)) * n);
  EXPECT_EQ(BlocksOfWeightRefuses(w.stored), nullptr);
  EXPECT_EQ(
      Ran(BlocksOfWeight({.w = w.stored, .codes = codes.data(), .scales = scales.data()}, {})), 0);
  if (w.stored.storage != Storage::kE4M3) return {codes.values(), scales.values()};
  for (const uint8_t untouched : codes.values()) EXPECT_EQ(untouched, 0xff);
  const auto* const own = w.host.codes.data<uint8_t>();
  return {{own, own + n * k}, scales.values()};
}

TEST_P(BlocksTest, WeightsKeepTheirValues) {
  for (const char* spelling :
       {"int4_group", "int4_group:asym", "int4_group:full", "int4_group:signed_max",
        "int4_group:row", "int4_group:row,asym", "fp8_e4m3", "fp8_e4m3:tensor", "fp8_e4m3:block"}) {
    for (const int k : {32, 128, 160, 384}) {
      constexpr int kN = 133;
      const DeviceWeight w = MakeWeight(spelling, kN, k, 3);
      const Blocks got = OfWeight(w);
      for (int row = 0; row < kN; ++row) {
        for (int i = 0; i < k; ++i) {
          const float value = E4M3ToF32(got.codes[static_cast<size_t>(row) * k + i]) *
                              got.scales[static_cast<size_t>(i / kE4M3Block) * kN + row];
          ASSERT_EQ(value, w.decoded[static_cast<size_t>(row) * k + i])
              << spelling << " k=" << k << " row=" << row << " i=" << i;
        }
      }
    }
  }
}

TEST(BlocksRefusalTest, SaysWhyNot) {
  using testing::HasSubstr;
  const StoredWeight sound = {.storage = Storage::kInt4Group, .n = 4, .k = 256, .group = 128};
  EXPECT_EQ(BlocksOfWeightRefuses(sound), nullptr);
  const auto refused = [&](auto change, const char* why) {
    StoredWeight changed = sound;
    change(changed);
    EXPECT_THAT(BlocksOfWeightRefuses(changed), HasSubstr(why));
  };
  refused([](StoredWeight& w) { w.group = 64; }, "multiples of 128");
  refused([](StoredWeight& w) { w.k = 260; }, "multiple of 8");
  refused([](StoredWeight& w) { w.storage = Storage::kInt4Float; }, "int4_group");
  refused([](StoredWeight& w) { w.storage = Storage::kNf4; }, "E4M3");
  EXPECT_THAT(QuantizeBlocksRefuses({.rows = 1, .k = 12}), HasSubstr("multiple of 8"));
  EXPECT_THAT(QuantizeBlocksRefuses({.rows = 0, .k = 16}), HasSubstr("at least 1"));
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
