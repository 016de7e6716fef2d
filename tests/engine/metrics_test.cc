#include "engine/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/ops/kv_pool.h"
#include "engine/process_metrics.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::Not;

size_t NumSeries(const std::string& scrape) {
  size_t series = 0, begin = 0;
  while (begin < scrape.size()) {
    const size_t end = std::min(scrape.find('\n', begin), scrape.size());
    if (end > begin && scrape[begin] != '#') ++series;
    begin = end + 1;
  }
  return series;
}

TEST(MetricsTest, EverySeriesOfAModelExistsAtZero) {
  Metrics metrics("0.1.0+abc", "cpu");
  const auto model = metrics.ForModel("m", 3);
  const std::string scrape = metrics.Scrape();
  for (const char* series :
       {R"(assay_inference_requests_total{model="m",outcome="timeout",version="3"} 0)",
        R"(assay_inference_rejected_total{model="m",reason="queue_full",version="3"} 0)",
        R"(assay_inference_deadline_exceeded_total{model="m",stage="queue",version="3"} 0)",
        R"(assay_inference_request_duration_seconds_count{model="m",version="3"} 0)",
        R"(assay_model_state{model="m",state="serving",version="3"} 0)",
        R"(assay_model_memory_bytes{kind="reference",model="m",version="3"} 0)",
        R"(assay_admission_total{model="m",outcome="rejected_accuracy",version="3"} 0)",
        R"(assay_artifact_cache_requests_total{result="corrupt"} 0)",
        R"(assay_build_info{backend="cpu",revision="abc",version="0.1.0"} 1)"}) {
    EXPECT_THAT(scrape, HasSubstr(series));
  }
  // An encoder never gets the series of text generation.
  EXPECT_THAT(scrape, Not(HasSubstr("assay_llm_")));
}

TEST(MetricsTest, GenerationSeriesAppearTogetherAtTheFirstSign) {
  Metrics metrics("0.1.0", "cpu");
  const auto model = metrics.ForModel("m", 1);
  model->SetKvBlocks(6, 2, 24);
  const std::string scrape = metrics.Scrape();
  EXPECT_THAT(scrape, HasSubstr(R"(assay_llm_kv_cache_usage_ratio{model="m",version="1"} 0.25)"));
  EXPECT_THAT(scrape,
              HasSubstr(R"(assay_llm_kv_cache_blocks{model="m",state="free",version="1"} 16)"));
  EXPECT_THAT(
      scrape,
      HasSubstr(R"(assay_llm_requests_total{finish_reason="length",model="m",version="1"} 0)"));
  EXPECT_THAT(scrape, HasSubstr(absl::StrCat(R"(assay_llm_kv_block_tokens{model="m",version="1"} )",
                                             KvPool::kBlockTokens)));
}

TEST(MetricsTest, ARequestIsCountedInItsBucket) {
  Metrics metrics("0.1.0", "cpu");
  const auto model = metrics.ForModel("m", 1);
  model->RequestDone(Outcome::kSuccess, absl::Milliseconds(3));
  const std::string scrape = metrics.Scrape();
  const std::string bucket = "assay_inference_request_duration_seconds_bucket";
  EXPECT_THAT(scrape, HasSubstr(bucket + R"({model="m",version="1",le="0.0025"} 0)"));
  EXPECT_THAT(scrape, HasSubstr(bucket + R"({model="m",version="1",le="0.005"} 1)"));
  EXPECT_THAT(
      scrape,
      HasSubstr(R"(assay_inference_requests_total{model="m",outcome="success",version="1"} 1)"));
}

TEST(MetricsTest, SeriesOfAnUnloadedVersionAreDropped) {
  Metrics metrics("0.1.0", "cpu");
  const size_t before = NumSeries(metrics.Scrape());
  auto model = metrics.ForModel("gone", 1);
  model->SetKvBlocks(0, 0, 1);
  model->SetInfo("gguf", "int8_channel", "cpu");
  model->SetQuantization({{"int8_channel", 30}, {"bf16", 2}}, 3.9);
  model->AdmissionStageDone("quantize", absl::Seconds(1));
  model->AdmissionStageDone("quantize", absl::Seconds(2));
  model->SetAccuracyLoss("mean_kl", 0.001);
  model->Loaded("quantize", absl::Seconds(3));
  EXPECT_THAT(metrics.Scrape(), HasSubstr("gone"));
  model = nullptr;
  EXPECT_THAT(metrics.Scrape(), Not(HasSubstr("gone")));
  EXPECT_EQ(NumSeries(metrics.Scrape()), before);
}

