// Bit for bit what Encode of int4_group, int8_group and nf4 makes on the CPU.
#include "quant/kernels/cuda/quantize_groups.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/quant/kernels/cuda/awkward_rows.h"

namespace assay::ASSAY_WORLD {
namespace {

QuantizedTensor Encoded(const std::string& spelling, const std::vector<float>& w, int n) {
  const auto k = static_cast<int64_t>(w.size()) / n;
  auto q = (*FindScheme(spelling))->Encode(TensorOf({n, k}, w).view());
  EXPECT_TRUE(q.ok()) << q.status();
  return *std::move(q);
}

struct GroupCase {
  std::string spelling;
  int bits;
  GroupGrid grid;
};

template <typename T>
bool SameGroups(const GroupCase& c, const std::vector<float>& w, int n, int group = 0) {
  const QuantizedTensor q = Encoded(c.spelling, w, n);
  const DeviceArray<T> from = OnDevice<T>(w);
  const DeviceArray<uint8_t> codes(q.codes.bytes()), zeros(q.zeros.bytes());
  const DeviceArray<uint16_t> scales(q.scales.bytes() / 2);
  const QuantizeGroupsArgs args = {
      .from = from.data(),
      .codes = codes.data(),
      .scales = scales.data(),
      .zeros = zeros.data(),
      .n = n,
      .k = static_cast<int>(q.shape[1]),
      .group = group > 0 ? group : static_cast<int>(q.scheme->group(q.shape)),
      .bits = c.bits,
      .number = kNumber<T>,
      .grid = c.grid};
  EXPECT_EQ(QuantizeGroupsRefuses(args), nullptr);
  EXPECT_EQ(Ran(QuantizeGroups(args, {})), 0);
  return SameBytes(q.scales, scales) && SameBytes(q.zeros, zeros) && SameBytes(q.codes, codes);
}

template <typename T>
bool SameNf4(const std::string& spelling, const std::vector<float>& w, int n, int block) {
  const QuantizedTensor q = Encoded(spelling, w, n);
  const DeviceArray<T> from = OnDevice<T>(w);
  const DeviceArray<uint8_t> codes(q.codes.bytes());
  const DeviceArray<float> scales(q.scales.bytes() / sizeof(float));
  const QuantizeNf4Args args = {.from = from.data(),
                                .codes = codes.data(),
                                .scales = scales.data(),
                                .n = n,
                                .k = static_cast<int>(q.shape[1]),
                                .block = block,
                                .number = kNumber<T>};
  EXPECT_EQ(QuantizeNf4Refuses(args), nullptr);
  EXPECT_EQ(Ran(QuantizeNf4(args, {})), 0);
  return SameBytes(q.scales, scales) && SameBytes(q.codes, codes);
}

const GroupCase kSym4 = {"int4_group:g32", 4, GroupGrid::kSym};
const GroupCase kWide4 = {"int4_group", 4, GroupGrid::kSym};
const GroupCase kFull4 = {"int4_group:g64,full", 4, GroupGrid::kFull};
const GroupCase kAsym4 = {"int4_group:g32,asym", 4, GroupGrid::kAsym};
const GroupCase kRow4 = {"int4_group:row,asym", 4, GroupGrid::kAsym};
const GroupCase kSym8 = {"int8_group:g32", 8, GroupGrid::kSym};
const GroupCase kWide8 = {"int8_group", 8, GroupGrid::kSym};
const GroupCase kAsym8 = {"int8_group:g64,asym", 8, GroupGrid::kAsym};

class QuantizeGroupsTest : public testing::TestWithParam<Order> {
 protected:
  QuantizeGroupsTest() { SetWorldOrder(GetParam()); }
  ~QuantizeGroupsTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, QuantizeGroupsTest, testing::ValuesIn(WorldOrders()));

TEST_P(QuantizeGroupsTest, MakesInt4) {
  for (const int k : {1, 31, 64, 392, 1001}) {
    EXPECT_TRUE(SameGroups<float>(kSym4, AwkwardRows<float>(10, k, true), 10)) << k;
    EXPECT_TRUE(SameGroups<Bf16>(kWide4, AwkwardRows<Bf16>(10, k, true), 10)) << k;
    EXPECT_TRUE(SameGroups<float>(kFull4, AwkwardRows<float>(10, k, true), 10)) << k;
    EXPECT_TRUE(SameGroups<float>(kAsym4, AwkwardRows<float>(10, k, true), 10)) << k;
    EXPECT_TRUE(SameGroups<F16>(kRow4, AwkwardRows<F16>(10, k, true), 10)) << k;
  }
}

TEST_P(QuantizeGroupsTest, MakesInt8) {
  for (const int k : {1, 31, 64, 392, 1001}) {
    EXPECT_TRUE(SameGroups<float>(kSym8, AwkwardRows<float>(10, k, true), 10)) << k;
    EXPECT_TRUE(SameGroups<Bf16>(kWide8, AwkwardRows<Bf16>(10, k, true), 10)) << k;
    EXPECT_TRUE(SameGroups<float>(kAsym8, AwkwardRows<float>(10, k, true), 10)) << k;
    EXPECT_TRUE(SameGroups<F16>(kAsym8, AwkwardRows<F16>(10, k, true), 10)) << k;
  }
}

TEST_P(QuantizeGroupsTest, MakesNf4) {
  for (const int k : {1, 31, 64, 392, 1001}) {
    EXPECT_TRUE(SameNf4<float>("nf4", AwkwardRows<float>(10, k, true), 10, 64)) << k;
    EXPECT_TRUE(SameNf4<Bf16>("nf4:b32", AwkwardRows<Bf16>(10, k, true), 10, 32)) << k;
    EXPECT_TRUE(SameNf4<F16>("nf4:b256", AwkwardRows<F16>(10, k, true), 10, 256)) << k;
  }
}

// Where the largest magnitude is 7, 7.5 or 127, steps are 1 and halves are ties.
TEST_P(QuantizeGroupsTest, BreaksTiesAsTheCpuDoes) {
  EXPECT_TRUE(SameGroups<float>(kSym4, RowsOfTies(3, 96, 7, 0.5f), 3));
  EXPECT_TRUE(SameGroups<float>(kFull4, RowsOfTies(3, 96, 7.5f, 0.5f), 3));
  EXPECT_TRUE(SameGroups<float>(kAsym4, RowsOfTies(3, 96, 7.5f, 0.5f), 3));
  EXPECT_TRUE(SameGroups<float>(kSym8, RowsOfTies(3, 96, 127, 0.5f), 3));
  EXPECT_TRUE(SameGroups<float>(kAsym8, RowsOfTies(3, 192, 127.5f, 0.5f), 3));
}

// Nf4's decisions lie in the middles of its values.
TEST_P(QuantizeGroupsTest, DecidesNf4AsTheCpuDoes) {
  std::vector<float> w(64, 1.0f);
  for (int i = 0; i < 15; ++i) {
    const float middle = (Nf4Value(i) + Nf4Value(i + 1)) / 2;
    float* const three = &w[4 * static_cast<size_t>(i)];
    three[0] = middle;
    three[1] = std::nextafter(middle, 2.0f);
    three[2] = std::nextafter(middle, -2.0f);
  }
  EXPECT_TRUE(SameNf4<float>("nf4", w, 1, 64));
  w[1] = 1.1f;  // scales that have no exact inverse
  EXPECT_TRUE(SameNf4<float>("nf4", w, 1, 64));
}

// Near the top of f32: scales whose multiples would overflow.
TEST_P(QuantizeGroupsTest, KeepsMultiplesOfScalesFinite) {
  std::vector<float> w(64, 1.0f);
  w[3] = std::numeric_limits<float>::max();
  w[5] = -std::numeric_limits<float>::max();
  for (const GroupCase& c : {kSym4, kFull4, kAsym4, kRow4, kSym8, kAsym8})
    EXPECT_TRUE(SameGroups<float>(c, w, 1)) << c.spelling;
  EXPECT_TRUE(SameNf4<float>("nf4", w, 1, 64));
}

TEST(QuantizeGroupsEdgeTest, EndsWhereNumbersAreNotFinite) {
  const std::vector<float> w = AwkwardRows<float>(12, 96, false);
  const DeviceArray<float> from = OnDevice<float>(w);
  const DeviceArray<uint8_t> codes(12 * 96), zeros(12 * 3);
  const DeviceArray<uint16_t> scales(12 * 3);
  const DeviceArray<float> absmax(12 * 3);
  for (const int bits : {4, 8}) {
    EXPECT_EQ(Ran(QuantizeGroups({.from = from.data(),
                                  .codes = codes.data(),
                                  .scales = scales.data(),
                                  .zeros = zeros.data(),
                                  .n = 12,
                                  .k = 96,
                                  .group = 32,
                                  .bits = bits,
                                  .grid = GroupGrid::kAsym},
                                 {})),
              0);
  }
  EXPECT_EQ(Ran(QuantizeNf4({.from = from.data(),
                             .codes = codes.data(),
                             .scales = absmax.data(),
                             .n = 12,
                             .k = 96,
                             .block = 32},
                            {})),
            0);
}

// The comparisons can fail: another grid, another size of groups, another weight.
TEST(QuantizeGroupsEdgeTest, NoticesWhatIsNotTheScheme) {
  const std::vector<float> w = RandomNormal(4 * 128, 3);
  EXPECT_TRUE(SameGroups<float>(kSym4, w, 4));
  EXPECT_FALSE(SameGroups<float>({kSym4.spelling, 4, GroupGrid::kFull}, w, 4));
  EXPECT_FALSE(SameGroups<float>({kWide8.spelling, 8, GroupGrid::kAsym}, w, 4));
  EXPECT_FALSE(SameGroups<float>(kWide4, w, 4, 64));
  EXPECT_FALSE(SameNf4<float>("nf4:b128", w, 4, 64));
}

TEST(QuantizeGroupsRefusalTest, SaysWhyNot) {
  using testing::HasSubstr;
  QuantizeGroupsArgs groups = {.n = 1, .k = 64, .group = 32};
  EXPECT_EQ(QuantizeGroupsRefuses(groups), nullptr);
  groups.grid = GroupGrid::kAsym;
  EXPECT_THAT(QuantizeGroupsRefuses(groups), HasSubstr("zero points"));
  groups.group = 12;
  EXPECT_THAT(QuantizeGroupsRefuses(groups), HasSubstr("multiples of 8"));
  groups = {.n = 1, .k = 64, .group = 32, .bits = 8, .grid = GroupGrid::kFull};
  EXPECT_THAT(QuantizeGroupsRefuses(groups), HasSubstr("sym and asym"));
  groups.bits = 3;
  EXPECT_THAT(QuantizeGroupsRefuses(groups), HasSubstr("4 or 8 bits"));
  groups.n = 0;
  EXPECT_THAT(QuantizeGroupsRefuses(groups), HasSubstr("at least 1"));
  EXPECT_EQ(QuantizeNf4Refuses({.n = 1, .k = 3}), nullptr);
  EXPECT_THAT(QuantizeNf4Refuses({.n = 1, .k = 3, .block = 12}), HasSubstr("multiples of 8"));
  EXPECT_THAT(QuantizeNf4Refuses({.n = 1, .k = 0}), HasSubstr("at least 1"));
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
