// GetDrift and ListEvents, and what the server does about drift.
#include <gmock/gmock.h>

#include "server/drift_responder.h"
#include "tests/server/fake_serving.h"
#include "tests/support/fake_clock.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

class DriftServiceTest : public testing::Test {
 protected:
  DriftServiceTest() : stub_(assay::v1::AssayService::NewStub(serving_.channel())) {}
  grpc::Status GetDrift(const std::string& model, assay::v1::GetDriftResponse& response) {
    grpc::ClientContext context;
    assay::v1::GetDriftRequest request;
    request.set_model(model);
    return stub_->GetDrift(&context, request, &response);
  }
  assay::v1::ListEventsResponse Events(int64_t since, const std::string& model) {
    grpc::ClientContext context;
    assay::v1::ListEventsRequest request;
    request.set_since_id(since);
    request.set_model(model);
    assay::v1::ListEventsResponse response;
    EXPECT_TRUE(stub_->ListEvents(&context, request, &response).ok());
    return response;
  }
  // As admission does for a version that is about to serve.
  void Watch() {
    AdmissionReport report;
    report.model = "text";
    report.version = 1;
    report.verification.mean_kl = report.verification.mean_kl_bootstrap = {0.002, 0.001, 0.003};
    report.decision.budget.max_mean_kl = 0.01;
    watch_ = serving_.drift().Watch(report, ModelTask::kGenerate, nullptr);
  }

  FakeServing serving_;
  std::unique_ptr<assay::v1::AssayService::Stub> stub_;
  std::shared_ptr<TrafficWatch> watch_;
};

TEST_F(DriftServiceTest, TellsWhatIsWatchedAndItsLimit) {
  Watch();
  assay::v1::GetDriftResponse response;
  ASSERT_TRUE(GetDrift("", response).ok());
  EXPECT_EQ(response.rate(), 0.01);
  EXPECT_EQ(response.action(), "alert");
  ASSERT_EQ(response.models_size(), 1);
  const assay::v1::DriftSummary& model = response.models(0);
  EXPECT_EQ(model.model(), "text");
  EXPECT_EQ(model.state(), "OK");
  EXPECT_EQ(model.statistic(), "mean_kl");
  EXPECT_EQ(model.certificate(), 0.003);
  EXPECT_EQ(model.limit(), 0.006);
  EXPECT_EQ(model.budget(), 0.01);
  EXPECT_EQ(model.last(), "");
  EXPECT_EQ(model.violated_at(), "");
  assay::v1::GetDriftResponse other;
  ASSERT_TRUE(GetDrift("embed", other).ok());
  EXPECT_EQ(other.models_size(), 0);
}

TEST_F(DriftServiceTest, AnUnknownModelIsAnError) {
  assay::v1::GetDriftResponse response;
  const grpc::Status status = GetDrift("nobody", response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("nobody"));
}

TEST_F(DriftServiceTest, EventsAreListedInOrderFromAnIdOn) {
  serving_.events().Add({.level = LogLevel::kInfo,
                         .model = "text",
                         .version = 1,
                         .kind = "state",
                         .reason = "SERVING"});
  serving_.events().Add({.level = LogLevel::kWarning,
                         .model = "embed",
                         .version = 2,
                         .kind = "drift",
                         .reason = "OK -> WARN"});
  serving_.events().Add({.level = LogLevel::kError,
                         .model = "text",
                         .version = 1,
                         .kind = "action",
                         .reason = "refresh failed"});
  const assay::v1::ListEventsResponse all = Events(0, "");
  ASSERT_EQ(all.events_size(), 3);
  EXPECT_EQ(all.events(1).severity(), "warning");
  EXPECT_EQ(all.events(1).version(), 2);
  EXPECT_EQ(all.events(2).reason(), "refresh failed");
  EXPECT_FALSE(all.events(0).at().empty());
  EXPECT_EQ(Events(all.events(1).id(), "").events_size(), 1);
  EXPECT_EQ(Events(0, "text").events_size(), 2);
}

