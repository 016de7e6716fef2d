#include "server/status_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/status_charts.h"
#include "tests/server/fake_serving.h"

namespace assay {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kAttack = "<script>alert('x\")</script>&";

std::shared_ptr<AdmissionReport> SomeReport() {
  auto report = std::make_shared<AdmissionReport>();
  report->model = "m";
  report->version = 1;
  report->task = "generate";
  report->verdict = "admitted";
  report->decision.recipe.name = "w8a16";
  report->decision.trace = {"rule one: did not match"};
  report->verification.documents = 3;
  report->verification.mean_kl = report->verification.mean_kl_bootstrap = {0.002, 0.001, 0.003};
  LayerReport layer;
  layer.name = "model.layers.7.mlp.up";
  layer.scheme = "int8_channel";
  layer.activation = "a16";
  layer.kernel = "some_kernel";
  layer.bytes_f32 = 4;
  layer.output_sqnr_db = 41.5;
  report->layers = {layer};
  return report;
}

VersionInfo Version(VersionState state, std::string reason = "") {
  VersionInfo version;
  version.name = "m";
  version.version = 1;
  version.state = state;
  version.reason = std::move(reason);
  return version;
}

StatusView ViewOf(std::vector<VersionInfo> versions) {
  StatusView view;
  view.version = "1.2.3";
  view.started = absl::FromUnixSeconds(1000000);
  view.now = view.started + absl::Minutes(90);
  view.drift_rate = 0.01;
  view.versions = std::move(versions);
  return view;
}

TEST(StatusPageTest, VersionsShowTheirLabels) {
  VersionInfo stable = Version(VersionState::kServing), canary = stable, draining = stable;
  stable.label = "stable";
  canary.version = 2;
  canary.label = "canary";
  canary.traffic_share = 0.25;
  draining.version = 3;
  EXPECT_THAT(RenderStatus(ViewOf({stable, canary, draining})),
              AllOf(HasSubstr("<td data-heading=\"label\">stable<td"),
                    HasSubstr("<td data-heading=\"label\">canary, 25 % of the requests<td"),
                    HasSubstr("</b><td data-heading=\"label\">–<td"),
                    HasSubstr("m:1 <b class=\"good\">SERVING</b> <small>stable</small></h3>"),
                    HasSubstr("<small>canary, 25 % of the requests</small></h3>"),
                    HasSubstr("m:3 <b class=\"good\">SERVING</b></h3>")));
}

TEST(StatusPageTest, ModelsAreCountedByName) {
  VersionInfo one = Version(VersionState::kServing), two = one, other = one;
  two.version = 2;
  other.name = "other";
  VersionInfo retired = Version(VersionState::kRetired);
  retired.name = "retired";
  EXPECT_THAT(RenderStatus(ViewOf({one, retired})), HasSubstr("Ready: 1 model serves."));
  EXPECT_THAT(RenderStatus(ViewOf({one, two})), HasSubstr("Ready: 1 model serves, in 2 versions."));
  EXPECT_THAT(RenderStatus(ViewOf({one, other})), HasSubstr("Ready: 2 models serve."));
  EXPECT_THAT(RenderStatus(ViewOf({one, two, other})),
              HasSubstr("Ready: 2 models serve, in 3 versions."));
}

TEST(StatusPageTest, DriftIsNotOkBeforeAnythingWasCompared) {
  VersionInfo stable = Version(VersionState::kServing), canary = stable;
  canary.version = 2;
  StatusView view = ViewOf({stable, canary});
  DriftStatus drift;
  drift.model = "m";
  drift.version = 1;
  view.drift = {drift, drift};
  view.drift[1].version = 2;
  EXPECT_THAT(RenderStatus(view),
              AllOf(HasSubstr("Drift: no request was compared yet."),
                    HasSubstr("live traffic: <b class=\"soft\">nothing compared yet</b>"),
                    Not(HasSubstr(">OK</b>"))));
  view.drift[0].samples = 7;
  EXPECT_THAT(RenderStatus(view),
              AllOf(HasSubstr("Drift OK (7 requests compared, none yet of m:2)."),
                    HasSubstr("live traffic: <b class=\"good\">OK</b>"),
                    HasSubstr("live traffic: <b class=\"soft\">nothing compared yet</b>")));
}

TEST(StatusPageTest, WithoutModelsSaysWhatToDo) {
  EXPECT_THAT(RenderStatus(ViewOf({})),
              AllOf(HasSubstr("Ready: no model serves."), HasSubstr("assay admit PATH"),
                    HasSubstr("1.2.3, up 1 h 30 min"), Not(HasSubstr("{{"))));
}

TEST(StatusPageTest, AServingModelShowsItsPrecisionFiguresAndRecipe) {
  VersionInfo version = Version(VersionState::kServing);
  version.report = SomeReport();
  EXPECT_THAT(
      RenderStatus(ViewOf({version})),
      AllOf(HasSubstr("SERVING"), HasSubstr("models/m/1/report\""),
            HasSubstr("models/m/1/report.json\""), HasSubstr("int8_channel/a16"),
            HasSubstr("model.layers.7.mlp.up: int8_channel/a16, kernel some_kernel, weights 0.0 "
                      "dB, output 41.5 dB"),
            HasSubstr("0.00100 to 0.00300"), HasSubstr("<b>w8a16</b>"),
            HasSubstr("rule one: did not match")));
}

TEST(StatusPageTest, NotReadyNamesTheObstacle) {
  StatusView view = ViewOf({Version(VersionState::kAdmitting)});
  view.versions[0].stage = "verify";
  view.obstacles = {"m: ADMITTING (verify)"};
  EXPECT_THAT(RenderStatus(view),
              AllOf(HasSubstr("verdict bad"), HasSubstr("<div class=\"why\">verify"),
                    HasSubstr("Not ready: m: ADMITTING (verify).")));
}

TEST(StatusPageTest, ARejectedModelSaysWhy) {
  EXPECT_THAT(RenderStatus(ViewOf({Version(VersionState::kRejected, "mean KL 1.2 is above 0.01")})),
              AllOf(HasSubstr("REJECTED"), HasSubstr("mean KL 1.2 is above 0.01")));
}

TEST(StatusPageTest, ViolatedDriftIsTheVerdict) {
  StatusView view = ViewOf({Version(VersionState::kServing)});
  DriftStatus drift;
  drift.model = "m";
  drift.version = 1;
  drift.state = DriftState::kViolated;
  drift.cause = "mean";
  drift.statistic = "mean_kl";
  drift.score = 0.02;
  drift.low = 0.012;
  drift.high = 0.03;
  drift.limit = 0.006;
  drift.samples = 12;
  view.drift = {drift};
  EXPECT_THAT(RenderStatus(view),
              AllOf(HasSubstr("verdict bad"), HasSubstr("Drift VIOLATED: m:1."),
                    HasSubstr("<b class=\"bad\">VIOLATED</b> by the mean"),
                    HasSubstr("surely between 0.012 and 0.03"), HasSubstr("class=\"range\"")));
}

TEST(StatusPageTest, TextOfOthersIsEscaped) {
  StatusView view = ViewOf({Version(VersionState::kRejected, kAttack)});
  auto report = SomeReport();
  report->reason = report->model = report->layers[0].name = report->evaluation_set = kAttack;
  report->layers[0].scheme = report->decision.trace[0] = report->decision.rule = kAttack;
  report->verification.failures = report->verification.defects = {kAttack};
  view.versions[0].name = view.versions[0].path = kAttack;
  view.versions[0].report = report;
  Event event;
  event.model = event.kind = event.reason = kAttack;
  view.events = {event};
  DriftStatus drift;
  drift.model = drift.error = drift.cause = drift.statistic = kAttack;
  drift.version = 1;
  view.drift = {drift};
  view.obstacles = view.policy_trace = {kAttack};
  view.policy = view.hardware = kAttack;
  EXPECT_THAT(RenderStatus(view),
              AllOf(HasSubstr("&lt;script&gt;alert(&#39;x&quot;)&lt;/script&gt;&amp;"),
                    Not(HasSubstr("<script>alert")), Not(HasSubstr("'x\""))));
}

TEST(StatusPageTest, PathSegmentsAreEncodedAndDecodedOnce) {
  EXPECT_EQ(EncodePathSegment("a/b c%2f<"), "a%2Fb%20c%252f%3C");
  EXPECT_EQ(DecodePathSegment("a%2Fb%20c%252f%3C"), "a/b c%2f<");
  EXPECT_EQ(DecodePathSegment("%"), "%");
  EXPECT_EQ(DecodePathSegment("%4"), "%4");
  EXPECT_EQ(DecodePathSegment("%zz%41"), "%zzA");
}

class ServedStatusPageTest : public testing::Test {
 protected:
  HttpPage Get(const std::string& path) const {
    return page_.Get(path).value_or(HttpPage{0, "", "no such path"});
  }
  FakeServing serving_;
  StatusPage page_{serving_.context(), "1.2.3", absl::Now()};
};

TEST_F(ServedStatusPageTest, ShowsEveryModelThatServes) {
  for (const char* path : {"/", "/status"}) {
    const HttpPage page = Get(path);
    EXPECT_EQ(page.code, 200);
    EXPECT_EQ(page.type, "text/html; charset=utf-8");
    EXPECT_THAT(page.body, AllOf(HasSubstr("text:1"), HasSubstr("embed:1"), HasSubstr("classify:1"),
                                 HasSubstr("Ready: 3 models serve.")));
  }
}

TEST_F(ServedStatusPageTest, TrafficIsDrawn) {
  serving_.context().registry.SetReport("text", 1, SomeReport());
  const absl::Time ended = serving_.context().clock.Now() - TrafficHistory::kStep;
  serving_.context().traffic.Add("text", 1, {.total = absl::Milliseconds(20), .tokens = 5}, ended);
  EXPECT_THAT(Get("/").body, AllOf(HasSubstr("1 requests, 0 failed"), HasSubstr("<polyline"),
                                   HasSubstr("tokens/s")));
}

TEST_F(ServedStatusPageTest, ReportsAreServedAsPageAndAsJson) {
  serving_.context().registry.SetReport("text", 1, SomeReport());
  EXPECT_THAT(Get("/models/text/1/report").body,
              AllOf(HasSubstr("<!doctype html>"), HasSubstr("Admission report")));
  const HttpPage json = Get("/models/t%65xt/1/report.json");
  EXPECT_EQ(json.type, "application/json");
  EXPECT_THAT(json.body, HasSubstr("\"verdict\": \"admitted\""));
}

TEST_F(ServedStatusPageTest, UnknownModelsVersionsAndPathsAreNotFound) {
  serving_.context().registry.SetReport("text", 1, SomeReport());
  serving_.context().registry.SetState("waits", 1, VersionState::kQueued, "", "");
  for (const char* path :
       {"/models/nobody/1/report", "/models/text/2/report", "/models/text/x/report",
        "/models/text/0/report", "/models/text/-1/report", "/models/waits/1/report",
        "/models/..%2f..%2fetc%2fpasswd/1/report", "/models/%3Cscript%3E/1/report",
        "/models//1/report", "/models/text%00/1/report"}) {
    const HttpPage page = Get(path);
    EXPECT_EQ(page.code, 404) << path;
    EXPECT_EQ(page.type, "text/plain; charset=utf-8");
    EXPECT_THAT(page.body, Not(HasSubstr("<")));
  }
  for (const char* path : {"/models", "/models/text/1", "/models/text/1/report/x", "/Status", ""}) {
    EXPECT_FALSE(page_.Get(path).has_value()) << path;
  }
}

}  // namespace
}  // namespace assay
