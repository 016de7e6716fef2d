// That the emulator notices what would go wrong on a GPU. That it does what one does: simt_test.cc.
#include "base/cuda/emulator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "base/cuda/simt_math.h"
#include "base/float16.h"
#include "tests/base/cuda/probe.h"

namespace assay::emulated {
namespace {

using ::testing::Each;
using ::testing::ElementsAreArray;

class EmulatorTest : public testing::TestWithParam<Order> {
 protected:
  EmulatorTest() { set_order(GetParam()); }
  ~EmulatorTest() override { set_order(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, EmulatorTest,
                         testing::Values(Order::kAscending, Order::kDescending, Order::kShuffled));

// In ascending order the first threads read what the last have not written yet: NaN.
TEST_P(EmulatorTest, AMissingBarrierShows) {
  std::vector<float> x(300, 1.0f), y(x.size());
  EXPECT_EQ(ProbeReverse(x.data(), y.data(), 1, 300, false, {}), 0);
  EXPECT_GT(std::count_if(y.begin(), y.end(), [](float v) { return v != v; }), 0);
}

TEST_P(EmulatorTest, ACopyThatNobodyWaitsForIsLate) {
  std::vector<float> x(400, 1.0f), y(x.size());
  EXPECT_EQ(ProbeCopy(x.data(), y.data(), 400, false, {}), 0);
  EXPECT_THAT(y, Each(testing::IsNan()));
}

TEST(EmulatorMistakesTest, EndTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  auto* const x = static_cast<float*>(AllocateDevice(32 * sizeof(float)));
  EXPECT_DEATH(ProbeMistake(Mistake::kBarrierInOneBranch, x, {}), "hangs: not all threads arrive");
  EXPECT_DEATH(ProbeMistake(Mistake::kWarpOperationInOneBranch, x, {}),
               "waits in ShuffleXor(.|\n)*hangs");
  EXPECT_DEATH(ProbeMistake(Mistake::kUnaligned, x, {}), "a vector load is not aligned");
  // 64 threads write 256 bytes into 128: within the alignment. 4096 bytes further is the guard.
  auto* const page = static_cast<float*>(AllocateDevice(4096));
  EXPECT_DEATH(ProbeMistake(Mistake::kBeyondTheEnd, page + 1000, {}), "");
  FreeDevice(page, 4096);
  FreeDevice(x, 32 * sizeof(float));
}

TEST(EmulatorMistakesTest, LaunchesThatNoDeviceTakesEndTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto launch = [](const LaunchShape& shape) { Launch(shape, [] {}); };
  launch({.grid = {2, 1, 1}, .threads = 32, .shared_bytes = 64 << 10});
  EXPECT_DEATH(launch({.grid = {1, 65536, 1}, .threads = 32}), "at most 65535");
  EXPECT_DEATH(launch({.grid = {0, 1, 1}, .threads = 32}), "at least one block");
  EXPECT_DEATH(launch({.threads = 32, .shared_bytes = 228 << 10}), "more shared memory");
  set_most_shared(64 << 10);  // that of 7.5
  launch({.threads = 32, .shared_bytes = 64 << 10});
  EXPECT_DEATH(launch({.threads = 32, .shared_bytes = (64 << 10) + 1}), "more shared memory");
  set_most_shared(SIZE_MAX);
}

TEST(EmulatorMemoryTest, IsNaNAndAligned) {
  for (const size_t bytes : {size_t{4}, size_t{1000}, size_t{1 << 20}}) {
    auto* const memory = static_cast<unsigned char*>(AllocateDevice(bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 256, 0u);
    EXPECT_EQ(memory[0], 0xff);
    EXPECT_EQ(memory[bytes - 1], 0xff);
    FreeDevice(memory, bytes);
  }
}

TEST(EmulatorCaptureTest, RunsWhatWasLaunchedLater) {
  std::vector<float> x(128, 3.0f), y(128, 0.0f);
  BeginCapture();
  EXPECT_EQ(ProbeCopy(x.data(), y.data(), 128, true, {}), 0);
  const auto graph = EndCapture();
  EXPECT_THAT(y, Each(0.0f));
  x[5] = 8;
  graph();
  EXPECT_THAT(y, ElementsAreArray(x));
}

// Products and sums of packed numbers are rounded once, as the hardware does it.
TEST(PackedMathTest, RoundsOnce) {
  std::mt19937 random(9);
  for (int i = 0; i < 20000; ++i) {
    const auto a = static_cast<uint32_t>(random()) & 0x7bff7bffu;
    const auto b = static_cast<uint32_t>(random()) & 0x3bff3bffu;
    const auto c = static_cast<uint32_t>(random()) & 0xfbfffbffu;
    const double x = F16ToF32(a & 0xffff), y = F16ToF32(b & 0xffff), z = F16ToF32(c & 0xffff);
    const double exact = x * y + z;
    const double got = F16ToF32(static_cast<uint16_t>(Fma2<F16>(a, b, c) & 0xffff));
    if (std::fabs(exact) > 65000) continue;
    // No neighbour is nearer. Half an ulp: 2^-11 of the number, 2^-25 below 2^-14.
    EXPECT_LE(std::fabs(got - exact), std::max(std::fabs(exact) * 0x1p-11, 0x1p-25))
        << a << " " << b << " " << c;
  }
  // 1 * 2^-11 + 1 lies between 1 and its neighbour: to even. (1 + 2^-10) 2^-11 + 1 lies above that,
  // by 2^-21: rounded to 16 bits of f32 first it would be even again.
  EXPECT_EQ(Fma2<F16>(0x3c00, 0x1000, 0x3c00) & 0xffff, 0x3c00u);
  EXPECT_EQ(Fma2<F16>(0x3c01, 0x1000, 0x3c00) & 0xffff, 0x3c01u);
}

}  // namespace
}  // namespace assay::emulated
