// Live traffic against the reference, with a real model, engine and admission.
#include "engine/lifecycle/drift_monitor.h"

#include <gmock/gmock.h>

#include "engine/lifecycle/slot_parts.h"
#include "tests/engine/lifecycle/admission_fixture.h"
#include "tests/support/stream_recorder.h"

namespace assay {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::Field;
using testing::HasSubstr;

// Every other channel of the keys of two layers has a thousandth of its scale: what the cache
// stores of them is a thousand times larger, and takes the codes of the channels beside it. Null
// where keys have no scales.
std::shared_ptr<const Model> WithSpoiledKeys(const Checkpoint& checkpoint, const Model& proven) {
  const ModelFamily* family = FamilyOf(checkpoint).value();
  LinearMap linears = proven.linears();
  bool any = false;
  for (const LinearSlot& slot : proven.slots()) {
    const auto& linear = linears.at(slot.name);
    const KeyParts* keys = linear == nullptr ? nullptr : linear->keys();
    if (keys == nullptr || slot.layer > 1) continue;
    KeyParts spoiled = *keys;
    for (size_t c = 0; c < spoiled.scale.size(); c += 2) spoiled.scale[c] *= 1e-3f;
    const Tensor weight = ReadSlotWeight(checkpoint, slot).value();
    QuantizedTensor codes = linear->problem().scheme->Encode(weight.view()).value();
    WriteKeyParts(spoiled, codes).IgnoreError();
    linears[slot.name] = std::make_shared<const QuantizedLinear>(
        QuantizedLinear::Create(codes, ReadSlotBias(checkpoint, slot).value(),
                                {.activation = linear->problem().activation})
            .value());
    any = true;
  }
  if (!any) return nullptr;
  return family->build(proven.spec(), checkpoint, std::move(linears)).value();
}

class DriftMonitorTest : public AdmissionFixture {
 protected:
  DriftMonitorTest() {
    options_ = {.sampler = {.rate = 1, .ring = 4096}, .cpu_share = 1, .tokens_per_second = 1e9};
  }
  ~DriftMonitorTest() override {
    pipeline_.reset();
    monitor_.reset();
  }
  void StartWatched(AdmissionHooks hooks = {}) {
    monitor_ = std::make_unique<DriftMonitor>(options_, registry_, metrics_, events_, RealClock());
    monitor_->OnViolated([this](const DriftStatus& status) { violated_.push_back(status); });
    AdmissionOptions options;
    options.drift = monitor_.get();
    Start(options, std::move(hooks));
  }
  // Requests one after the other, each looked at before the next comes.
  void Serve(int requests) {
    const auto servable = registry_.Acquire("stories").value();
    for (int i = 0; i < requests; ++i) {
      StreamRecorder recorder;
      GenerateRequest request{.prompt = {1, 300 + next_ % 100, 200 + next_ % 53}};
      ++next_;
      request.sampling.max_tokens = 16;
      request.sampling.temperature = 1;
      request.sampling.seed = static_cast<uint64_t>(next_);
      request.sampling.ignore_eos = true;
      ASSERT_OK(servable->generate->Submit(std::move(request), recorder.NewSink()));
      ASSERT_OK(recorder.WaitForAll()[0].end.status);
      monitor_->WaitUntilIdle();
    }
  }
  bool Scraped(const std::string& line) {
    return metrics_.Scrape().find(line) != std::string::npos;
  }
  // A recipe whose keys have calibrated channels.
  std::string KeysByChannel() {
    return directory_.Write("kv8_channel.yaml",
                            "scheme: int8_group:g32\nactivation: a16\nkv: i8\nkv_keys: channel\n");
  }
  DriftStatus Status() { return monitor_->List().at(0); }
  // The proven model, and for it another with its weights in `scheme`.
  static AdmissionHooks Replaced(const std::string& scheme) {
    AdmissionHooks hooks;
    hooks.served = [scheme](std::shared_ptr<const Model>) {
      const auto checkpoint = OpenCheckpoint(Stories260k()).value();
      return std::shared_ptr<const Model>(BuildUniform(*checkpoint, scheme, {}).value());
    };
    return hooks;
  }