TEST_F(DriftServiceTest, EventsOfAnUnknownModelAreTheSameErrorAsItsDrift) {
  grpc::ClientContext context;
  assay::v1::ListEventsRequest request;
  request.set_model("nobody");
  assay::v1::ListEventsResponse events;
  const grpc::Status status = stub_->ListEvents(&context, request, &events);
  assay::v1::GetDriftResponse drift;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), GetDrift("nobody", drift).error_message());
  EXPECT_EQ(Events(0, "text").events_size(), 0);  // known, and nothing happened
  serving_.events().Add({.model = "gone", .version = 1, .kind = "state", .reason = "unloaded"});
  EXPECT_EQ(Events(0, "gone").events_size(), 1);
}

TEST_F(DriftServiceTest, OldEventsMakeRoom) {
  for (size_t i = 0; i < EventLog::kMost + 10; ++i)
    serving_.events().Add({.model = "text", .version = 1, .kind = "state", .reason = "x"});
  const assay::v1::ListEventsResponse all = Events(0, "");
  ASSERT_EQ(all.events_size(), static_cast<int>(EventLog::kMost));
  EXPECT_EQ(all.events(0).id(), 11);
}

// Records what is asked of it.
class RecordingPipeline final : public AdmissionPipeline {
 public:
  absl::StatusOr<int64_t> Enqueue(AdmissionRequest request, ProgressSink sink) override {
    requests.push_back(std::move(request));
    sinks.push_back(std::move(sink));
    if (!refusal.ok()) return refusal;
    return 7;
  }
  int in_progress() const override { return 0; }

  absl::Status refusal;
  std::vector<AdmissionRequest> requests;
  std::vector<ProgressSink> sinks;
};

class DriftResponderTest : public testing::Test {
 protected:
  // Version 1 served once, version 2 serves.
  explicit DriftResponderTest(absl::Duration rollback_window = absl::ZeroDuration())
      : registry_(RealClock(), rollback_window) {
    Publish(1, "/models/old");
    Publish(2, "/models/new");
    registry_.WaitForRetirements();
    status_.model = "m";
    status_.version = 2;
  }
  void Publish(int64_t version, const std::string& path, double canary_share = 0) {
    std::shared_ptr<Servable> servable = FakeServable("m", ModelTask::kGenerate, metrics_);
    servable->version = version;
    servable->report.verdict = "admitted";
    servable->report.decision.recipe.name = "w8a16";
    registry_.SetPath("m", version, path);
    if (canary_share > 0) {
      ASSERT_OK(registry_.PublishCanary(std::move(servable), canary_share));
    } else {
      registry_.Publish(std::move(servable));
    }
  }
  void Act(DriftAction action, int times = 1) {
    DriftResponder responder = Responder(action);
    for (int i = 0; i < times; ++i) responder.Act(status_);
  }
  DriftResponder Responder(DriftAction action) {
    return {{.action = action, .interval = absl::Minutes(10)},
            {registry_, pipeline_, monitor_, events_, versions_, metrics_, clock_}};
  }
  // Version `version` is admitted, serves, and is found to be wrong.
  void NextIsWrong(DriftResponder& responder, int64_t version) {
    Publish(version, absl::StrCat("/models/", version));
    registry_.WaitForRetirements();
    status_.version = version;
    status_.state = DriftState::kViolated;
    responder.Act(status_);
  }
  std::string LastEvent() const { return events_.Since(0).back().reason; }

  FakeClock clock_;
  Metrics metrics_{"test", "cpu"};
  ModelRegistry registry_;
  EventLog events_{RealClock()};
  DriftMonitor monitor_{DriftOptions{}, registry_, metrics_, events_, RealClock()};
  RecordingPipeline pipeline_;
  VersionControl versions_{VersionOptions{}, registry_, monitor_, metrics_, events_};
  DriftStatus status_;
};

TEST_F(DriftResponderTest, AlertOnlySaysSo) {
  Act(DriftAction::kAlert, 2);
  EXPECT_TRUE(pipeline_.requests.empty());
  EXPECT_EQ(events_.Since(0).size(), 2u);
  EXPECT_THAT(LastEvent(), HasSubstr("alert: drift.action is alert"));
}

