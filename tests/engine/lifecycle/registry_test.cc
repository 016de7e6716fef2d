#include "engine/lifecycle/registry.h"

#include <atomic>
#include <latch>
#include <thread>

#include "tests/engine/lifecycle/fake_servable.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

TEST(RegistryTest, UnknownModelsAndVersionsAreNotFound) {
  ModelRegistry registry;
  EXPECT_THAT(registry.Acquire("a"), StatusIs(StatusCode::kNotFound, HasSubstr("model=a")));
  registry.Publish(NewServable("a", 1));
  EXPECT_THAT(registry.Acquire("a", 2), StatusIs(StatusCode::kNotFound, HasSubstr("version=2")));
  EXPECT_THAT(registry.Find("b", 0), StatusIs(StatusCode::kNotFound, HasSubstr("model=b")));
  EXPECT_THAT(registry.Find("a", 7), StatusIs(StatusCode::kNotFound, HasSubstr("version=7")));
  EXPECT_THAT(registry.Unload("b", 0), StatusIs(StatusCode::kNotFound, HasSubstr("model=b")));
  EXPECT_THAT(registry.Unload("a", 7), StatusIs(StatusCode::kNotFound, HasSubstr("version=7")));
}

TEST(RegistryTest, AKnownModelThatDoesNotServeSaysWhy) {
  ModelRegistry registry;
  registry.SetState("a", 1, VersionState::kAdmitting, "quantize", "");
  EXPECT_THAT(registry.Acquire("a"),
              StatusIs(StatusCode::kUnavailable,
                       AllOf(HasSubstr("state=ADMITTING"), HasSubstr("stage=quantize"))));
  registry.SetState("a", 1, VersionState::kRejected, "", "mean KL 0.5 > 0.01");
  EXPECT_THAT(registry.Acquire("a", 1),
              StatusIs(StatusCode::kUnavailable,
                       AllOf(HasSubstr("state=REJECTED"), HasSubstr("mean KL 0.5"))));
}

TEST(RegistryTest, ThePreviousVersionServesUntilTheNewOneIsPublished) {
  ModelRegistry registry;
  registry.Publish(NewServable("a", 1));
  registry.SetState("a", 2, VersionState::kQueued, "", "");
  ASSERT_OK_AND_ASSIGN(std::shared_ptr<Servable> servable, registry.Acquire("a"));
  EXPECT_EQ(servable->version, 1);
  registry.SetState("a", 2, VersionState::kAdmitting, "verify", "");
  ASSERT_OK_AND_ASSIGN(servable, registry.Acquire("a"));
  EXPECT_EQ(servable->version, 1);
  servable.reset();
  registry.Publish(NewServable("a", 2));
  ASSERT_OK_AND_ASSIGN(servable, registry.Acquire("a"));
  EXPECT_EQ(servable->version, 2);
  registry.WaitForRetirements();
  EXPECT_THAT(States(registry), ElementsAre("a/1 RETIRED", "a/2 SERVING"));
  EXPECT_THAT(registry.Acquire("a", 1),
              StatusIs(StatusCode::kUnavailable, HasSubstr("replaced by version 2")));
}

TEST(RegistryTest, OneVersionOfAModelServesWhateverTheNumbers) {
  ModelRegistry registry;
  registry.Publish(NewServable("a", 5));
  registry.Publish(NewServable("b", 1));
  registry.Publish(NewServable("a", 3));
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<Servable> servable, registry.Acquire("a"));
  EXPECT_EQ(servable->version, 3);
  EXPECT_THAT(registry.Acquire("a", 5),
              StatusIs(StatusCode::kUnavailable, HasSubstr("replaced by version 3")));
  EXPECT_OK(registry.Acquire("b"));
}

TEST(RegistryTest, ARejectedNewVersionLeavesTheOldOneServing) {
  ModelRegistry registry;
  registry.Publish(NewServable("a", 1));
  registry.SetState("a", 2, VersionState::kRejected, "", "layer x");
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<Servable> servable, registry.Acquire("a"));
  EXPECT_EQ(servable->version, 1);
}

TEST(RegistryTest, TheSwitchHappensBeforeTheOldVersionDrains) {
  ModelRegistry registry;
  int64_t served_while_draining = 0;
  registry.Publish(NewServable("a", 1, [&] {
    served_while_draining = registry.Acquire("a").value()->version;
    EXPECT_EQ(registry.Find("a", 1).value().state, VersionState::kDraining);
  }));
  registry.Publish(NewServable("a", 2));
  registry.WaitForRetirements();
  EXPECT_EQ(served_while_draining, 2);
}

