// The RPCs that move labels, and requests that name versions by label.
#include <cmath>

#include "tests/server/fake_serving.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using assay::v1::ModelLabels;
using grpc::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

ServerConfig WithDrift(double rate) {
  ServerConfig config;
  config.admin = AdminAccess::kOn;
  config.drift.sampler.rate = rate;
  config.versions.promote_min_samples = 3;
  return config;
}

class VersionServiceTest : public testing::Test {
 protected:
  explicit VersionServiceTest(ServerConfig config = WithDrift(0)) : serving_(std::move(config)) {}

  // Published beside version 1 of "text".
  void PublishCanary(int64_t version, double share) {
    ASSERT_OK(serving_.registry().PublishCanary(NewVersion(version), share));
  }
  std::shared_ptr<Servable> NewVersion(int64_t version) {
    std::shared_ptr<Servable> servable =
        FakeServable("text", ModelTask::kGenerate, serving_.metrics());
    servable->version = version;
    servable->metrics = serving_.metrics().ForModel("text", version);
    servable->report.model = "text";
    servable->report.version = version;
    servable->report.verdict = "admitted";
    return servable;
  }
  grpc::Status SetShare(const std::string& model, double share) {
    assay::v1::SetCanaryShareRequest request;
    request.set_model(model);
    request.set_share(share);
    grpc::ClientContext context;
    return stub_->SetCanaryShare(&context, request, &labels_);
  }
  grpc::Status Promote(const std::string& model, bool force = false) {
    assay::v1::PromoteRequest request;
    request.set_model(model);
    request.set_force(force);
    grpc::ClientContext context;
    return stub_->Promote(&context, request, &labels_);
  }
  grpc::Status RollBack(const std::string& model) {
    assay::v1::RollBackRequest request;
    request.set_model(model);
    grpc::ClientContext context;
    return stub_->RollBack(&context, request, &labels_);
  }
  grpc::Status Drop(const std::string& model) {
    assay::v1::DropCanaryRequest request;
    request.set_model(model);
    grpc::ClientContext context;
    return stub_->DropCanary(&context, request, &labels_);
  }
  grpc::Status Admit(double share, assay::v1::AdmitProgress& last,
                     const std::string& model = "text") {
    assay::v1::AdmitRequest request;
    request.set_name(model);
    request.set_path("/models/new");
    request.set_canary_share(share);
    grpc::ClientContext context;
    const auto stream = stub_->Admit(&context, request);
    while (stream->Read(&last)) {
    }
    return stream->Finish();
  }
  // The version that answered; the status otherwise.
  grpc::Status Generate(int64_t version, const std::string& label, int64_t& answered) {
    assay::v1::GenerateRequest request;
    request.set_model("text");
    request.set_version(version);
    request.set_version_label(label);
    request.set_prompt("abc");
    request.mutable_sampling()->set_max_tokens(2);
    grpc::ClientContext context;
    const auto stream = stub_->Generate(&context, request);
    assay::v1::GenerateResponse response;
    while (stream->Read(&response)) {
      if (response.done()) answered = response.version();
    }
    return stream->Finish();
  }
  grpc::Status Infer(const std::string& version, std::string& answered) {
    inference::ModelInferRequest request;
    request.set_model_name("text");
    request.set_model_version(version);
    auto& input = *request.add_inputs();
    input.set_name("text_input");
    input.set_datatype("BYTES");
    input.add_shape(1);
    input.mutable_contents()->add_bytes_contents("abc");
    inference::ModelInferResponse response;
    grpc::ClientContext context;
    const auto stub = inference::GRPCInferenceService::NewStub(serving_.channel());
    const grpc::Status status = stub->ModelInfer(&context, request, &response);
    answered = response.model_version();
    return status;
  }
  std::vector<std::string> Actions() {
    std::vector<std::string> actions;
    for (const Event& event : serving_.events().Since(0, "text")) {
      if (event.kind == "action") actions.push_back(event.reason);
    }
    return actions;
  }
  // Live traffic that was compared, as the monitor tells of it.
  DriftStatus Watched(int64_t version) {
    for (const DriftStatus& status : serving_.drift().List()) {
      if (status.model == "text" && status.version == version) return status;
    }
    return {};
  }

  FakeServing serving_;
  const std::unique_ptr<assay::v1::AssayService::Stub> stub_ =
      assay::v1::AssayService::NewStub(serving_.channel());
  ModelLabels labels_;
};

void ExpectError(const grpc::Status& status, StatusCode code,
                 const testing::Matcher<std::string>& message) {
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  EXPECT_THAT(status.error_message(), message);
}