TEST_F(DriftResponderTest, RefreshAdmitsTheSameCheckpointWithItsRecipeOnce) {
  Act(DriftAction::kRefresh, 2);
  ASSERT_EQ(pipeline_.requests.size(), 1u);
  EXPECT_EQ(pipeline_.requests[0].name, "m");
  EXPECT_EQ(pipeline_.requests[0].path, "/models/new");
  EXPECT_EQ(pipeline_.requests[0].recipe, "w8a16");
  EXPECT_THAT(LastEvent(), HasSubstr("refresh: admitting the checkpoint again"));
}

// A recipe of the user's own has no name to ask for.
TEST_F(DriftResponderTest, RefreshTakesARecipeThatIsNotBuiltInAsItServed) {
  auto report = std::make_shared<AdmissionReport>();
  report->decision.recipe.name = "of the user's own";
  report->decision.recipe.scheme = "int4_group:g32";
  registry_.SetReport("m", 2, report);
  Act(DriftAction::kRefresh);
  ASSERT_EQ(pipeline_.requests.size(), 1u);
  EXPECT_EQ(pipeline_.requests[0].recipe, "");
  ASSERT_TRUE(pipeline_.requests[0].exact.has_value());
  EXPECT_EQ(pipeline_.requests[0].exact->scheme, "int4_group:g32");
}

TEST_F(DriftResponderTest, RaisePrecisionKeepsTheLeastAccurateTenthOfTheLayers) {
  auto report = std::make_shared<AdmissionReport>();
  report->decision.recipe.name = "w8a16";
  report->decision.recipe.fallback_scheme = "bf16";
  for (int i = 0; i < 20; ++i) {
    report->layers.push_back({.name = absl::StrCat("layer", i),
                              .scheme = i == 3 ? "bf16" : "int8_group:g32",
                              .output_sqnr_db = i == 3 ? 1.0 : 60.0 - i});
  }
  registry_.SetReport("m", 2, report);
  status_.input = {.shifted = true, .saturated_layer = "layer5"};
  Act(DriftAction::kRaisePrecision);
  ASSERT_EQ(pipeline_.requests.size(), 1u);
  // Of 19 that are quantized: what its scale cuts off, then the least accurate.
  EXPECT_THAT(pipeline_.requests[0].keep, testing::ElementsAre("layer5", "layer19"));
  EXPECT_EQ(pipeline_.requests[0].recipe, "w8a16");
  EXPECT_THAT(LastEvent(), HasSubstr("2 layers in bf16: layer5, layer19"));
}

TEST_F(DriftResponderTest, WithNothingLeftToRaiseItRefreshes) {
  Act(DriftAction::kRaisePrecision);  // the report has no layers
  ASSERT_EQ(pipeline_.requests.size(), 1u);
  EXPECT_TRUE(pipeline_.requests[0].keep.empty());
  EXPECT_THAT(LastEvent(), HasSubstr("refresh: "));
  EXPECT_THAT(LastEvent(), HasSubstr("no layer is left to raise"));
}

TEST_F(DriftResponderTest, ServeReferenceAdmitsF32) {
  Act(DriftAction::kServeReference);
  ASSERT_EQ(pipeline_.requests.size(), 1u);
  EXPECT_EQ(pipeline_.requests[0].scheme, "f32");
  EXPECT_EQ(pipeline_.requests[0].recipe, "");
}

TEST_F(DriftResponderTest, RollBackAdmitsWhatServedBefore) {
  Act(DriftAction::kRollBack);
  ASSERT_EQ(pipeline_.requests.size(), 1u);
  EXPECT_EQ(pipeline_.requests[0].path, "/models/old");
  EXPECT_THAT(LastEvent(), HasSubstr("roll_back: admitting what version 1 served"));
}

