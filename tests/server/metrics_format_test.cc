#include "server/metrics_format.h"

#include <gtest/gtest.h>

namespace assay {
namespace {

TEST(MetricsFormatTest, OpenMetricsIsForWhoPrefersIt) {
  for (const char* accept :
       {// Prometheus 2.42 and 3.0
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;"
        "q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
        "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3",
        "application/openmetrics-text", "Application/OpenMetrics-Text ; Version=1.0.0 ; q=0.1",
        "text/plain;q=0.5, application/openmetrics-text;version=1.0.0;charset=utf-8;q=0.5"}) {
    EXPECT_EQ(NegotiateMetricsFormat(accept), ExpositionFormat::kOpenMetrics) << accept;
  }
}

TEST(MetricsFormatTest, TextIsForEverybodyElse) {
  for (const char* accept :
       {"", "*/*", "text/plain", "text/html,application/xhtml+xml,*/*;q=0.8", ";;;,,,=", "q=1",
        "application/openmetrics-text;version=0.0.1", "application/openmetrics-text;version=2.0.0",
        "application/openmetrics-text;q=0", "application/openmetrics-text;q=much",
        "application/openmetrics-text;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.5",
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily"}) {
    EXPECT_EQ(NegotiateMetricsFormat(accept), ExpositionFormat::kText) << accept;
  }
}

TEST(MetricsFormatTest, TheContentTypeNamesTheVersion) {
  EXPECT_STREQ(ContentType(ExpositionFormat::kText), "text/plain; version=0.0.4; charset=utf-8");
  EXPECT_STREQ(ContentType(ExpositionFormat::kOpenMetrics),
               "application/openmetrics-text; version=1.0.0; charset=utf-8");
}

}  // namespace
}  // namespace assay