TEST_F(VersionServiceTest, UnknownModelsAreNotFound) {
  for (const grpc::Status& status :
       {SetShare("nobody", 0.5), Promote("nobody"), RollBack("nobody"), Drop("nobody")}) {
    ExpectError(status, StatusCode::NOT_FOUND, HasSubstr("model=nobody"));
  }
}

TEST_F(VersionServiceTest, WithoutTheLabelEachSaysWhichIsMissing) {
  for (const grpc::Status& status :
       {SetShare("text", 0.5), Promote("text"), Promote("text", /*force=*/true), Drop("text")}) {
    ExpectError(status, StatusCode::FAILED_PRECONDITION,
                HasSubstr("model 'text' has no canary version"));
  }
  ExpectError(RollBack("text"), StatusCode::FAILED_PRECONDITION,
              HasSubstr("model 'text' has no previous version"));
}

TEST_F(VersionServiceTest, AShareIsFromZeroToOne) {
  PublishCanary(2, 0.5);
  for (const double bad : {-0.1, 1.5, HUGE_VAL, std::nan("")}) {
    ExpectError(SetShare("text", bad), StatusCode::INVALID_ARGUMENT, HasSubstr("share="));
  }
  ExpectError(SetShare("text", 1.5), StatusCode::INVALID_ARGUMENT, HasSubstr("share=1.5"));
  for (const double good : {0.0, 0.25, 1.0}) {
    EXPECT_TRUE(SetShare("text", good).ok());
    EXPECT_EQ(labels_.canary_share(), good);
    EXPECT_EQ(labels_.canary(), 2);
  }
}

TEST_F(VersionServiceTest, AdmitAsACanary) {
  assay::v1::AdmitProgress last;
  ASSERT_TRUE(Admit(0.5, last).ok());
  EXPECT_EQ(last.version(), 2);
  int64_t first = 0, second = 0;
  ASSERT_TRUE(Generate(0, "", first).ok());
  ASSERT_TRUE(Generate(0, "", second).ok());
  EXPECT_EQ(first + second, 1 + 2);  // one each
  ExpectError(Admit(0.5, last, "nobody"), StatusCode::FAILED_PRECONDITION,
              HasSubstr("none serves: model=nobody"));
}

TEST_F(VersionServiceTest, RequestsNameVersionsByNumberOrLabel) {
  int64_t version = 0;
  ExpectError(Generate(0, "canary", version), StatusCode::NOT_FOUND, HasSubstr("'canary'"));
  PublishCanary(2, 0.5);
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(Generate(0, "canary", version).ok());
    EXPECT_EQ(version, 2);
    ASSERT_TRUE(Generate(0, "stable", version).ok());
    EXPECT_EQ(version, 1);
    ASSERT_TRUE(Generate(2, "", version).ok());
    EXPECT_EQ(version, 2);
  }
  ExpectError(Generate(0, "beta", version), StatusCode::INVALID_ARGUMENT, HasSubstr("'beta'"));
  ExpectError(Generate(2, "canary", version), StatusCode::INVALID_ARGUMENT,
              AllOf(HasSubstr("version=2"), HasSubstr("version_label=canary")));
  ExpectError(Generate(0, "previous", version), StatusCode::NOT_FOUND, HasSubstr("'previous'"));
}

TEST_F(VersionServiceTest, OpenInferenceRequestsToo) {
  PublishCanary(2, 1);
  std::string version;
  ASSERT_TRUE(Infer("", version).ok());
  EXPECT_EQ(version, "2");
  ASSERT_TRUE(Infer("stable", version).ok());
  EXPECT_EQ(version, "1");
  ASSERT_TRUE(Infer("canary", version).ok());
  EXPECT_EQ(version, "2");
  ExpectError(Infer("beta", version), StatusCode::INVALID_ARGUMENT, HasSubstr("'beta'"));
  ExpectError(Infer("previous", version), StatusCode::NOT_FOUND, HasSubstr("'previous'"));
}