// What replaces a bad version may be bad as well: no storm of admissions.
TEST_F(DriftResponderTest, ActionsInARowWaitLongerAndLonger) {
  DriftResponder responder = Responder(DriftAction::kRefresh);
  responder.Act(status_);
  ASSERT_EQ(pipeline_.requests.size(), 1u);  // at once
  NextIsWrong(responder, 3);
  EXPECT_EQ(pipeline_.requests.size(), 1u);
  EXPECT_THAT(LastEvent(), HasSubstr("refresh waits: the one before"));
  clock_.Advance(absl::Minutes(9));
  responder.Compared(status_);
  EXPECT_EQ(pipeline_.requests.size(), 1u);
  clock_.Advance(absl::Minutes(1));
  responder.Compared(status_);
  responder.Compared(status_);
  ASSERT_EQ(pipeline_.requests.size(), 2u);  // once
  EXPECT_EQ(pipeline_.requests[1].path, "/models/3");
  EXPECT_EQ(pipeline_.requests[1].instead_of, 3);
  NextIsWrong(responder, 4);
  clock_.Advance(absl::Minutes(19));
  responder.Compared(status_);
  EXPECT_EQ(pipeline_.requests.size(), 2u);
  clock_.Advance(absl::Minutes(1));
  responder.Compared(status_);
  EXPECT_EQ(pipeline_.requests.size(), 3u);
  clock_.Advance(absl::Hours(25));
  NextIsWrong(responder, 5);
  EXPECT_EQ(pipeline_.requests.size(), 4u);  // at once again
}

TEST_F(DriftResponderTest, WhatHasComeBackIsLeftAlone) {
  DriftResponder responder = Responder(DriftAction::kRefresh);
  responder.Act(status_);
  NextIsWrong(responder, 3);
  status_.state = DriftState::kOk;
  responder.Compared(status_);
  clock_.Advance(absl::Hours(1));
  status_.state = DriftState::kViolated;
  responder.Compared(status_);  // would be told by Act
  EXPECT_EQ(pipeline_.requests.size(), 1u);
}

TEST_F(DriftResponderTest, WhatWasViolatedIsNothingToRollBackTo) {
  DriftResponder responder = Responder(DriftAction::kRollBack);
  responder.Act(status_);  // version 2: back to 1
  ASSERT_EQ(pipeline_.requests.size(), 1u);
  EXPECT_EQ(pipeline_.requests[0].path, "/models/old");
  clock_.Advance(absl::Hours(25));
  NextIsWrong(responder, 3);
  ASSERT_EQ(pipeline_.requests.size(), 2u);
  EXPECT_EQ(pipeline_.requests[1].path, "/models/old");  // not 2
  status_.version = 1;
  responder.Act(status_);
  clock_.Advance(absl::Hours(25));
  NextIsWrong(responder, 4);
  ASSERT_EQ(pipeline_.requests.size(), 3u);
  EXPECT_EQ(pipeline_.requests[2].path, "/models/4");  // all of them were: refresh
  EXPECT_THAT(LastEvent(), HasSubstr("no earlier version that was not VIOLATED has served"));
}

TEST_F(DriftResponderTest, RollBackPassesOverACanaryThatNeverWasStable) {
  Publish(3, "/models/canary", 0.5);
  ASSERT_OK(registry_.DropCanary("m", 3, "test"));
  Publish(4, "/models/newer");
  registry_.WaitForRetirements();
  status_.version = 4;
  Act(DriftAction::kRollBack);
  ASSERT_EQ(pipeline_.requests.size(), 1u);
  EXPECT_EQ(pipeline_.requests[0].path, "/models/new");
}

TEST_F(DriftResponderTest, ACanaryIsDroppedWhateverTheAction) {
  versions_.Watch();
  Publish(3, "/models/canary", 0.5);
  status_.version = 3;
  status_.samples = 12;
  Act(DriftAction::kAlert);
  EXPECT_TRUE(pipeline_.requests.empty());
  EXPECT_THAT(LastEvent(), HasSubstr("drop: canary dropped: its drift is VIOLATED"));
  EXPECT_THAT(LastEvent(), HasSubstr("after 12 requests"));
  EXPECT_EQ(registry_.Labels("m")->canary, 0);
  EXPECT_EQ(registry_.Labels("m")->stable, 2);
}

