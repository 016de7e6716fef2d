// What the language of kernels (base/cuda/simt.h) means, in both worlds: fragments as the PTX ISA
// draws them, asked through plain matrix products; barriers, copies, reductions.
#include "base/cuda/simt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "base/float16.h"
#include "tests/base/cuda/probe.h"
#include "tests/support/device_array.h"

namespace assay::ASSAY_WORLD {
namespace {

using ::testing::ElementsAreArray;

std::vector<uint16_t> Halves(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint16_t> out(count);
  for (uint16_t& v : out) v = F32ToF16(static_cast<float>(static_cast<int>(random() % 17)) - 8);
  return out;
}

// Sums of small integers: exact in any order.
std::vector<float> Product(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b,
                           bool b_is_k_by_n) {
  std::vector<float> c(16 * 8);
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j)
      for (size_t k = 0; k < 16; ++k)
        c[i * 8 + j] +=
            F16ToF32(a[i * 16 + k]) * F16ToF32(b_is_k_by_n ? b[k * 8 + j] : b[j * 16 + k]);
  return c;
}

class SimtTest : public testing::TestWithParam<Order> {
 protected:
  SimtTest() { SetWorldOrder(GetParam()); }
  ~SimtTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, SimtTest, testing::ValuesIn(WorldOrders()));

TEST_P(SimtTest, MultipliesFragmentsOfF16) {
  const DeviceArray<uint16_t> a(Halves(256, 1)), b(Halves(128, 2));
  const DeviceArray<float> c(128);
  EXPECT_EQ(Ran(ProbeMmaF16(a.data(), b.data(), c.data(), {})), 0);
  EXPECT_THAT(c.values(), ElementsAreArray(Product(a.values(), b.values(), false)));
}

TEST_P(SimtTest, LoadsMatricesInTheOrderOfFragments) {
  const DeviceArray<uint16_t> a(Halves(256, 3)), b(Halves(128, 4));
  const DeviceArray<float> c(128);
  EXPECT_EQ(Ran(ProbeLoadMatrix(a.data(), b.data(), c.data(), {})), 0);
  EXPECT_THAT(c.values(), ElementsAreArray(Product(a.values(), b.values(), true)));
}

TEST_P(SimtTest, MultipliesFragmentsOfBytes) {
  std::mt19937 random(5);
  const DeviceArray<int8_t> a(16 * 32), b(8 * 32);
  for (const auto* v : {&a, &b})
    for (size_t i = 0; i < v->size(); ++i) (*v)[i] = static_cast<int8_t>(random() % 256);
  const DeviceArray<int> c(128);
  std::vector<int> expected(128);
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j)
      for (size_t k = 0; k < 32; ++k) expected[i * 8 + j] += a[i * 32 + k] * b[j * 32 + k];
  EXPECT_EQ(Ran(ProbeMmaS8(a.data(), b.data(), c.data(), {})), 0);
  EXPECT_THAT(c.values(), ElementsAreArray(expected));
}

TEST_P(SimtTest, BarriersMakeSharedMemoryVisible) {
  const DeviceArray<float> x(3 * 300), y(x.size());
  std::vector<float> expected;
  std::iota(x.data(), x.data() + x.size(), 0.0f);
  for (size_t row = 0; row < 3; ++row)
    for (size_t i = 0; i < 300; ++i) expected.push_back(x[row * 300 + 299 - i]);
  EXPECT_EQ(Ran(ProbeReverse(x.data(), y.data(), 3, 300, true, {})), 0);
  EXPECT_THAT(y.values(), ElementsAreArray(expected));
}

TEST_P(SimtTest, AsynchronousCopiesArriveWhenTheyAreWaitedFor) {
  const DeviceArray<float> x(400), y(x.size());
  std::iota(x.data(), x.data() + x.size(), 0.0f);
  EXPECT_EQ(Ran(ProbeCopy(x.data(), y.data(), 400, true, {})), 0);
  EXPECT_THAT(y.values(), ElementsAreArray(x.values()));
}

TEST_P(SimtTest, ReducesOverTheBlock) {
  const DeviceArray<float> x(5 * 777), sums(5), most(5);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>((i * 7919) % 1000);
  EXPECT_EQ(Ran(ProbeReduce(x.data(), sums.data(), most.data(), 5, 777, {})), 0);
  for (size_t row = 0; row < 5; ++row) {
    const float* const begin = x.data() + row * 777;
    EXPECT_EQ(sums[row], std::accumulate(begin, begin + 777, 0.0f));  // integers: exact
    EXPECT_EQ(most[row], *std::max_element(begin, begin + 777));
  }
}

// What tests of kernels that rotate rely on. sincosf: 2 units in the last place (CUDA C++
// programming guide, table of functions), 2^-23 of what is at most 1; below that, of the result.
TEST_P(SimtTest, SineAndCosineAreNearTheirValues) {
  const DeviceArray<float> angles(4000), sines(4000), cosines(4000);
  for (size_t i = 0; i < angles.size(); ++i)
    angles[i] = static_cast<float>(i % 2 == 0 ? std::pow(1.004, i / 2.0) : 0.37 * i) - 1;
  EXPECT_EQ(Ran(ProbeSinCos(angles.data(), sines.data(), cosines.data(), 4000, {})), 0);
  for (size_t i = 0; i < angles.size(); ++i) {
    const double sine = std::sin(static_cast<double>(angles[i]));
    const double cosine = std::cos(static_cast<double>(angles[i]));
    EXPECT_LE(std::fabs(sines[i] - sine), std::fabs(sine) * 0x1p-22) << angles[i];
    EXPECT_LE(std::fabs(cosines[i] - cosine), std::fabs(cosine) * 0x1p-22) << angles[i];
  }
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