TEST(RegistryTest, UnloadFreesAllMemory) {
  const size_t before = CpuDevice().allocated_bytes();
  ModelRegistry registry;
  registry.Publish(NewServable("a", 1));
  registry.Publish(NewServable("b", 4));
  EXPECT_EQ(CpuDevice().allocated_bytes(), before + 2 * 256 * 256 * 4);
  ASSERT_OK(registry.Unload("a", 0));
  ASSERT_OK(registry.Unload("b", 4));
  EXPECT_EQ(CpuDevice().allocated_bytes(), before);
  EXPECT_THAT(States(registry), ElementsAre("a/1 RETIRED", "b/4 RETIRED"));
  EXPECT_EQ(registry.Find("a", 1).value().reason, "unloaded");
}

TEST(RegistryTest, UnloadWaitsForTheRequestThatHoldsTheModel) {
  const size_t before = CpuDevice().allocated_bytes();
  ModelRegistry registry;
  std::latch draining(1);
  registry.OnChange([&](const VersionInfo& info) {
    if (info.state == VersionState::kDraining) draining.count_down();
  });
  registry.Publish(NewServable("a", 1));
  ASSERT_OK_AND_ASSIGN(std::shared_ptr<Servable> request, registry.Acquire("a"));
  std::thread unload([&] { EXPECT_OK(registry.Unload("a", 0)); });
  draining.wait();
  EXPECT_GT(CpuDevice().allocated_bytes(), before);
  EXPECT_GT(request->model->other_weight_bytes(), 0u);  // still whole
  request.reset();
  unload.join();
  EXPECT_EQ(CpuDevice().allocated_bytes(), before);
}

TEST(RegistryTest, ARequestThatGotAVersionBeforeItDrainedCanStillSubmit) {
  ModelRegistry registry;
  registry.Publish(NewServable("a", 1));
  ASSERT_OK_AND_ASSIGN(std::shared_ptr<Servable> request, registry.Acquire("a"));
  registry.Publish(NewServable("a", 2));
  EXPECT_EQ(registry.Find("a", 1)->state, VersionState::kDraining);
  EXPECT_OK(request->generate->Submit({}, nullptr));
  request.reset();
  registry.WaitForRetirements();
  EXPECT_EQ(registry.Find("a", 1)->state, VersionState::kRetired);
}

TEST(RegistryTest, AVersionThatDrainsForLongHoldsUpNeitherPublishNorOtherUnloads) {
  constexpr size_t kBytes = 256 * 256 * 4;
  const size_t before = CpuDevice().allocated_bytes();
  std::latch stream_ends(1);  // declared first: the registry waits for it
  ModelRegistry registry;
  registry.Publish(NewServable("a", 1, [&] { stream_ends.wait(); }));
  registry.Publish(NewServable("a", 2));
  registry.Publish(NewServable("b", 1));
  EXPECT_OK(registry.Unload("b", 0));
  EXPECT_OK(registry.Unload("a", 2));
  EXPECT_THAT(States(registry), ElementsAre("a/1 DRAINING", "a/2 RETIRED", "b/1 RETIRED"));
  EXPECT_EQ(CpuDevice().allocated_bytes(), before + kBytes);  // still counted
  bool freed = false;
  EXPECT_OK(registry.BeginUnload("a", 0, [&] { freed = true; }));
  EXPECT_FALSE(freed);
  stream_ends.count_down();
  registry.WaitForRetirements();
  EXPECT_TRUE(freed);
  EXPECT_EQ(registry.Find("a", 1)->state, VersionState::kRetired);
  EXPECT_EQ(CpuDevice().allocated_bytes(), before);
}

TEST(RegistryTest, AVersionCanBePublishedAgainAsSoonAsItsUnloadReturns) {
  const size_t before = CpuDevice().allocated_bytes();
  ModelRegistry registry;
  for (int i = 0; i < 50; ++i) {  // the thread of the last unload may still be ending
    registry.Publish(NewServable("a", 1));
    ASSERT_OK(registry.Unload("a", 1));
    ASSERT_EQ(CpuDevice().allocated_bytes(), before);
  }
}