// As DriftResponderTest, but version 1 is still loaded.
class LoadedDriftResponderTest : public DriftResponderTest {
 protected:
  LoadedDriftResponderTest() : DriftResponderTest(absl::Hours(1)) { versions_.Watch(); }
};

TEST_F(LoadedDriftResponderTest, RollBackSwapsAtOnceAndOnce) {
  Act(DriftAction::kRollBack, 2);
  EXPECT_TRUE(pipeline_.requests.empty());
  EXPECT_EQ(registry_.Labels("m")->stable, 1);
  EXPECT_EQ(registry_.Labels("m")->previous, 2);
  const std::vector<Event> events = events_.Since(0);
  ASSERT_EQ(events.size(), 2u);  // the second time the version is not the stable one any more
  EXPECT_THAT(events[0].reason, HasSubstr("roll_back: stable again, in place of version 2"));
  EXPECT_EQ(events[0].level, LogLevel::kWarning);
  EXPECT_THAT(events[1].reason, HasSubstr("only kept for a rollback"));
}

TEST_F(LoadedDriftResponderTest, WhatWasReplacedForItsDriftIsNotKept) {
  DriftResponder responder = Responder(DriftAction::kRefresh);
  responder.Act(status_);
  ASSERT_EQ(pipeline_.requests.size(), 1u);
  EXPECT_EQ(pipeline_.requests[0].instead_of, 2);
  std::shared_ptr<Servable> servable = FakeServable("m", ModelTask::kGenerate, metrics_);
  servable->version = 7;
  registry_.Publish(servable, pipeline_.requests[0].instead_of);
  EXPECT_EQ(registry_.Labels("m")->previous, 0);
  EXPECT_EQ(registry_.Labels("m")->stable, 7);
  EXPECT_THAT(LastEvent(), testing::Not(HasSubstr("kept for a rollback")));
}

TEST_F(LoadedDriftResponderTest, OtherActionsLeaveThePreviousVersionAlone) {
  Act(DriftAction::kRefresh);
  ASSERT_EQ(pipeline_.requests.size(), 1u);
  EXPECT_EQ(registry_.Labels("m")->stable, 2);
}

TEST_F(DriftResponderTest, WithoutAnEarlierVersionRollBackRefreshesAndSaysWhy) {
  registry_.SetState("m", 1, VersionState::kRejected, "", "");
  Act(DriftAction::kRollBack);
  ASSERT_EQ(pipeline_.requests.size(), 1u);
  EXPECT_EQ(pipeline_.requests[0].path, "/models/new");
  EXPECT_THAT(LastEvent(),
              HasSubstr("refresh: no earlier version that was not VIOLATED has served"));
}

TEST_F(DriftResponderTest, TheEndOfTheActionIsAnEventToo) {
  DriftResponder responder = Responder(DriftAction::kRefresh);
  responder.Act(status_);
  pipeline_.sinks[0]({.version = 7, .stage = "verify", .fraction = 0.5});
  pipeline_.sinks[0]({.version = 7,
                      .stage = "done",
                      .done = true,
                      .status = absl::FailedPreconditionError("mean KL too large")});
  EXPECT_THAT(LastEvent(), HasSubstr("refresh failed, version 2 keeps serving: mean KL too large"));
  pipeline_.sinks[0]({.version = 7, .stage = "done", .done = true});
  EXPECT_THAT(LastEvent(), HasSubstr("refresh done: version 7 serves"));
}

TEST_F(DriftResponderTest, AnAdmissionThatIsRefusedIsSaidAndTriedAgainNextTime) {
  pipeline_.refusal = absl::ResourceExhaustedError("the admission queue is full");
  Act(DriftAction::kRefresh);
  EXPECT_THAT(LastEvent(),
              HasSubstr("refresh failed, version 2 keeps serving: the admission queue is full"));
  EXPECT_EQ(events_.Since(0).back().level, LogLevel::kError);
}

}  // namespace
}  // namespace assay
