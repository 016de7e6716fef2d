#include "loadtest/report.h"

#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "loadtest/compare.h"
#include "tests/support/status_matchers.h"

namespace assay::load {
namespace {

using testing::HasSubstr;
using testing::Not;

// Three open phases of two seconds: 10, 100 and 10 requests per second.
Scenario ThreePhases() {
  Scenario out;
  out.name = "a <b>";
  out.slo.first_token = absl::Milliseconds(100);
  out.slo.inter_token = absl::Milliseconds(20);
  out.slo.end_to_end = absl::Seconds(1);
  out.kinds = {{.name = "chat", .model = "m"},
               {.name = "slow", .model = "m", .reader_delay = absl::Seconds(1)},
               {.name = "embed", .model = "n", .call = Call::kEmbed}};
  for (const double rate : {10, 100, 10}) {
    out.phases.push_back({.name = absl::StrCat("p", out.phases.size()),
                          .duration = absl::Seconds(2),
                          .arrivals = {.rate = {rate}}});
  }
  return out;
}

class ReportTest : public testing::Test {
 protected:
  ReportTest() : recorder_(scenario_) {
    recorder_.SetStart(start_);
    facts_ = {.server = "host:1", .started = "2026-01-01T00:00:00Z"};
    facts_.phases = {{0, 2, 10}, {2, 4, 100}, {4, 6, 10}};
  }

  // A request that ended; times in milliseconds from the intended moment.
  CallResult Ended(size_t phase, double at_s, std::vector<int> pieces_ms, int end_ms,
                   int kind = 0) {
    CallResult out;
    out.dispatch.phase = phase;
    out.dispatch.planned.kind = kind;
    out.dispatch.intended = start_ + std::chrono::microseconds(static_cast<int64_t>(at_s * 1e6));
    for (size_t i = 0; i < pieces_ms.size(); ++i) {
      if (i > 0) out.gaps_us.push_back((pieces_ms[i] - pieces_ms[i - 1]) * 1000);
      out.last_us = pieces_ms[i] * 1000;
    }
    if (!pieces_ms.empty()) out.first_us = pieces_ms[0] * 1000;
    out.tokens = static_cast<int64_t>(pieces_ms.size());
    out.end_us = end_ms * 1000;
    return out;
  }
  void Add(const CallResult& result, int64_t late_us = 0) {
    recorder_.OnStarted(result.dispatch, late_us, /*open_loop=*/true);
    recorder_.OnEnded(result);
  }
  void AddFailed(size_t phase, double at_s, grpc::StatusCode code, bool ours = false) {
    CallResult result = Ended(phase, at_s, {}, 1);
    result.status = {code, "no"};
    result.cancelled_by_us = ours;
    Add(result);
  }
  Json Report() const { return MakeReport(scenario_, recorder_, facts_); }