TEST_F(VersionServiceTest, OnlyInferenceIsSplit) {
  PublishCanary(2, 1);  // gets every unversioned inference request
  const auto stub = inference::GRPCInferenceService::NewStub(serving_.channel());
  inference::ModelMetadataRequest request;
  request.set_name("text");
  inference::ModelMetadataResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub->ModelMetadata(&context, request, &response).ok());
  EXPECT_THAT(response.versions(), ElementsAre("1", "2"));
  assay::v1::TokenizeRequest tokenize;
  tokenize.set_model("text");
  tokenize.set_text("abc");
  assay::v1::TokenizeResponse tokens;
  for (const char* label : {"", "stable", "canary"}) {
    tokenize.set_version_label(label);
    grpc::ClientContext rpc;
    EXPECT_TRUE(stub_->Tokenize(&rpc, tokenize, &tokens).ok());
  }
  tokenize.set_version_label("beta");
  grpc::ClientContext rpc;
  ExpectError(stub_->Tokenize(&rpc, tokenize, &tokens), StatusCode::INVALID_ARGUMENT,
              HasSubstr("'beta'"));
  assay::v1::DetokenizeRequest detokenize;
  detokenize.set_model("text");
  detokenize.set_version_label("previous");
  assay::v1::DetokenizeResponse text;
  grpc::ClientContext second;
  ExpectError(stub_->Detokenize(&second, detokenize, &text), StatusCode::NOT_FOUND,
              HasSubstr("'previous'"));
}

TEST_F(VersionServiceTest, WhereDriftIsOffAPromotionSaysSo) {
  PublishCanary(2, 0.5);
  ExpectError(Promote("text"), StatusCode::FAILED_PRECONDITION,
              AllOf(HasSubstr("drift.rate is 0"), HasSubstr("expected=3")));
  ASSERT_TRUE(Promote("text", /*force=*/true).ok());
  EXPECT_EQ(labels_.stable(), 2);
  EXPECT_EQ(labels_.canary(), 0);
  EXPECT_EQ(labels_.previous(), 1);
  absl::Time until;
  std::string error;
  ASSERT_TRUE(absl::ParseTime(absl::RFC3339_sec, labels_.previous_until(), &until, &error))
      << error;
  // The day's clock and the steady one are apart by decades; the test took less than a minute.
  const absl::Duration left = until - absl::Now();
  EXPECT_LE(left, ServerConfig().versions.rollback_window);
  EXPECT_GE(left, ServerConfig().versions.rollback_window - absl::Minutes(1));
  EXPECT_THAT(Actions().back(), AllOf(HasSubstr("promote: "), HasSubstr("forced, although")));
}

TEST_F(VersionServiceTest, ForceDoesNotPassOverTheGate) {
  std::shared_ptr<Servable> servable = NewVersion(2);
  servable->report.verification.failures.push_back("mean KL 0.5");
  ASSERT_OK(serving_.registry().PublishCanary(std::move(servable), 0.5));
  ExpectError(Promote("text", /*force=*/true), StatusCode::FAILED_PRECONDITION,
              AllOf(HasSubstr("the gate did not pass version 2"), HasSubstr("failures=1")));
  servable = NewVersion(3);
  servable->report.verdict = "";
  ASSERT_OK(serving_.registry().PublishCanary(std::move(servable), 0.5));
  ExpectError(Promote("text", /*force=*/true), StatusCode::FAILED_PRECONDITION,
              HasSubstr("the gate did not pass version 3"));
}

TEST_F(VersionServiceTest, RollBackSwapsAndUndoes) {
  serving_.registry().Publish(NewVersion(2));
  for (const int64_t stable : {1, 2, 1}) {
    ASSERT_TRUE(RollBack("text").ok());
    EXPECT_EQ(labels_.stable(), stable);
    EXPECT_EQ(labels_.previous(), 3 - stable);
    int64_t answered = 0;
    ASSERT_TRUE(Generate(0, "", answered).ok());
    EXPECT_EQ(answered, stable);
  }
  EXPECT_THAT(Actions().back(), HasSubstr("roll_back: stable again, in place of version 2: asked"));
}

TEST_F(VersionServiceTest, ADroppedCanaryGetsNothingMore) {
  PublishCanary(2, 1);
  ASSERT_TRUE(Drop("text").ok());
  EXPECT_EQ(labels_.canary(), 0);
  int64_t answered = 0;
  ASSERT_TRUE(Generate(0, "", answered).ok());
  EXPECT_EQ(answered, 1);
  ExpectError(Generate(2, "", answered), StatusCode::UNAVAILABLE,
              HasSubstr("canary dropped: asked for by RPC"));
}

