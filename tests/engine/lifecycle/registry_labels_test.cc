// Versions side by side: labels, the canary's share, rollback windows.
#include <latch>
#include <thread>

#include "engine/lifecycle/registry.h"
#include "tests/engine/lifecycle/fake_servable.h"
#include "tests/support/fake_clock.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr absl::Duration kWindow = absl::Minutes(15);

class LabelsTest : public testing::Test {
 protected:
  LabelsTest() {
    registry_.OnLabelChange([this](const LabelChange& change) {
      moves_.push_back(std::string(Name(change.change)) + " " + std::to_string(change.version));
      last_reason_ = change.reason;
    });
  }
  void PublishCanary(int64_t version, double share) {
    ASSERT_OK(registry_.PublishCanary(NewServable("a", version), share));
  }
  int64_t Unversioned() { return registry_.Acquire("a").value()->version; }
  // The version of an inference request that names none.
  int64_t Inference() {
    VersionSelector wanted;
    wanted.shared = true;
    return registry_.Acquire("a", wanted).value()->version;
  }
  absl::StatusOr<int64_t> ByLabel(const std::string& label) {
    VersionSelector wanted;
    wanted.label = label;
    ASSIGN_OR_RETURN(const std::shared_ptr<Servable> servable, registry_.Acquire("a", wanted));
    return servable->version;
  }
  std::vector<std::string> Shown() {
    std::vector<std::string> shown;
    for (const VersionInfo& info : registry_.List()) {
      if (info.state != VersionState::kServing) continue;
      shown.push_back(std::to_string(info.version) + " " + info.label);
    }
    return shown;
  }

  FakeClock clock_;
  ModelRegistry registry_{RealClock(), kWindow, clock_};
  std::vector<std::string> moves_;
  std::string last_reason_;
};

TEST_F(LabelsTest, TheFormerStableVersionStaysLoadedAndGetsNoUnversionedRequest) {
  registry_.Publish(NewServable("a", 1));
  registry_.Publish(NewServable("a", 2));
  EXPECT_THAT(Shown(), ElementsAre("1 previous", "2 stable"));
  for (int i = 0; i < 20; ++i) EXPECT_EQ(Inference(), 2);
  EXPECT_EQ(registry_.Acquire("a", 1).value()->version, 1);
  EXPECT_EQ(ByLabel("previous").value(), 1);
  EXPECT_EQ(registry_.Find("a", 1)->traffic_share, 0);
  EXPECT_EQ(registry_.Find("a", 2)->traffic_share, 1);
  EXPECT_THAT(moves_, ElementsAre("publish 1", "publish 2"));
  EXPECT_THAT(last_reason_,
              HasSubstr("version 1 is kept for a rollback until 1970-01-01 00:15:00"));
}

TEST_F(LabelsTest, AnEarlierPreviousVersionDrainsAtOnce) {
  for (const int64_t version : {1, 2, 3}) registry_.Publish(NewServable("a", version));
  registry_.WaitForRetirements();
  EXPECT_THAT(States(registry_), ElementsAre("a/1 RETIRED", "a/2 SERVING", "a/3 SERVING"));
  EXPECT_EQ(registry_.Find("a", 1)->reason, "replaced by version 3");
}

TEST_F(LabelsTest, AfterItsWindowThePreviousVersionDrains) {
  registry_.Publish(NewServable("a", 1));
  registry_.Publish(NewServable("a", 2));
  clock_.Advance(kWindow - absl::Seconds(1));
  registry_.RetireExpired();
  EXPECT_THAT(Shown(), ElementsAre("1 previous", "2 stable"));
  clock_.Advance(absl::Seconds(1));
  registry_.RetireExpired();
  registry_.WaitForRetirements();
  EXPECT_THAT(Shown(), ElementsAre("2 stable"));
  EXPECT_EQ(registry_.Find("a", 1)->reason, "the rollback window is over");
  EXPECT_THAT(registry_.RollBack("a", 0, ""),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("no previous version")));
}

TEST(RollbackWindowTest, EndsByItself) {
  std::latch retired(1);
  ModelRegistry registry(RealClock(), absl::Milliseconds(1));
  registry.OnChange([&](const VersionInfo& info) {
    if (info.version == 1 && info.state == VersionState::kRetired) retired.count_down();
  });
  registry.Publish(NewServable("a", 1));
  registry.Publish(NewServable("a", 2));
  retired.wait();
  EXPECT_EQ(registry.Labels("a")->previous, 0);
}

