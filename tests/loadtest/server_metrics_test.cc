#include "loadtest/server_metrics.h"

#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"

namespace assay::load {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

TEST(ServerMetricsTest, ReadsWhatItKnows) {
  const ServerSample sample = ParseServerMetrics(R"(# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 1.5e+08
process_cpu_seconds_total 2.5 1700000000
assay_process_pending_requests 3
assay_process_running_requests 4
assay_inference_requests_total{model="a {b}",version="1",outcome="success"} 10
assay_inference_requests_total{model="b",version="1",outcome="success"} 5 # {trace_id="x"} 1
assay_inference_requests_total{model="b",version="1",outcome="rejected"} 2
other{le="+Inf"} 7
)");
  EXPECT_EQ(sample.resident_bytes, 1.5e8);
  EXPECT_EQ(sample.cpu_seconds, 2.5);
  EXPECT_EQ(sample.pending, 3);
  EXPECT_EQ(sample.running, 4);
  EXPECT_THAT(sample.requests, ElementsAre(Pair("rejected", 2), Pair("success", 15)));
}

TEST(ServerMetricsTest, WhatTheServerDoesNotHaveStaysAbsent) {
  const ServerSample sample =
      ParseServerMetrics("nv_inference_pending_request_count{model=\"a\"} 2\nnonsense\n{} {\n");
  EXPECT_EQ(sample.pending, 2);  // Triton's name
  EXPECT_FALSE(sample.resident_bytes.has_value());
  EXPECT_TRUE(sample.requests.empty());
}

TEST(ServerMetricsTest, BadAddressesAreNamed) {
  for (const char* address : {"", "host", ":80", "host:", "host:0", "host:65536", "host:x"}) {
    EXPECT_THAT(ScrapeServer(address),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is not HOST:PORT")))
        << address;
  }
}

TEST(ServerMetricsTest, NobodyThereIsSaid) {
  // Port 1 (tcpmux) is not listened to on any machine that runs tests.
  EXPECT_THAT(ScrapeServer("127.0.0.1:1"),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("127.0.0.1:1")));
}

}  // namespace
}  // namespace assay::load