TEST_F(VersionServiceTest, ModelsAndMetricsShowLabelsAndShares) {
  const auto text = serving_.metrics().Scrape();
  for (const char* action : {"publish", "canary", "promote", "roll_back", "drop"}) {
    EXPECT_THAT(text, HasSubstr("assay_model_version_changes_total{action=\"" +
                                std::string(action) + "\"} 0"));
  }
  EXPECT_THAT(text, HasSubstr("assay_model_traffic_share_ratio{model=\"text\",version=\"1\"} 1\n"));
  PublishCanary(2, 0.25);
  assay::v1::ListModelsResponse list;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->ListModels(&context, {}, &list).ok());
  std::vector<std::string> shown;
  for (const auto& model : list.models()) {
    if (model.name() == "text") {
      shown.push_back(model.label() + " " + std::to_string(model.traffic_share()));
    }
  }
  EXPECT_THAT(shown, ElementsAre("stable 0.750000", "canary 0.250000"));
  const auto after = serving_.metrics().Scrape();
  EXPECT_THAT(after,
              AllOf(HasSubstr("assay_model_traffic_share_ratio{model=\"text\",version=\"1\"} 0.75"),
                    HasSubstr("assay_model_traffic_share_ratio{model=\"text\",version=\"2\"} 0.25"),
                    HasSubstr("assay_model_version_changes_total{action=\"canary\"} 1")));
}

class WatchedVersionTest : public VersionServiceTest {
 protected:
  WatchedVersionTest() : VersionServiceTest(WithDrift(1)) {
    std::shared_ptr<Servable> servable = NewVersion(2);
    (void)serving_.drift().Watch(servable->report, ModelTask::kGenerate,
                                 nullptr);  // nothing is sampled
    EXPECT_OK(serving_.registry().PublishCanary(std::move(servable), 0.5));
  }
};

TEST_F(WatchedVersionTest, TooFewRequestsAreRefusedWithBothNumbers) {
  ExpectError(
      Promote("text"), StatusCode::FAILED_PRECONDITION,
      AllOf(HasSubstr("too few requests of version 2"), HasSubstr("compared=0 expected=3")));
  ASSERT_TRUE(Promote("text", /*force=*/true).ok());
}

// Conditions on what the monitor tells, without its thread.
class AutoPromoteTest : public WatchedVersionTest {
 protected:
  VersionControl Control(bool auto_promote) {
    return {{.promote_min_samples = 3, .auto_promote = auto_promote},
            serving_.registry(),
            serving_.drift(),
            serving_.metrics(),
            serving_.events()};
  }
  int64_t Stable() { return serving_.registry().Labels("text")->stable; }
};

TEST_F(AutoPromoteTest, WaitsForAllConditions) {
  DriftStatus status = Watched(2);
  status.samples = 3;
  status.score = 0.6 * status.limit;
  status.standard_error = 0.19 * status.limit;
  Control(false).Compared(status);
  EXPECT_EQ(Stable(), 1);
  VersionControl control = Control(true);
  status.samples = 2;
  control.Compared(status);
  EXPECT_EQ(Stable(), 1);
  status.samples = 3;
  for (const DriftState bad : {DriftState::kWarn, DriftState::kViolated}) {
    status.state = bad;
    control.Compared(status);
    EXPECT_EQ(Stable(), 1);
  }
  status.state = DriftState::kOk;
  // That nothing is proven against it is not enough.
  status.standard_error = 0.21 * status.limit;
  control.Compared(status);
  EXPECT_EQ(Stable(), 1);
  status.standard_error = 0.19 * status.limit;
  status.error = "the file was written over";
  control.Compared(status);
  EXPECT_EQ(Stable(), 1);
  status.error.clear();
  ASSERT_TRUE(SetShare("text", 0).ok());
  control.Compared(status);
  EXPECT_EQ(Stable(), 1);
  ASSERT_TRUE(SetShare("text", 0.1).ok());
  control.Compared(status);
  EXPECT_EQ(Stable(), 2);
  control.Compared(status);  // it is no canary any more
  EXPECT_EQ(Stable(), 2);
  EXPECT_THAT(Actions().back(), HasSubstr("versions.auto_promote, drift OK"));
}

TEST(VersionServicePermissionTest, AllAreAdministration) {
  ServerConfig config;
  config.admin = AdminAccess::kOff;
  FakeServing serving(config);
  const auto stub = assay::v1::AssayService::NewStub(serving.channel());
  const auto denied = [](const grpc::Status& status) {
    ExpectError(status, StatusCode::PERMISSION_DENIED, HasSubstr("admin: true"));
  };
  ModelLabels labels;
  grpc::ClientContext contexts[4];
  denied(stub->SetCanaryShare(&contexts[0], {}, &labels));
  denied(stub->Promote(&contexts[1], {}, &labels));
  denied(stub->RollBack(&contexts[2], {}, &labels));
  denied(stub->DropCanary(&contexts[3], {}, &labels));
}

}  // namespace
}  // namespace assay