TEST(RegistryTest, BeginUnloadTellsAtOnceWhenThereIsNothingToWaitFor) {
  ModelRegistry registry;
  int freed = 0;
  EXPECT_THAT(registry.BeginUnload("a", 0, [&] { ++freed; }), StatusIs(StatusCode::kNotFound));
  EXPECT_EQ(freed, 0);
  registry.SetState("a", 1, VersionState::kFailed, "", "truncated");
  EXPECT_OK(registry.BeginUnload("a", 0, [&] { ++freed; }));
  EXPECT_EQ(freed, 1);
}

TEST(RegistryTest, ShutdownWaitsForWhatDrainedBefore) {
  std::latch draining(1), stream_ends(1);
  ModelRegistry registry;
  registry.Publish(NewServable("a", 1, [&] {
    draining.count_down();
    stream_ends.wait();
  }));
  registry.Publish(NewServable("a", 2, [&] { stream_ends.count_down(); }));
  draining.wait();
  registry.DrainAll();
  EXPECT_THAT(States(registry), ElementsAre("a/1 RETIRED", "a/2 RETIRED"));
}

TEST(RegistryTest, ListShowsLoadAndMemory) {
  ModelRegistry registry;
  registry.SetPath("a", 1, "/models/a.gguf");
  registry.Publish(NewServable("a", 1));
  const std::vector<VersionInfo> list = registry.List();
  ASSERT_THAT(list, SizeIs(1));
  EXPECT_EQ(list[0].path, "/models/a.gguf");
  EXPECT_EQ(list[0].load.waiting, 3);
  EXPECT_EQ(list[0].kv_bytes, 1000u);
  EXPECT_EQ(list[0].workspace_bytes, 500u);
  EXPECT_EQ(list[0].weight_bytes, 256u * 256 * 4);
  ASSERT_NE(list[0].report, nullptr);
  EXPECT_EQ(list[0].report->verdict, "admitted");
  EXPECT_EQ(registry.Find("a", 0).value().weight_bytes, 256u * 256 * 4);
}

TEST(RegistryTest, WatchersSeeEveryChangeWithoutTheLock) {
  ModelRegistry registry;
  std::vector<std::string> seen;
  registry.OnChange([&](const VersionInfo& info) {
    seen.push_back(std::to_string(info.version) + " " + std::string(Name(info.state)));
    (void)registry.List();  // would deadlock under the lock
  });
  registry.SetState("a", 1, VersionState::kQueued, "", "");
  registry.Publish(NewServable("a", 1));
  registry.Publish(NewServable("a", 2));
  registry.WaitForRetirements();
  ASSERT_OK(registry.Unload("a", 0));
  EXPECT_THAT(seen, ElementsAre("1 QUEUED", "1 SERVING", "2 SERVING", "1 DRAINING", "1 RETIRED",
                                "2 DRAINING", "2 RETIRED"));
}

TEST(RegistryTest, DrainAllEndsEveryModel) {
  ModelRegistry registry;
  registry.Publish(NewServable("a", 1));
  registry.Publish(NewServable("b", 1));
  registry.DrainAll();
  EXPECT_THAT(States(registry), ElementsAre("a/1 RETIRED", "b/1 RETIRED"));
  EXPECT_THAT(registry.Acquire("a"), StatusIs(StatusCode::kUnavailable, HasSubstr("shut down")));
}

TEST(RegistryTest, RequestsOnManyThreadsAlwaysFindAVersionWhileVersionsAreSwapped) {
  const size_t before = CpuDevice().allocated_bytes();
  ModelRegistry registry;
  registry.Publish(NewServable("a", 1));
  std::atomic<bool> stop{false};
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      int64_t newest = 0;
      while (!stop) {
        const absl::StatusOr<std::shared_ptr<Servable>> servable = registry.Acquire("a");
        if (!servable.ok() || (*servable)->version < newest) {
          ++failures;
        } else {
          newest = (*servable)->version;
        }
        (void)registry.List();
      }
    });
  }
  for (int64_t version = 2; version <= 30; ++version) registry.Publish(NewServable("a", version));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  ASSERT_OK(registry.Unload("a", 0));
  EXPECT_EQ(CpuDevice().allocated_bytes(), before);
}

TEST(VersionStateTest, EveryStateHasAName) {
  for (int i = 0; i <= static_cast<int>(VersionState::kFailed); ++i) {
    EXPECT_NE(Name(static_cast<VersionState>(i)), "UNKNOWN");
  }
}

}  // namespace
}  // namespace assay
