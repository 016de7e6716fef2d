#include "base/arena.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "tests/support/status_matchers.h"

namespace assay {
namespace {

TEST(ArenaTest, GivesAlignedMemoryUntilItIsExhausted) {
  ASSERT_OK_AND_ASSIGN(Arena arena, Arena::Create(CpuDevice(), 256));
  const auto* first = arena.TryAllocate<std::byte>(1);
  const auto* second = arena.TryAllocate<float>(16);
  ASSERT_NE(first, nullptr);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(second) % 64, 0);
  EXPECT_EQ(arena.free_bytes(), 128);
  EXPECT_EQ(arena.TryAllocate<std::byte>(129), nullptr);
  EXPECT_NE(arena.TryAllocate<std::byte>(128), nullptr);
  EXPECT_EQ(arena.free_bytes(), 0);
}

TEST(ArenaTest, AScopeGivesBackWhatWasTakenInIt) {
  ASSERT_OK_AND_ASSIGN(Arena arena, Arena::Create(CpuDevice(), 128));
  {
    const Arena::Scope scope(arena);
    EXPECT_NE(arena.TryAllocate<std::byte>(128), nullptr);
  }
  EXPECT_EQ(arena.free_bytes(), 128);
}

TEST(ArenaTest, ACountThatOverflowsIsRefused) {
  ASSERT_OK_AND_ASSIGN(Arena arena, Arena::Create(CpuDevice(), 128));
  EXPECT_EQ(arena.TryAllocate<double>(SIZE_MAX / 8 + 2), nullptr);
}

TEST(ArenaDeathTest, AKernelThatTakesMoreThanItAnnouncedEndsTheProcessWithTheNumbers) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  ASSERT_OK_AND_ASSIGN(Arena arena, Arena::Create(CpuDevice(), 128));
  EXPECT_DEATH(arena.Allocate<float>(40),
               "scratch arena exhausted: elements=40 of bytes=4 free=128 capacity=128");
}

}  // namespace
}  // namespace assay