  Scenario scenario_ = ThreePhases();
  Instant start_ = SteadyClock::now();
  Recorder recorder_;
  RunFacts facts_;
};

TEST_F(ReportTest, EachLimitOfTheSloDecides) {
  Add(Ended(0, 0.1, {100, 120}, 1000));  // at every limit: good
  Add(Ended(0, 0.2, {101, 120}, 130));   // first token
  Add(Ended(0, 0.3, {10, 31}, 40));      // gap
  Add(Ended(0, 0.4, {10, 12}, 1001));    // whole
  AddFailed(0, 0.5, grpc::StatusCode::RESOURCE_EXHAUSTED);
  AddFailed(0, 0.6, grpc::StatusCode::CANCELLED, /*ours=*/true);  // as its client wanted: good
  AddFailed(0, 0.7, grpc::StatusCode::CANCELLED);
  const Json totals = Report()["totals"];
  EXPECT_EQ(totals["requests"], 7);
  EXPECT_EQ(totals["good"], 2);
  EXPECT_EQ(
      totals["outcomes"],
      Json({{"CANCELLED", 1}, {"CANCELLED (ours)", 1}, {"OK", 4}, {"RESOURCE_EXHAUSTED", 1}}));
  EXPECT_EQ(totals["e2e_ms"]["count"], 4);
  EXPECT_EQ(totals["failed_ms"]["count"], 2);
}

TEST_F(ReportTest, AnAnswerWithoutTextIsNotGood) {
  Add(Ended(0, 0.1, {}, 20));
  AddFailed(0, 0.2, grpc::StatusCode::CANCELLED, /*ours=*/true);  // before it could come
  Add(Ended(0, 0.3, {}, 20, 2));                                  // an embedding has none
  const Json report = Report();
  EXPECT_EQ(report["totals"]["outcomes"]["OK"], 2);
  EXPECT_EQ(report["kinds"]["embed"]["good"], 1);
  EXPECT_EQ(report["totals"]["good"], 2);
}

TEST_F(ReportTest, TheMeanGapDecidesNotTheLargest) {
  Add(Ended(0, 0.1, {10, 40, 41, 42}, 50));  // gaps 30, 1, 1
  EXPECT_EQ(Report()["totals"]["good"], 1);
}

TEST_F(ReportTest, SlowReadersMeasureNoGapsAndEncodersNoTokens) {
  Add(Ended(0, 0.1, {10, 1010}, 2000, 1));
  Add(Ended(0, 0.2, {500}, 500, 2));
  const Json report = Report();
  EXPECT_EQ(report["totals"]["good"], 2);
  EXPECT_EQ(report["totals"]["itl_ms"]["count"], 0);
  EXPECT_EQ(report["totals"]["ttft_ms"]["count"], 1);
  EXPECT_EQ(report["kinds"]["slow"]["e2e_ms"]["count"], 0);
  EXPECT_EQ(report["kinds"]["embed"]["e2e_ms"]["count"], 1);
}

TEST_F(ReportTest, WarmUpIsShownButNotCounted) {
  scenario_.phases[0].warm_up = true;
  Add(Ended(0, 0.1, {10}, 20));
  Add(Ended(1, 2.1, {10}, 20));
  const Json report = Report();
  EXPECT_EQ(report["phases"][0]["requests"], 1);
  EXPECT_EQ(report["totals"]["requests"], 1);
  EXPECT_EQ(report["seconds"], 4.0);
}

TEST_F(ReportTest, TheSweepKnowsItsPeakAndTheRecovery) {
  for (int i = 0; i < 20; ++i) Add(Ended(0, 0.1 * i, {10}, 20));
  for (int i = 0; i < 200; ++i) {
    i % 20 == 0 ? Add(Ended(1, 2 + 0.01 * i, {10}, 20))
                : AddFailed(1, 2 + 0.01 * i, grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
  // Half a second of bad ones, then good ones.
  for (int i = 0; i < 20; ++i) Add(Ended(2, 4.05 + 0.09 * i, {i < 5 ? 500 : 10}, 600));
  const Json sweep = Report()["sweep"];
  EXPECT_EQ(sweep["peak_phase"], "p0");
  EXPECT_EQ(sweep["peak_goodput_per_s"], 10.0);
  EXPECT_EQ(sweep["heaviest_phase"], "p1");
  EXPECT_EQ(sweep["share_of_peak"], 0.5);
  EXPECT_EQ(sweep["recovery_phase"], "p2");
  EXPECT_EQ(sweep["recovery_s"], 0.5);
  EXPECT_THAT(MarkdownOf(Report()), HasSubstr("50 % of the peak. Recovery after it: 0.5 s."));
}

TEST_F(ReportTest, WithoutAGoodWindowThereIsNoRecovery) {
  for (int i = 0; i < 3; ++i) Add(Ended(i, 2.0 * i + 0.1, {500}, 600));
  EXPECT_TRUE(Report()["sweep"]["recovery_s"].is_null());
  EXPECT_THAT(MarkdownOf(Report()), HasSubstr("not within the phase that followed"));
}

TEST_F(ReportTest, ALateGeneratorMakesTheFiguresInvalid) {
  for (int i = 0; i < 98; ++i) Add(Ended(0, 0.01 * i, {10}, 20), 100);
  Add(Ended(0, 0.99, {10}, 20), 10000);
  EXPECT_EQ(Report()["valid"], true);
  for (int i = 0; i < 2; ++i)
    Add(Ended(0, 1, {10}, 20), 11000);  // the 99th of 101 is still 10 ms late
  EXPECT_EQ(Report()["generator"]["late_ms"]["count"], 101);
  Add(Ended(0, 1, {10}, 20), 11000);
  EXPECT_EQ(Report()["valid"], false);
  EXPECT_THAT(MarkdownOf(Report()), HasSubstr("INVALID: the generator could not keep up"));
  EXPECT_THAT(HtmlOf(Report()), HasSubstr("class=\"bad\">INVALID"));
}

TEST_F(ReportTest, RequestsThatWereNotSentMakeTheFiguresInvalid) {
  recorder_.OnNotSent(Ended(0, 0.1, {}, 0).dispatch);
  const Json report = Report();
  EXPECT_EQ(report["valid"], false);
  EXPECT_EQ(report["generator"]["not_sent"], 1);
}

TEST_F(ReportTest, AClosedLoopSaysThatItHidesStalls) {
  EXPECT_THAT(MarkdownOf(Report()), Not(HasSubstr("hide stalls")));
  scenario_.phases[0].arrivals = {.process = Arrivals::Process::kClosed, .clients = 3};
  EXPECT_THAT(MarkdownOf(Report()), HasSubstr("hide stalls"));
}

TEST_F(ReportTest, TheServersFiguresAreDifferences) {
  ServerSample before, during, after;
  before.resident_bytes = 1e6;
  before.requests = {{"success", 5}};
  during.resident_bytes = 3e6;
  during.pending = 7;
  after.resident_bytes = 2e6;
  after.requests = {{"success", 9}, {"rejected", 1}};
  facts_.before_and_after = {before, after};
  facts_.samples = {during};
  const Json server = Report()["server_metrics"];
  EXPECT_EQ(server["most_resident_bytes"], 3e6);
  EXPECT_EQ(server["most_pending"], 7.0);
  EXPECT_EQ(server["handled"], Json({{"rejected", 1.0}, {"success", 4.0}}));
  EXPECT_TRUE(server["before"]["pending"].is_null());
}

TEST_F(ReportTest, ThePageEscapesAndLoadsNothing) {
  for (int i = 0; i < 3; ++i) Add(Ended(i, 2.0 * i + 0.1, {10, 20}, 30));
  const std::string page = HtmlOf(Report());
  EXPECT_THAT(page, HasSubstr("a &lt;b&gt;"));
  EXPECT_THAT(page, Not(HasSubstr("<b>a <b>")));
  EXPECT_THAT(page, HasSubstr("<polyline"));
  for (const char* outside :
       {"http://", "https://", "src=", "href=", "url(", "<script", "@import"}) {
    EXPECT_THAT(page, Not(HasSubstr(outside)));
  }
}

// Of ten a second that were planned, three came in two seconds, one of which could not be sent.
TEST_F(ReportTest, WhatWasOfferedIsCountedNotPlanned) {
  Add(Ended(0, 0.1, {10}, 20));
  AddFailed(0, 0.2, grpc::StatusCode::UNAVAILABLE);
  recorder_.OnNotSent(Ended(0, 0.3, {}, 0).dispatch);
  const Json phase = Report()["phases"][0];
  EXPECT_EQ(phase["offered_per_s"], 1.5);
  EXPECT_EQ(phase["planned_per_s"], 10.0);
}

TEST_F(ReportTest, ARunWithoutRequestsIsInvalid) {
  scenario_.phases[0].warm_up = true;
  Add(Ended(0, 0.1, {10}, 20));  // not counted
  const Json nothing = Report();
  EXPECT_EQ(nothing["valid"], false);
  EXPECT_THAT(nothing["invalid"].dump(), HasSubstr("no request was counted"));
  Add(Ended(1, 2.1, {10}, 20));
  EXPECT_EQ(Report()["valid"], true);
}

TEST_F(ReportTest, AnEmptyRunHasAReport) {
  EXPECT_THAT(MarkdownOf(Report()), HasSubstr("host:1"));
  EXPECT_THAT(HtmlOf(Report()), HasSubstr("</html>"));
}

TEST_F(ReportTest, ComparisonShowsRatiosAndCounts) {
  for (int i = 0; i < 10; ++i) Add(Ended(0, 0.1 * i, {10}, 100));
  AddFailed(0, 1.1, grpc::StatusCode::UNAVAILABLE);
  const Json a = Report();
  Json b = Report();
  b["totals"]["e2e_ms"]["p99"] = 150.0;
  b["totals"]["e2e_ms"]["count"] = 20;
  b["seed"] = 2;
  b["invalid"] = {"late"};
  ASSERT_OK_AND_ASSIGN(const Comparison compared, Compare(a, b, {"a.json", "b.json"}));
  EXPECT_THAT(compared.markdown, HasSubstr("| e2e_ms p99 | 100 | 150 | 1.500 | 10 | 20 |"));
  EXPECT_THAT(compared.markdown, HasSubstr("WARNING: seed differs: 1 and 2"));
  // In 6 seconds; behind requests that ended well stand those, not all that were sent.
  EXPECT_THAT(compared.markdown, HasSubstr("| ok_per_s | 1.67 | 1.67 | 1.000 | 10 | 10 |"));
  EXPECT_THAT(compared.markdown, HasSubstr("INVALID B: late"));
  EXPECT_THAT(compared.html, HasSubstr("<polyline"));
}

TEST_F(ReportTest, WhatIsNoReportIsNotCompared) {
  for (int i = 0; i < 3; ++i) Add(Ended(i, 2.0 * i + 0.1, {10, 20}, 30));
  const Json whole = Report();
  ASSERT_OK(Compare(whole, whole, {"a", "b"}));
  // Nothing that a comparison reads may be missing, nor be of another type.
  for (const char* path :
       {"/seed", "/slo_ms/ttft", "/invalid", "/phases", "/totals", "/totals/outcomes/OK",
        "/totals/good", "/totals/e2e_ms", "/totals/e2e_ms/count", "/totals/e2e_ms/p99",
        "/totals/e2e_ms/buckets/0/1", "/phases/1/name", "/phases/1/e2e_ms/p99"}) {
    const Json::json_pointer at(path);
    Json broken = whole;
    broken[at] = Json::object({{"x", Json::array()}});
    EXPECT_THAT(
        Compare(broken, whole, {"a", "b"}),
        StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'a' is not a whole report")))
        << path;
    const absl::Status second = Compare(whole, broken, {"a", "b"}).status();
    EXPECT_THAT(second, StatusIs(absl::StatusCode::kInvalidArgument,
                                 HasSubstr("'b' is not a whole report")))
        << path;
    EXPECT_THAT(std::string(second.message()), Not(HasSubstr("json.exception")));
  }
  for (const char* key : {"totals", "phases", "slo_ms"}) {
    Json broken = whole;
    broken.erase(key);
    EXPECT_THAT(Compare(broken, whole, {"a", "b"}), StatusIs(absl::StatusCode::kInvalidArgument))
        << key;
  }
  for (const char* key : {"outcomes", "good", "ttft_ms"}) {
    Json broken = whole;
    broken["totals"].erase(key);
    EXPECT_THAT(Compare(broken, whole, {"a", "b"}), StatusIs(absl::StatusCode::kInvalidArgument))
        << key;
  }
  EXPECT_THAT(ReadReport("/nowhere.json"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("'/nowhere.json'")));
}

TEST(PlotTest, TicksAreRoundAndCoverTheAxis) {
  for (const double most : {0.003, 1.0, 7.3, 99.0, 12345.0}) {
    const std::vector<double> ticks = Ticks(most);
    EXPECT_GE(ticks.back(), most);
    EXPECT_LE(ticks.size(), 12);
    EXPECT_GE(ticks.size(), 3);
  }
  EXPECT_EQ(SvgOf({.title = "nothing"}), "");
}

}  // namespace
}  // namespace assay::load
