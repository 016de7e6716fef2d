#include "engine/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/cpu_info.h"
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
}

TEST(MetricsTest, AnEncoderHasNoSeriesOfTextGenerationButItsTokens) {
  Metrics metrics("0.1.0", "cpu");
  const auto model = metrics.ForModel("m", 1);
  const size_t before = NumSeries(metrics.Scrape());
  model->Queued(absl::Milliseconds(1));
  model->StepDone(2, absl::Milliseconds(1));
  model->TokensProcessed(20, 0, 0);  // as the encoders' engine calls it
  model->SetLoad(0, 0);
  const std::string scrape = metrics.Scrape();
  EXPECT_THAT(scrape, HasSubstr("assay_llm_prompt_tokens_total{model=\"m\",version=\"1\"} 20\n"));
  EXPECT_EQ(NumSeries(scrape), before);
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
  EXPECT_THAT(scrape, HasSubstr(R"(assay_llm_cache_config_info{block_size="16",model="m",)"
                                R"(num_gpu_blocks="24",version="1"} 1)"));
  EXPECT_THAT(scrape, HasSubstr(absl::StrCat(R"(assay_llm_kv_block_tokens{model="m",version="1"} )",
                                             KvPool::kBlockTokens)));
}

TEST(MetricsTest, ARequestIsCountedInItsBucket) {
  Metrics metrics("0.1.0", "cpu");
  const auto model = metrics.ForModel("m", 1);
  model->RequestDone(Outcome::kSuccess, absl::Milliseconds(3), {});
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
  EXPECT_EQ(NumSeries(metrics.Scrape()), before);  // what they tell of all models stays
}

TEST(MetricsTest, AskingAgainGivesTheSameSeriesWhileItLives) {
  Metrics metrics("0.1.0", "cpu");
  const auto first = metrics.ForModel("m", 1);
  {
    const auto second = metrics.ForModel("m", 1);
    EXPECT_EQ(first.get(), second.get());
  }
  first->Preempted();
  first->RowsSampled(5, 2);
  EXPECT_THAT(metrics.Scrape(),
              HasSubstr(R"(assay_llm_preemptions_total{model="m",version="1"} 1)"));
  for (const char* series : {R"(from="candidates",model="m",version="1"} 5)",
                             R"(from="row",model="m",version="1"} 2)"}) {
    EXPECT_THAT(metrics.Scrape(), HasSubstr(std::string("assay_llm_sampled_rows_total{") + series));
  }
}

TEST(MetricsTest, ReplacedLabelsLeaveNothingBehind) {
  Metrics metrics("0.1.0", "cpu");
  const auto model = metrics.ForModel("m", 1);
  model->SetInfo("gguf", "int8_channel", "cpu");
  model->SetInfo("gguf", "bf16", "cpu");
  model->SetKvBlocks(0, 0, 24);
  model->SetKvBlocks(0, 0, 48);
  const std::string scrape = metrics.Scrape();
  EXPECT_THAT(scrape, HasSubstr(R"(num_gpu_blocks="48")"));
  EXPECT_THAT(scrape, Not(HasSubstr(R"(num_gpu_blocks="24")")));
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
  RpcMetrics& rpc = metrics.ForRpc("S", "M", "UNARY");
  EXPECT_EQ(&metrics.ForRpc("S", "M", "UNARY"), &rpc);
  EXPECT_THAT(metrics.Scrape(),
              HasSubstr(R"(grpc_server_started_total{grpc_method="M",grpc_service="S",)"
                        R"(grpc_type="UNARY"} 0)"));
  rpc.Started();
  EXPECT_THAT(metrics.Scrape(), HasSubstr(R"(assay_grpc_rpcs_in_flight{method="M"} 1)"));
  rpc.Done(5, absl::Milliseconds(1), 2, 3);
  rpc.Done(99, absl::Milliseconds(1), 0, 0);
  const std::string scrape = metrics.Scrape();
  EXPECT_THAT(scrape, HasSubstr(R"(assay_grpc_rpcs_in_flight{method="M"} -1)"));
  const std::string method = R"(grpc_method="M",grpc_service="S",grpc_type="UNARY"})";
  EXPECT_THAT(scrape, HasSubstr(R"(handled_total{grpc_code="NotFound",)" + method + " 1\n"));
  EXPECT_THAT(scrape, HasSubstr(R"(handled_total{grpc_code="Unknown",)" + method + " 1\n"));
  EXPECT_THAT(scrape, HasSubstr(R"(handled_total{grpc_code="OK",)" + method + " 0\n"));
  EXPECT_THAT(scrape, HasSubstr("msg_received_total{" + method + " 2\n"));
  EXPECT_THAT(scrape, HasSubstr("msg_sent_total{" + method + " 3\n"));
  EXPECT_THAT(scrape, HasSubstr("handling_seconds_count{" + method + " 2\n"));
}

