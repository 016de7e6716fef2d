#include "server/memory_watermark.h"

#include "server/work_gate.h"
#include "tests/support/fake_clock.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

class MemoryWatermarkTest : public testing::Test {
 protected:
  FakeClock clock_;
  double used_ = 0.5;
  int looks_ = 0;
  MemoryWatermark memory_{0.9, clock_, [this] {
                            ++looks_;
                            return used_;
                          }};
};

TEST_F(MemoryWatermarkTest, RefusesAboveTheMarkAndTakesAgainBelow) {
  EXPECT_OK(memory_.Check());
  used_ = 0.95;
  EXPECT_OK(memory_.Check());  // as it was just now
  clock_.Advance(absl::Milliseconds(100));
  EXPECT_THAT(memory_.Check(),
              StatusIs(StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("95.0 % used"), HasSubstr("limits.memory_watermark=0.9"))));
  used_ = 0.9;
  clock_.Advance(absl::Milliseconds(100));
  EXPECT_OK(memory_.Check());
}

TEST_F(MemoryWatermarkTest, LooksTenTimesASecond) {
  for (int i = 0; i < 1000; ++i) {
    EXPECT_OK(memory_.Check());
    clock_.Advance(absl::Milliseconds(1));
  }
  EXPECT_EQ(looks_, 10);
}

TEST_F(MemoryWatermarkTest, ZeroNeverRefuses) {
  MemoryWatermark off(0, clock_, [] { return 1.0; });
  EXPECT_OK(off.Check());
}

TEST_F(MemoryWatermarkTest, TheGateAsksAndCountsNobodyWhoIsRefused) {
  WorkGate gate;
  gate.AskFirst([this] { return memory_.Check(); });
  used_ = 0.99;
  EXPECT_THAT(gate.Enter().status(), StatusIs(StatusCode::kResourceExhausted, HasSubstr("memory")));
  EXPECT_EQ(gate.active(), 0);
  gate.Close();  // what drains says so
  EXPECT_THAT(gate.Enter().status(), StatusIs(StatusCode::kUnavailable, HasSubstr("draining")));
}

TEST(UsedMemoryShareTest, IsAShare) {
  EXPECT_GT(UsedMemoryShare(), 0);
  EXPECT_LT(UsedMemoryShare(), 1);
}

TEST(QuotaTest, IsAQuarterOfTheMemoryAtMost) {
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  EXPECT_EQ(QuotaWithin(16 * kGiB, 2 * kGiB), 2 * kGiB);
  EXPECT_EQ(QuotaWithin(8 * kGiB, 2 * kGiB), 2 * kGiB);
  EXPECT_EQ(QuotaWithin(1 * kGiB, 2 * kGiB), kGiB / 4);
  EXPECT_EQ(QuotaWithin(0, 2 * kGiB), 2 * kGiB);
}

}  // namespace
}  // namespace assay