TEST_F(LabelsTest, ACanaryGetsItsShareOfInferenceAndNothingElse) {
  registry_.Publish(NewServable("a", 1));
  PublishCanary(2, 0.1);
  int canaries = 0;
  for (int i = 0; i < 100; ++i) canaries += Inference() == 2 ? 1 : 0;
  EXPECT_EQ(canaries, 10);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Unversioned(), 1);
  EXPECT_EQ(ByLabel("canary").value(), 2);
  EXPECT_EQ(ByLabel("stable").value(), 1);
  EXPECT_EQ(registry_.Find("a", 1)->traffic_share, 0.9);
  EXPECT_EQ(registry_.Find("a", 2)->traffic_share, 0.1);
}

TEST_F(LabelsTest, ShareZeroKeepsACanaryLoadedWithoutTraffic) {
  registry_.Publish(NewServable("a", 1));
  PublishCanary(2, 1);
  EXPECT_EQ(Inference(), 2);
  ASSERT_OK(registry_.SetCanaryShare("a", 0));
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Inference(), 1);
  EXPECT_EQ(ByLabel("canary").value(), 2);
  EXPECT_THAT(last_reason_, AllOf(HasSubstr("0 % of the requests"), HasSubstr("before 100 %")));
}

TEST_F(LabelsTest, LabelsThatNobodyHasAreNamed) {
  registry_.Publish(NewServable("a", 1));
  EXPECT_THAT(ByLabel("canary"),
              StatusIs(StatusCode::kNotFound, AllOf(HasSubstr("'canary'"), HasSubstr("model=a"))));
  EXPECT_THAT(ByLabel("beta"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("'beta'")));
  for (const absl::Status& status :
       {registry_.SetCanaryShare("a", 0.5), registry_.Promote("a", 0, ""),
        registry_.DropCanary("a", 0, "")}) {
    EXPECT_THAT(status, StatusIs(StatusCode::kFailedPrecondition,
                                 HasSubstr("model 'a' has no canary version")));
  }
  EXPECT_THAT(registry_.Labels("b"), StatusIs(StatusCode::kNotFound, HasSubstr("model=b")));
  EXPECT_THAT(registry_.Promote("b", 0, ""), StatusIs(StatusCode::kNotFound));
}

TEST_F(LabelsTest, ACanaryNeedsAStableVersion) {
  EXPECT_THAT(registry_.PublishCanary(NewServable("a", 1), 0.5),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("none serves: model=a")));
  EXPECT_THAT(moves_, IsEmpty());
}

TEST_F(LabelsTest, ANewCanaryTakesThePlaceOfTheOld) {
  registry_.Publish(NewServable("a", 1));
  PublishCanary(2, 0.5);
  PublishCanary(3, 0.5);
  registry_.WaitForRetirements();
  EXPECT_THAT(Shown(), ElementsAre("1 stable", "3 canary"));
  EXPECT_EQ(registry_.Find("a", 2)->reason, "replaced by version 3");
}

TEST_F(LabelsTest, APromotedCanaryIsStableAndTheFormerOneIsKept) {
  registry_.Publish(NewServable("a", 1));
  PublishCanary(2, 0.5);
  EXPECT_THAT(registry_.Promote("a", 7, ""),
              StatusIs(StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("version=2"), HasSubstr("expected=7"))));
  ASSERT_OK(registry_.Promote("a", 2, "it is good"));
  EXPECT_THAT(Shown(), ElementsAre("1 previous", "2 stable"));
  for (int i = 0; i < 20; ++i) EXPECT_EQ(Inference(), 2);
  EXPECT_THAT(last_reason_, AllOf(HasSubstr("in place of version 1"), HasSubstr("it is good")));
}

TEST_F(LabelsTest, ARollbackSwapsAtOnceAndCanBeUndone) {
  registry_.Publish(NewServable("a", 1));
  registry_.Publish(NewServable("a", 2));
  clock_.Advance(kWindow - absl::Seconds(1));
  ASSERT_OK(registry_.RollBack("a", 0, "test"));
  EXPECT_EQ(Inference(), 1);
  EXPECT_THAT(Shown(), ElementsAre("1 stable", "2 previous"));
  clock_.Advance(absl::Seconds(2));  // the window begins again
  registry_.RetireExpired();
  ASSERT_OK(registry_.RollBack("a", 1, "undone"));
  EXPECT_EQ(Inference(), 2);
  EXPECT_THAT(Shown(), ElementsAre("1 previous", "2 stable"));
  EXPECT_THAT(registry_.RollBack("a", 1, ""),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("expected=1")));
  EXPECT_THAT(moves_, ElementsAre("publish 1", "publish 2", "roll_back 1", "roll_back 2"));
}