  DriftOptions options_;
  EventLog events_{RealClock()};
  std::vector<DriftStatus> violated_;  // read while the monitor is idle
  std::unique_ptr<DriftMonitor> monitor_;
  int next_ = 0;
};

TEST_F(DriftMonitorTest, AHealthyModelStaysOk) {
  StartWatched();
  ASSERT_OK(AdmitStories().status);
  Serve(150);
  const DriftStatus status = Status();
  EXPECT_EQ(status.state, DriftState::kOk);
  EXPECT_EQ(status.samples, 150);
  EXPECT_EQ(status.mismatches, 0);
  EXPECT_EQ(status.skipped, 0);
  EXPECT_EQ(status.statistic, "mean_kl");
  // What was answered is what is computed again: greedy or sampled, alone or not.
  EXPECT_LT(status.replay_difference, 1e-4);
  EXPECT_GT(status.score, 0);
  EXPECT_LT(status.score, status.limit);
  EXPECT_LE(status.low, status.score);
  EXPECT_GE(status.high, status.score);
  EXPECT_TRUE(violated_.empty());
  const std::string scrape = metrics_.Scrape();
  EXPECT_THAT(scrape,
              HasSubstr("assay_drift_shadow_samples_total{model=\"stories\",result=\"match\","
                        "version=\"1\"} 150"));
  EXPECT_THAT(scrape,
              HasSubstr("assay_drift_state{model=\"stories\",state=\"ok\",version=\"1\"} 1"));
}

TEST_F(DriftMonitorTest, AModelWhoseWeightsWentBadIsFoundAndSaid) {
  StartWatched(Replaced("int3_group"));
  ASSERT_OK(AdmitStories().status);
  Serve(60);
  const DriftStatus status = Status();
  EXPECT_EQ(status.state, DriftState::kViolated);
  ASSERT_EQ(violated_.size(), 1u);  // once, not for every request
  EXPECT_LE(violated_[0].samples, 40);
  EXPECT_NE(status.violated_at, absl::UnixEpoch());
  EXPECT_THAT(events_.Since(0),
              Contains(AllOf(Field(&Event::kind, "drift"),
                             Field(&Event::reason, HasSubstr("VIOLATED after")))));
  EXPECT_TRUE(Scraped("state=\"violated\",version=\"1\"} 1"));
}

TEST_F(DriftMonitorTest, AKvCacheWithSpoiledScalesIsFound) {
  AdmissionHooks hooks;
  hooks.served = [](std::shared_ptr<const Model> proven) {
    const auto spoiled = WithSpoiledKeys(*OpenCheckpoint(Stories260k()).value(), *proven);
    EXPECT_NE(spoiled, nullptr);
    return spoiled;
  };
  StartWatched(hooks);
  ASSERT_OK(Admit({.name = "stories", .path = Stories260k(), .recipe = KeysByChannel()}).status);
  Serve(150);
  EXPECT_EQ(Status().state, DriftState::kViolated) << Status().score << " " << Status().limit;
  EXPECT_EQ(violated_.size(), 1u);
}

TEST_F(DriftMonitorTest, ACalibratedKvCacheAsProvenStaysOk) {
  StartWatched();
  ASSERT_OK(Admit({.name = "stories", .path = Stories260k(), .recipe = KeysByChannel()}).status);
  Serve(150);
  EXPECT_EQ(Status().state, DriftState::kOk);
  EXPECT_LT(Status().replay_difference, 1e-4);
}

TEST_F(DriftMonitorTest, ARateOfZeroLooksAtNothing) {
  options_.sampler.rate = 0;
  StartWatched();
  ASSERT_OK(AdmitStories().status);
  Serve(3);
  EXPECT_TRUE(monitor_->List().empty());
  EXPECT_EQ(metrics_.Scrape().find("assay_drift_"), std::string::npos);
}

TEST_F(DriftMonitorTest, WhatNoLongerServesIsForgotten) {
  StartWatched();
  ASSERT_OK(AdmitStories().status);
  Serve(2);
  monitor_->Forget("stories", 1);
  EXPECT_TRUE(monitor_->List().empty());
  EXPECT_EQ(metrics_.Scrape().find("assay_drift_state{"), std::string::npos);
  Serve(2);  // the engine still has its watch
  EXPECT_TRUE(monitor_->List().empty());
  monitor_->Forget("stories", 1);  // twice is once
}

// The file that was admitted, not what lies under its name now.
TEST_F(DriftMonitorTest, ACheckpointThatIsReplacedOrDeletedStaysTheReference) {
  StartWatched();
  const std::string path = directory_.path() + "/stories.gguf";
  std::filesystem::copy_file(Stories260k(), path);
  ASSERT_OK(Admit({.name = "stories", .path = path}).status);
  std::filesystem::rename(directory_.Write("other.gguf", "not a model"), path);
  Serve(2);
  std::filesystem::remove(path);
  Serve(2);
  EXPECT_EQ(Status().samples, 4);
  EXPECT_EQ(Status().error, "");
  EXPECT_EQ(Status().state, DriftState::kOk);
}

// Shortened under the running server: before the mapping was guarded, SIGBUS ended the process.
TEST_F(DriftMonitorTest, ACheckpointThatIsWrittenOverIsSaidAndServingGoesOn) {
  StartWatched();
  const std::string path = directory_.path() + "/stories.gguf";
  std::filesystem::copy_file(Stories260k(), path);
  ASSERT_OK(Admit({.name = "stories", .path = path}).status);
  Serve(2);
  std::filesystem::resize_file(path, 100'000);
  Serve(5);
  EXPECT_EQ(Status().samples, 2);
  EXPECT_EQ(Status().skipped, 1);  // after which nothing is sampled
  EXPECT_EQ(Status().state, DriftState::kOk);
  EXPECT_THAT(Status().error, HasSubstr("stories.gguf"));
  EXPECT_TRUE(Scraped("reason=\"failed\",version=\"1\"} 1"));
  EXPECT_THAT(events_.Since(0),
              Contains(Field(&Event::reason, HasSubstr("nothing can be compared any more"))));
}

TEST_F(DriftMonitorTest, InputIsWatchedAndPromptsAreKeptForCalibration) {
  options_.calibration_requests = 3;
  StartWatched();
  ASSERT_OK(AdmitStories().status);
  Serve(40);
  EXPECT_EQ(Status().input.requests, 40);
  EXPECT_TRUE(Status().input.range.has_value());
  EXPECT_FALSE(Status().input.saturation.has_value());  // the recipe has no static scales
  EXPECT_TRUE(Scraped("assay_drift_input_range_ratio{model=\"stories\",version=\"1\"} "));
  EXPECT_TRUE(Scraped("assay_drift_input_saturation_ratio{model=\"stories\",version=\"1\"} 0"));
  // Prompts, not answers: those of the last three requests as Serve makes them.
  EXPECT_EQ(monitor_->Prompts("stories", 1), "[1,337,237]\n[1,338,238]\n[1,339,239]\n");
  EXPECT_EQ(monitor_->Prompts("stories", 2), "");
  monitor_->Forget("stories", 1);
  EXPECT_EQ(monitor_->Prompts("stories", 1), "");
}

TEST_F(DriftMonitorTest, NoPromptIsKeptWhereNoneMayBe) {
  options_.calibration_requests = 0;
  StartWatched();
  ASSERT_OK(AdmitStories().status);
  Serve(2);
  EXPECT_EQ(monitor_->Prompts("stories", 1), "");
}

TEST_F(DriftMonitorTest, TheLimitIsTheCertificatesWithinTheBudget) {
  StartWatched();
  const AdmissionProgress admitted = AdmitStories();
  ASSERT_OK(admitted.status);
  const DriftStatus status = Status();
  const VerificationResult& v = admitted.report->verification;
  EXPECT_EQ(status.certificate, std::max(v.mean_kl.high, v.mean_kl_bootstrap.high));
  EXPECT_EQ(status.budget, admitted.report->decision.budget.max_mean_kl);
  EXPECT_EQ(status.limit, std::min(status.budget, std::max(2 * status.certificate, 1e-3)));
}

}  // namespace
}  // namespace assay