TEST(MetricsTest, ARequestOfAFractionOfAMillisecondHasItsBucket) {
  Metrics metrics("0.1.0", "cpu");
  const auto model = metrics.ForModel("m", 1);
  model->RequestDone(Outcome::kSuccess, absl::Microseconds(200), {});
  model->Queued(absl::Microseconds(200));
  model->StepDone(1, absl::Microseconds(200));
  model->FirstToken(absl::Microseconds(200), {});
  model->InterToken(absl::Microseconds(200));
  const std::string scrape = metrics.Scrape();
  for (const char* metric :
       {"assay_inference_request_duration_seconds", "assay_inference_queue_duration_seconds",
        "assay_inference_compute_duration_seconds", "assay_llm_time_to_first_token_seconds",
        "assay_llm_inter_token_latency_seconds"}) {
    const std::string bucket = absl::StrCat(metric, R"(_bucket{model="m",version="1",le=)");
    EXPECT_THAT(scrape, HasSubstr(bucket + R"("0.00025"} 1)")) << metric;
    EXPECT_THAT(scrape, HasSubstr(bucket + R"("0.001"} 1)")) << metric;
  }
  EXPECT_THAT(scrape, HasSubstr(R"(compute_duration_seconds_bucket{model="m",version="1",)"
                                R"(le="0.0001"} 0)"));
}

TEST(MetricsTest, MemoryOfTheHostAddsUp) {
  Metrics metrics("0.1.0", "cpu");
  const std::string scrape = metrics.Scrape();
  double available = -1, used = -1;
  const size_t at = scrape.find("\nassay_device_memory_bytes{");
  ASSERT_NE(at, std::string::npos);
  ASSERT_EQ(std::sscanf(scrape.c_str() + at,
                        "\nassay_device_memory_bytes{device=\"cpu\",state=\"available\"} %lf"
                        "\nassay_device_memory_bytes{device=\"cpu\",state=\"used\"} %lf",
                        &available, &used),
            2);
  EXPECT_GT(available, 0);
  EXPECT_GT(used, 0);
  // Whole numbers of less than 16 digits are written as they are.
  EXPECT_EQ(available + used, static_cast<double>(HostCpu().memory_bytes));
  EXPECT_THAT(scrape, HasSubstr("assay_device_cores{device=\"cpu\"} "));
}

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