TEST_F(LabelsTest, ADroppedCanaryDrainsAndItsRequestGoesOn) {
  registry_.Publish(NewServable("a", 1));
  PublishCanary(2, 1);
  ASSERT_OK_AND_ASSIGN(std::shared_ptr<Servable> request, registry_.Acquire("a", 2));
  ASSERT_OK(registry_.DropCanary("a", 2, "test"));
  EXPECT_EQ(Inference(), 1);
  EXPECT_EQ(registry_.Find("a", 2)->state, VersionState::kDraining);
  EXPECT_EQ(registry_.Find("a", 2)->label, "");
  EXPECT_OK(request->generate->Submit({}, nullptr));
  request.reset();
  registry_.WaitForRetirements();
  EXPECT_EQ(registry_.Find("a", 2)->reason, "canary dropped: test");
  EXPECT_THAT(registry_.Acquire("a", 2),
              StatusIs(StatusCode::kUnavailable, HasSubstr("canary dropped: test")));
}

TEST_F(LabelsTest, AnUnloadedCanaryLeavesAllToTheStableVersion) {
  registry_.Publish(NewServable("a", 1));
  PublishCanary(2, 1);
  ASSERT_OK(registry_.Unload("a", 2));
  EXPECT_EQ(Inference(), 1);
  EXPECT_EQ(registry_.Find("a", 1)->traffic_share, 1);
}

TEST_F(LabelsTest, UnloadingAModelFreesEveryVersionOfIt) {
  const size_t before = CpuDevice().allocated_bytes();
  registry_.Publish(NewServable("a", 1));
  registry_.Publish(NewServable("a", 2));
  PublishCanary(3, 0.5);
  ASSERT_OK(registry_.Unload("a", 0));
  EXPECT_EQ(CpuDevice().allocated_bytes(), before);
  EXPECT_THAT(Shown(), IsEmpty());
  EXPECT_THAT(registry_.Acquire("a"), StatusIs(StatusCode::kUnavailable, HasSubstr("unloaded")));
}

TEST_F(LabelsTest, MemoryIsTakenFromThePreviousVersionWhoseWindowEndsFirst) {
  registry_.Publish(NewServable("b", 1));
  registry_.Publish(NewServable("b", 2));
  clock_.Advance(absl::Seconds(1));
  registry_.Publish(NewServable("a", 1));
  registry_.Publish(NewServable("a", 2));
  EXPECT_TRUE(registry_.RetirePrevious("cpu", "memory"));
  EXPECT_EQ(registry_.Find("b", 1)->state, VersionState::kRetired);
  EXPECT_EQ(registry_.Labels("a")->previous, 1);
  EXPECT_TRUE(registry_.RetirePrevious("cpu", "memory"));
  EXPECT_EQ(registry_.Find("a", 1)->reason, "memory");
  EXPECT_FALSE(registry_.RetirePrevious("cpu", "memory"));
  EXPECT_EQ(registry_.HighestServing("a"), 2);
}

TEST_F(LabelsTest, ShutdownEndsAllOfThem) {
  registry_.Publish(NewServable("a", 1));
  registry_.Publish(NewServable("a", 2));
  PublishCanary(3, 0.5);
  registry_.DrainAll();
  EXPECT_THAT(States(registry_), ElementsAre("a/1 RETIRED", "a/2 RETIRED", "a/3 RETIRED"));
}

TEST(LabelsUnderLoadTest, NoRequestFailsWhileLabelsMove) {
  const size_t before = CpuDevice().allocated_bytes();
  ModelRegistry registry(RealClock(), absl::Hours(1));
  registry.Publish(NewServable("a", 1));
  std::atomic<bool> stop{false};
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      VersionSelector wanted;
      wanted.shared = true;
      while (!stop) {
        const absl::StatusOr<std::shared_ptr<Servable>> servable = registry.Acquire("a", wanted);
        if (!servable.ok() || !(*servable)->generate->Submit({}, nullptr).ok()) ++failures;
      }
    });
  }
  for (int64_t version = 2; version <= 40; version += 4) {
    ASSERT_OK(registry.PublishCanary(NewServable("a", version), 0.5));
    ASSERT_OK(registry.SetCanaryShare("a", 0.9));
    ASSERT_OK(registry.DropCanary("a", 0, "test"));
    ASSERT_OK(registry.PublishCanary(NewServable("a", version + 1), 0.5));
    ASSERT_OK(registry.Promote("a", 0, "test"));
    ASSERT_OK(registry.RollBack("a", 0, "test"));
    registry.Publish(NewServable("a", version + 2));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  ASSERT_OK(registry.Unload("a", 0));
  registry.WaitForRetirements();
  EXPECT_EQ(CpuDevice().allocated_bytes(), before);
}

}  // namespace
}  // namespace assay