TEST(MetricsTest, AskingAgainGivesTheSameSeriesWhileItLives) {
  Metrics metrics("0.1.0", "cpu");
  const auto first = metrics.ForModel("m", 1);
  {
    const auto second = metrics.ForModel("m", 1);
    EXPECT_EQ(first.get(), second.get());
  }
  first->Preempted();
  EXPECT_THAT(metrics.Scrape(),
              HasSubstr(R"(assay_llm_preemptions_total{model="m",version="1"} 1)"));
}

TEST(MetricsTest, ReplacedLabelsLeaveNothingBehind) {
  Metrics metrics("0.1.0", "cpu");
  const auto model = metrics.ForModel("m", 1);
  model->SetInfo("gguf", "int8_channel", "cpu");
  model->SetInfo("gguf", "bf16", "cpu");
  const std::string scrape = metrics.Scrape();
  EXPECT_THAT(scrape, HasSubstr(R"(precision="bf16")"));
  EXPECT_THAT(scrape, Not(HasSubstr(R"(precision="int8_channel")")));
}

TEST(MetricsTest, ExactlyOneStateIsSet) {
  Metrics metrics("0.1.0", "cpu");
  const auto model = metrics.ForModel("m", 1);
  model->SetState("ADMITTING");
  model->SetState("SERVING");
  const std::string scrape = metrics.Scrape();
  EXPECT_THAT(scrape, HasSubstr(R"(assay_model_state{model="m",state="serving",version="1"} 1)"));
  EXPECT_THAT(scrape, HasSubstr(R"(assay_model_state{model="m",state="admitting",version="1"} 0)"));
  EXPECT_THAT(scrape, HasSubstr(R"(assay_model_ready{model="m",version="1"} 1)"));
}

TEST(MetricsTest, TenThousandUnknownModelsAddAtMostFiveSeries) {
  Metrics metrics("0.1.0", "cpu");
  const size_t before = NumSeries(metrics.Scrape());
  for (int i = 0; i < 10000; ++i) metrics.UnknownModel();
  EXPECT_LE(NumSeries(metrics.Scrape()), before + 5);
  EXPECT_THAT(
      metrics.Scrape(),
      HasSubstr(
          R"(assay_inference_requests_total{model="_unknown",outcome="rejected",version="0"} 10000)"));
}

TEST(MetricsTest, MovesOfLabelsAreCountedAndTheShareIsASeriesOfItsVersion) {
  Metrics metrics("test", "cpu");
  const VersionChange all[] = {VersionChange::kPublish, VersionChange::kCanary,
                               VersionChange::kPromote, VersionChange::kRollBack,
                               VersionChange::kDrop};
  for (const VersionChange change : all) {
    const std::string series =
        "assay_model_version_changes_total{action=\"" + std::string(Name(change)) + "\"} ";
    EXPECT_THAT(metrics.Scrape(), HasSubstr(series + "0"));
    metrics.VersionChanged(change);
    EXPECT_THAT(metrics.Scrape(), HasSubstr(series + "1"));
  }
  auto model = metrics.ForModel("m", 3);
  const std::string share = "assay_model_traffic_share_ratio{model=\"m\",version=\"3\"} ";
  EXPECT_THAT(metrics.Scrape(), HasSubstr(share + "0\n"));
  model->SetTrafficShare(0.25);
  EXPECT_THAT(metrics.Scrape(), HasSubstr(share + "0.25"));
  model = nullptr;
  EXPECT_THAT(metrics.Scrape(), testing::Not(HasSubstr(share)));
}

TEST(MetricsTest, RpcsAreCountedByCode) {
  Metrics metrics("0.1.0", "cpu");
  metrics.DeclareRpc("S", "M", "UNARY");
  EXPECT_THAT(metrics.Scrape(),
              HasSubstr(R"(grpc_server_started_total{grpc_method="M",grpc_service="S",)"
                        R"(grpc_type="UNARY"} 0)"));
  metrics.RpcStarted("S", "M", "UNARY");
  EXPECT_THAT(metrics.Scrape(), HasSubstr(R"(assay_grpc_rpcs_in_flight{method="M"} 1)"));
  metrics.RpcDone("S", "M", "UNARY", "NOT_FOUND", absl::Milliseconds(1));
  EXPECT_THAT(metrics.Scrape(), HasSubstr(R"(assay_grpc_rpcs_in_flight{method="M"} 0)"));
  EXPECT_THAT(metrics.Scrape(),
              HasSubstr(R"(grpc_server_handled_total{grpc_code="NOT_FOUND",grpc_method="M",)"
                        R"(grpc_service="S",grpc_type="UNARY"} 1)"));
}