TEST(MetricsTest, ConnectionsAreReadAtEveryScrape) {
  Metrics metrics("0.1.0", "cpu");
  EXPECT_THAT(metrics.Scrape(), AllOf(HasSubstr("\nassay_grpc_connections 0\n"),
                                      Not(HasSubstr("assay_tls_certificate_expiry"))));
  int open = 6;
  metrics.WatchConnections([&] {
    return ConnectionReading{
        .open = ++open,
        .open_http = 3,
        .refused = {{"limit", 3}},
        .certificate_expiry = {{"server", absl::FromUnixSeconds(1'900'000'000)},
                               {"client_ca", absl::FromUnixSeconds(7)}}};
  });
  EXPECT_THAT(
      metrics.Scrape(),
      AllOf(HasSubstr("\nassay_grpc_connections 7\n"), HasSubstr("\nassay_http_connections 3\n"),
            HasSubstr("\nassay_connections_refused_total{reason=\"limit\"} 3\n"),
            HasSubstr("\nassay_tls_certificate_expiry_timestamp_seconds{certificate=\"server\"} "
                      "1900000000\n"),
            HasSubstr("{certificate=\"client_ca\"} 7\n")));
  EXPECT_THAT(metrics.Scrape(), HasSubstr("\nassay_grpc_connections 8\n"));
}

TEST(MetricsTest, StagesOfAnAdmissionAreThereBeforeTheyRan) {
  Metrics metrics("0.1.0", "cpu");
  const auto model = metrics.ForModel("m", 1);
  for (const char* stage : AdmissionStageNames()) {
    EXPECT_THAT(metrics.Scrape(),
                HasSubstr(absl::StrCat(R"(assay_admission_last_duration_seconds{model="m",stage=")",
                                       stage, R"(",version="1"} 0)")));
  }
  EXPECT_THAT(metrics.Scrape(),
              HasSubstr(R"(assay_admission_duration_seconds_count{stage="search"} 0)"));
  model->AdmissionStageDone("search", absl::Seconds(3));
  model->AdmissionStageDone("nonsense", absl::Seconds(3));
  EXPECT_THAT(metrics.Scrape(),
              HasSubstr(R"(assay_admission_duration_seconds_count{stage="search"} 1)"));
  EXPECT_THAT(metrics.Scrape(), Not(HasSubstr("nonsense")));
  EXPECT_THAT(metrics.Scrape(), HasSubstr(R"(stage="search",version="1"} 3)"));
}

// The budget of docs/operations.md. As a server has it: 32 methods, 12 of them called, two codes;
// 10 models, 4 of which generate, admitted and watched for drift.
TEST(MetricsTest, TenModelsStayWithinTheSeriesBudget) {
  Metrics metrics("0.1.0", "cpu");
  for (int i = 0; i < 32; ++i) {
    RpcMetrics& rpc = metrics.ForRpc("inference.GRPCInferenceService", absl::StrCat("M", i), "t");
    if (i >= 12) continue;
    rpc.Done(0, absl::Seconds(1), 1, 1);
    rpc.Done(5, absl::Seconds(1), 1, 1);
  }
  std::vector<std::shared_ptr<ModelMetrics>> models;
  std::vector<std::unique_ptr<DriftMetrics>> drift;
  for (int i = 0; i < 10; ++i) {
    const bool generates = i < 4;
    const std::string name = absl::StrCat("model-", i);
    ModelMetrics& model = *models.emplace_back(metrics.ForModel(name, 1));
    if (generates) model.SetKvBlocks(0, 0, 1);
    for (const char* stage : AdmissionStageNames()) {
      model.AdmissionStageDone(stage, absl::Seconds(1));
    }
    model.SetInfo("gguf", "int8_channel", "cpu");
    model.SetQuantization({{"int8_channel", 120}, {"bf16", 1}}, 3.9);
    model.SetAccuracyLoss("cosine_loss", 0.01);
    if (generates) {
      model.SetAccuracyLoss("mean_kl", 0.01);
      model.SetAccuracyLoss("top1_loss", 0.01);
    }
    model.Loaded("quantize", absl::Seconds(1));
    drift.push_back(metrics.ForDrift(name, 1, generates ? "mean_kl" : "cosine_loss"));
  }
  for (const ExpositionFormat format : {ExpositionFormat::kText, ExpositionFormat::kOpenMetrics}) {
    const std::string scrape = metrics.Scrape(format);
    EXPECT_LE(NumSeries(scrape), 2500u);
    EXPECT_GE(NumSeries(scrape), 2000u);  // or the fixture is not what the budget is about
    EXPECT_LE(scrape.size(), 400u << 10);
  }
}

TEST(MetricsTest, ScrapesWhileModelsComeAndGo) {
  Metrics metrics("0.1.0", "cpu");
  std::thread churn([&metrics] {
    for (int i = 0; i < 200; ++i) {
      const auto model = metrics.ForModel("m", i % 3);
      model->SetKvBlocks(1, 1, 4 + i);
      model->FirstToken(absl::Milliseconds(i), {1, 2});
      model->AdmissionStageDone("open", absl::Seconds(1));
      metrics.ForRpc("S", "M", "unary").Done(i % 17, absl::Milliseconds(1), 1, 1);
    }
  });
  for (int i = 0; i < 20; ++i) {
    EXPECT_THAT(metrics.Scrape(), HasSubstr("assay_build_info"));
    EXPECT_THAT(metrics.Scrape(ExpositionFormat::kOpenMetrics), testing::EndsWith("# EOF\n"));
  }
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
