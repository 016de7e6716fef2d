#include "engine/open_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/strings/str_cat.h"
#include "tests/support/fake_clock.h"

namespace assay {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;

MetricFamily Family(const std::string& name, MetricType type, double value) {
  ClientMetric metric;
  metric.label = {{"model", "a\\b\"c\nd"}};
  metric.counter.value = metric.gauge.value = value;
  return {name, "Help \\ \"of\"\nit", type, {metric}};
}

// The text follows the specification's examples; that parsers take it is held by
// tests/e2e/metrics_test.py.
TEST(OpenMetricsTest, ACounterLosesItsSuffixInTheMetadataOnly) {
  EXPECT_EQ(OpenMetricsText({Family("assay_x_seconds_total", MetricType::Counter, 1.5)}, {}),
            "# TYPE assay_x_seconds counter\n"
            "# UNIT assay_x_seconds seconds\n"
            "# HELP assay_x_seconds Help \\\\ \\\"of\\\"\\nit\n"
            "assay_x_seconds_total{model=\"a\\\\b\\\"c\\nd\"} 1.5\n"
            "# EOF\n");
}

TEST(OpenMetricsTest, NumbersReadBackAsTheyWere) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const auto& [value, text] : std::vector<std::pair<double, std::string>>{
           {0, "0"},
           {0.1, "0.1"},
           {1.0 / 3, "0.3333333333333333"},
           {1732953600.125, "1732953600.125"},
           {25276502016, "25276502016"},
           {-kInfinity, "-Inf"},
           {std::numeric_limits<double>::quiet_NaN(), "NaN"}}) {
    EXPECT_THAT(OpenMetricsText({Family("assay_x", MetricType::Gauge, value)}, {}),
                HasSubstr("} " + text + "\n"));
  }
}

TEST(OpenMetricsTest, BoundsOfBucketsAreCanonical) {
  MetricFamily family = Family("assay_x", MetricType::Histogram, 0);
  family.metric[0].label.clear();
  family.metric[0].histogram = {
      7,
      3.5,
      {{1, 0.0001}, {2, 0.5}, {3, 1}, {4, 65536}, {7, std::numeric_limits<double>::infinity()}}};
  EXPECT_THAT(OpenMetricsText({family}, {}), EndsWith("assay_x_bucket{le=\"0.0001\"} 1\n"
                                                      "assay_x_bucket{le=\"0.5\"} 2\n"
                                                      "assay_x_bucket{le=\"1.0\"} 3\n"
                                                      "assay_x_bucket{le=\"65536.0\"} 4\n"
                                                      "assay_x_bucket{le=\"+Inf\"} 7\n"
                                                      "assay_x_count 7\n"
                                                      "assay_x_sum 3.5\n"
                                                      "# EOF\n"));
}

TEST(OpenMetricsTest, AFamilyWithoutSeriesIsNotWritten) {
  MetricFamily family = Family("assay_x", MetricType::Gauge, 0);
  family.metric.clear();
  EXPECT_EQ(OpenMetricsText({family}, {}), "# EOF\n");
}

constexpr TraceId kTrace{0x4bf92f3577b34da6, 0x00000000000000ff};
constexpr char kTraceText[] = "4bf92f3577b34da600000000000000ff";

TEST(ExemplarTest, EachBucketHasTheLatestTracedRequest) {
  FakeClock clock;
  Metrics metrics("0.1.0", "cpu", clock);
  const auto model = metrics.ForModel("m", 1);
  clock.Advance(absl::Milliseconds(1234));
  model->RequestDone(Outcome::kSuccess, absl::Milliseconds(3), {1, 2});
  model->RequestDone(Outcome::kSuccess, absl::Milliseconds(4), kTrace);
  model->RequestDone(Outcome::kSuccess, absl::Milliseconds(3), {});  // leaves it alone
  model->RequestDone(Outcome::kSuccess, absl::Seconds(60), {3, 4});
  model->FirstToken(absl::Milliseconds(2), kTrace);
  const std::string scrape = metrics.Scrape(ExpositionFormat::kOpenMetrics);
  const std::string labels = "_bucket{model=\"m\",version=\"1\",le=";
  const std::string request = "assay_inference_request_duration_seconds" + labels;
  EXPECT_THAT(scrape, HasSubstr(absl::StrCat(request, "\"0.005\"} 3 # {trace_id=\"", kTraceText,
                                             "\"} 0.004 1.234\n")));
  EXPECT_THAT(scrape, HasSubstr(request + "\"+Inf\"} 4 # {trace_id=\"0000000000000003"
                                          "0000000000000004\"} 60 1.234\n"));
  EXPECT_THAT(scrape, HasSubstr(request + "\"0.0025\"} 0\n"));
  EXPECT_THAT(scrape,
              HasSubstr(absl::StrCat("assay_llm_time_to_first_token_seconds", labels,
                                     "\"0.0025\"} 1 # {trace_id=\"", kTraceText, "\"} 0.002 ")));
  EXPECT_THAT(metrics.Scrape(), Not(HasSubstr("trace_id")));  // text 0.0.4 has no exemplars
}

// le="0.005" holds 0.005 itself.
TEST(ExemplarTest, AnExemplarIsNeverAboveItsBucket) {
  FakeClock clock;
  Metrics metrics("0.1.0", "cpu", clock);
  const auto model = metrics.ForModel("m", 1);
  model->RequestDone(Outcome::kSuccess, absl::Milliseconds(5), kTrace);
  EXPECT_THAT(metrics.Scrape(ExpositionFormat::kOpenMetrics),
              HasSubstr("le=\"0.005\"} 1 # {trace_id="));
}

TEST(ExemplarTest, TheyGoWithTheVersion) {
  FakeClock clock;
  Metrics metrics("0.1.0", "cpu", clock);
  for (int life = 0; life < 2; ++life) {
    const auto model = metrics.ForModel("m", 1);
    EXPECT_THAT(metrics.Scrape(ExpositionFormat::kOpenMetrics), Not(HasSubstr("trace_id")));
    model->RequestDone(Outcome::kSuccess, absl::Milliseconds(5), kTrace);
    EXPECT_THAT(metrics.Scrape(ExpositionFormat::kOpenMetrics), HasSubstr("trace_id"));
  }
}

}  // namespace
}  // namespace assay