// 10 models, 4 of them generate: the budget of docs/operations.md.
TEST(MetricsTest, LoadOfTheProcessIsOneSeriesWithoutLabels) {
  Metrics metrics("0.1.0", "cpu");
  EXPECT_THAT(metrics.Scrape(), HasSubstr("\nassay_process_kv_cache_usage_ratio 0\n"));
  const auto first = metrics.ForModel("a", 1), second = metrics.ForModel("b", 1);
  first->SetLoad(3, 4);
  second->SetLoad(5, 1);
  first->SetKvBlocks(6, 2, 24);
  second->SetKvBlocks(2, 0, 8);
  const std::string scrape = metrics.Scrape();
  EXPECT_THAT(scrape, HasSubstr("\nassay_process_pending_requests 8\n"));
  EXPECT_THAT(scrape, HasSubstr("\nassay_process_running_requests 5\n"));
  EXPECT_THAT(scrape, HasSubstr("\nassay_process_kv_cache_usage_ratio 0.25\n"));
}

TEST(MetricsTest, ConnectionsAreWhatTheServerSaysLast) {
  Metrics metrics("0.1.0", "cpu");
  EXPECT_THAT(metrics.Scrape(), HasSubstr("\nassay_grpc_connections 0\n"));
  metrics.SetGrpcConnections(7);
  EXPECT_THAT(metrics.Scrape(), HasSubstr("\nassay_grpc_connections 7\n"));
}

TEST(MetricsTest, StagesOfAnAdmissionAreThereBeforeTheyRan) {
  Metrics metrics("0.1.0", "cpu");
  const auto model = metrics.ForModel("m", 1);
  for (const char* stage : AdmissionStageNames()) {
    EXPECT_THAT(metrics.Scrape(),
                HasSubstr(absl::StrCat(R"(assay_admission_last_duration_seconds{model="m",stage=")",
                                       stage, R"(",version="1"} 0)")));
  }
  model->AdmissionStageDone("search", absl::Seconds(3));
  EXPECT_THAT(metrics.Scrape(), HasSubstr(R"(stage="search",version="1"} 3)"));
}

TEST(MetricsTest, TenModelsStayWithinTheSeriesBudget) {
  Metrics metrics("0.1.0", "cpu");
  std::vector<std::shared_ptr<ModelMetrics>> models;
  for (int i = 0; i < 10; ++i) {
    models.push_back(metrics.ForModel(absl::StrCat("model-", i), 1));
    if (i < 4) models.back()->SetKvBlocks(0, 0, 1);
    for (const char* stage : {"open", "profile", "look_up", "quantize", "verify", "publish"}) {
      models.back()->AdmissionStageDone(stage, absl::Seconds(1));
    }
  }
  const std::string scrape = metrics.Scrape();
  EXPECT_LE(NumSeries(scrape), 2500u);
  EXPECT_LE(scrape.size(), 400u << 10);
}

TEST(MetricsTest, ScrapesWhileModelsComeAndGo) {
  Metrics metrics("0.1.0", "cpu");
  std::thread churn([&metrics] {
    for (int i = 0; i < 200; ++i) {
      const auto model = metrics.ForModel("m", i % 3);
      model->SetKvBlocks(1, 1, 4);
      model->AdmissionStageDone("open", absl::Seconds(1));
    }
  });
  for (int i = 0; i < 20; ++i) EXPECT_THAT(metrics.Scrape(), HasSubstr("assay_build_info"));
  churn.join();
}

TEST(ProcessMetricsTest, ReadsThisProcess) {
  const ProcessMetrics process = ReadProcessMetrics();
  EXPECT_GT(process.resident_bytes, 1 << 20);
  EXPECT_GT(process.virtual_bytes, process.resident_bytes);
  EXPECT_GE(process.open_fds, 3);
  EXPECT_GE(process.max_fds, process.open_fds);
  EXPECT_GE(process.threads, 1);
  EXPECT_GT(process.start_time_seconds, 1.6e9);
}

}  // namespace
}  // namespace assay
