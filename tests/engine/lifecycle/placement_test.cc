// What a GPU's memory is spent on: the arithmetic, by hand.
#include "engine/lifecycle/placement.h"

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

constexpr uint64_t kMb = 1'000'000, kMib = uint64_t{1} << 20;

// 80 GB, 8 GB of weights, 64 KiB a token, sequences of 8192.
GpuMemoryInputs EightBillion() {
  return {.free = 80'000 * kMb,
          .total = 80'000 * kMb,
          .weights = 8'000 * kMb,
          .scratch = 500 * kMb,
          .token_bytes = 65536,
          .context_tokens = 8192,
          .least_tokens = 8192,
          .useful_tokens = int64_t{8192} * 1024};
}

TEST(GpuMemoryTest, KeysAndValuesGetTheRestButRoomForTheNextVersion) {
  ASSERT_OK_AND_ASSIGN(const GpuMemory plan, PlanGpuMemory(EightBillion()));
  EXPECT_EQ(plan.reserve, 512 * kMib + 4'000 * kMb);
  EXPECT_EQ(plan.graphs, 32 * kMib);
  EXPECT_EQ(plan.sequence, uint64_t{65536} * 8192);
  const uint64_t rest = 80'000 * kMb - 8'500 * kMb - plan.reserve - plan.graphs;
  EXPECT_EQ(plan.kv, rest - (8'500 * kMb + plan.graphs + plan.sequence));
  EXPECT_EQ(plan.kv_tokens, static_cast<int64_t>(plan.kv / 65536));
  EXPECT_TRUE(plan.room_for_next);
  EXPECT_THAT(plan.ToString(), AllOf(HasSubstr("80000.0 MB free = 8000.0 MB weights"),
                                     HasSubstr("tokens)"), HasSubstr("next version")));
}

TEST(GpuMemoryTest, ASmallCardHasNoRoomForTheNextVersion) {
  GpuMemoryInputs in = EightBillion();
  in.free = in.total = 24'000 * kMb;
  ASSERT_OK_AND_ASSIGN(const GpuMemory plan, PlanGpuMemory(in));
  // 24 - 8.5 - 1.7 - 0.03 = 13.7 GB; a next version needs 9.1, more than half of it.
  EXPECT_EQ(plan.kv, in.free - 8'500 * kMb - plan.reserve - plan.graphs);
  EXPECT_FALSE(plan.room_for_next);
}

TEST(GpuMemoryTest, NoMoreThanIsUsefulOrAskedFor) {
  GpuMemoryInputs in = EightBillion();
  in.useful_tokens = 8192 * 4;
  EXPECT_EQ(PlanGpuMemory(in)->kv, uint64_t{65536} * 8192 * 4);
  in.wanted_kv = 1'000 * kMb;
  EXPECT_EQ(PlanGpuMemory(in)->kv, 1'000 * kMb);
  in.wanted_kv = 1;  // the context that was asked for, always
  EXPECT_EQ(PlanGpuMemory(in)->kv, uint64_t{65536} * 8192);
  in.useful_tokens = int64_t{8192} * 1024;
  in.wanted_kv = 500'000 * kMb;  // no more than there is
  EXPECT_EQ(PlanGpuMemory(in)->kv, in.free - 8'500 * kMb - (512 * kMib + 4'000 * kMb) - 32 * kMib);
}

// A model of 128k tokens on a card of 24 GB: 8.6 GB of keys and values for one, 2 GB asked at
// least.
TEST(GpuMemoryTest, AContextThatNobodyAskedForIsClipped) {
  GpuMemoryInputs in = EightBillion();
  in.free = in.total = 16'000 * kMb;
  in.context_tokens = 131072;
  in.least_tokens = 2048;
  in.useful_tokens = int64_t{131072} * 64;
  ASSERT_OK_AND_ASSIGN(const GpuMemory plan, PlanGpuMemory(in));
  const uint64_t rest = in.free - 8'500 * kMb - (512 * kMib + 800 * kMb) - 32 * kMib;
  EXPECT_TRUE(plan.clipped);
  EXPECT_EQ(plan.context_tokens, static_cast<int64_t>(rest / 65536 / 16 * 16));
  EXPECT_LT(plan.context_tokens, 131072);
  EXPECT_THAT(plan.ToString(),
              HasSubstr(absl::StrCat("clipped to ", plan.context_tokens, " tokens")));
  EXPECT_FALSE(plan.room_for_next);
  in.least_tokens = in.context_tokens;  // asked for
  EXPECT_THAT(PlanGpuMemory(in).status(),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("131072 tokens")));
}

TEST(GpuMemoryTest, ABoundOfTheCacheClipsToo) {
  GpuMemoryInputs in = EightBillion();
  in.least_tokens = 16;
  in.wanted_kv = uint64_t{65536} * 1024;
  ASSERT_OK_AND_ASSIGN(const GpuMemory plan, PlanGpuMemory(in));
  EXPECT_EQ(plan.kv, in.wanted_kv);
  EXPECT_EQ(plan.context_tokens, 1024);
  EXPECT_TRUE(plan.clipped);
}

TEST(GpuMemoryTest, ComparisonsAndTheNextProofAreCountedIn) {
  GpuMemoryInputs in = EightBillion();
  in.comparisons = 300 * kMb;
  in.admission = 5'000 * kMb;  // more than scratch and one sequence
  ASSERT_OK_AND_ASSIGN(const GpuMemory plan, PlanGpuMemory(in));
  const uint64_t rest = in.free - 8'800 * kMb - plan.reserve - plan.graphs;
  EXPECT_EQ(plan.kv, rest - (8'000 * kMb + 5'000 * kMb));
  EXPECT_TRUE(plan.room_for_next);
  EXPECT_THAT(plan.ToString(), HasSubstr("300.0 MB comparisons"));
  EXPECT_OK(RoomForAdmission(in));
  in.free = 13'000 * kMb - 1;
  EXPECT_THAT(RoomForAdmission(in),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("5000.0 MB for its proof")));
}

TEST(GpuMemoryTest, RefusesWithTheNumbersWhatLeavesNoRoomForOneSequence) {
  GpuMemoryInputs in = EightBillion();
  in.total = in.free = 8'500 * kMb + 32 * kMib + 512 * kMib + 536'870'912;
  in.total = 0;                  // no share of it
  EXPECT_OK(PlanGpuMemory(in));  // exactly enough
  in.free -= 1;
  EXPECT_THAT(PlanGpuMemory(in).status(),
              StatusIs(StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("8000.0 MB weights"), HasSubstr("8192 tokens"),
                             HasSubstr("are free"))));
}

}  // namespace
}  // namespace assay
