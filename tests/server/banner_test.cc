#include "server/banner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace assay {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

AdmissionProgress Admitted() {
  auto report = std::make_shared<AdmissionReport>();
  report->bytes_f32 = 400 << 20;
  report->bytes = 110 << 20;
  report->task = "generate";
  report->verification.documents = 8;
  report->verification.tokens = 1000;
  report->verification.mean_kl.mean = 0.0012;
  report->verification.top1_agreement.mean = 0.985;
  report->verification.perplexity = 20;
  report->verification.perplexity_ratio = 1.002;
  AdmissionProgress progress;
  progress.name = "smollm2";
  progress.version = 1;
  progress.done = true;
  progress.report = report;
  return progress;
}

TEST(BannerTest, AModelShowsSchemeBytesFiguresAndTime) {
  EXPECT_THAT(ModelLine(Admitted(), absl::Seconds(3.5)),
              AllOf(HasSubstr("smollm2:1"), HasSubstr("SERVING after 3.50 s"),
                    HasSubstr("int8_channel/a8_token"), HasSubstr("400.0 MiB -> 110.0 MiB (28 %)"),
                    HasSubstr("mean KL 0.00120, top-1 98.50 %, perplexity x1.0020"),
                    Not(HasSubstr("kept in"))));
}

TEST(BannerTest, ARejectedModelSaysWhy) {
  AdmissionProgress progress = Admitted();
  auto report = std::make_shared<AdmissionReport>(*progress.report);
  report->reason = "layer model.layers.3.mlp.down_proj: scale is NaN";
  progress.report = report;
  progress.status = absl::FailedPreconditionError("rejected");
  EXPECT_THAT(ModelLine(progress, absl::Seconds(1)),
              AllOf(HasSubstr("REJECTED"), HasSubstr("model.layers.3.mlp.down_proj")));
}

TEST(BannerTest, EveryTaskShowsItsOwnFigures) {
  AdmissionProgress progress = Admitted();
  auto report = std::make_shared<AdmissionReport>(*progress.report);
  progress.report = report;
  report->verification.cosine.mean = 0.9991;
  report->verification.label_agreement = 0.97;
  report->task = "embed";
  EXPECT_THAT(ModelLine(progress, absl::Seconds(1)), HasSubstr("mean cosine 0.99910"));
  report->task = "classify";
  EXPECT_THAT(ModelLine(progress, absl::Seconds(1)), HasSubstr("labels agree 97.00 %"));
}

TEST(BannerTest, AModelRejectedBeforeItIsMeasuredShowsNoFigures) {
  auto report = std::make_shared<AdmissionReport>();
  report->bytes_f32 = 1 << 20;
  report->verdict = "rejected";
  report->reason = "needs up to 90.0 MB; 1.0 MB are free";
  AdmissionProgress progress;
  progress.name = "big";
  progress.version = 1;
  progress.status = absl::ResourceExhaustedError(report->reason);
  progress.report = report;
  for (const char* task : {"generate", "embed", "classify"}) {
    report->task = task;
    EXPECT_THAT(ModelLine(progress, absl::Seconds(1)),
                AllOf(HasSubstr("REJECTED"), HasSubstr("weights 1.0 MiB in f32"),
                      HasSubstr("90.0 MB"), Not(HasSubstr("%")), Not(HasSubstr("->")),
                      Not(HasSubstr("KL")), Not(HasSubstr("cosine"))));
  }
}

TEST(BannerTest, AModelThatCannotBeReadSaysSo) {
  AdmissionProgress progress;
  progress.name = "broken";
  progress.version = 1;
  progress.status = absl::DataLossError("model.gguf: truncated");
  EXPECT_THAT(ModelLine(progress, absl::Seconds(1)), HasSubstr("FAILED after 1.00 s: model.gguf"));
}

TEST(BannerTest, ThreeCommandsToTryNext) {
  ServerConfig config;
  const std::string two =
      ReadyBanner(config, {8001, 8002, 0, 8003},
                  {.serving = {{"smollm2", ModelTask::kGenerate}, {"minilm", ModelTask::kEmbed}},
                   .not_serving = {"broken"},
                   .elapsed = absl::Seconds(2)});
  EXPECT_THAT(two, AllOf(HasSubstr("gRPC      127.0.0.1:8001\n"), HasSubstr("ready in 2.00 s"),
                         HasSubstr("assay generate smollm2"), HasSubstr("assay embed minilm"),
                         HasSubstr("assay status\n")));
  EXPECT_THAT(two, AllOf(Not(HasSubstr("no model serves")), Not(HasSubstr("assay report"))));
  const std::string none =
      ReadyBanner(config, {4001, 4002, 0, 4003}, {.elapsed = absl::Seconds(2)});
  EXPECT_THAT(none, AllOf(HasSubstr("assay admit --admin-server 127.0.0.1:4003 PATH"),
                          HasSubstr("curl http://127.0.0.1:4002/metrics")));
}

TEST(BannerTest, WhenNoModelServesTheBannerSaysSoAndSuggestsTheReport) {
  StartupOutcome outcome{.not_serving = {"a", "b", "c"},
                         .obstacles = {"a: REJECTED: mean KL", "b: FAILED: truncated"},
                         .elapsed = absl::Seconds(2)};
  EXPECT_THAT(
      ReadyBanner({}, {8001, 8002, 0, 8003}, outcome),
      AllOf(HasSubstr("  not ready: a: REJECTED: mean KL\n  not ready: b: FAILED: truncated\n"),
            HasSubstr("\nnot ready after 2.00 s; no model serves; try:\n"),
            HasSubstr("  assay report a\n  assay report b\n  assay status\n"),
            Not(HasSubstr("ready in")), Not(HasSubstr("assay generate"))));
  outcome.obstacles.clear();  // strict_readiness: false
  EXPECT_THAT(ReadyBanner({}, {8001, 8002, 0, 8003}, outcome),
              AllOf(HasSubstr("ready in 2.00 s; no model serves; try:\n  assay report a\n")));
}

TEST(BannerTest, ExposureIsWarnedOfOutsideLoopback) {
  ServerConfig config;
  EXPECT_THAT(ExposureWarnings(config), IsEmpty());
  config.listen = "0.0.0.0";
  EXPECT_THAT(ExposureWarnings(config),
              ElementsAre(AllOf(HasSubstr("0.0.0.0"), HasSubstr("without TLS")),
                          HasSubstr("anybody who can reach this port can use the models")));
  config.admin_listen = "0.0.0.0";
  EXPECT_THAT(ExposureWarnings(config), Contains(HasSubstr("administration is open")));
  config.tls = {"c.pem", "k.pem", ""};
  config.auth.tokens = "tokens";
  EXPECT_THAT(ExposureWarnings(config), IsEmpty());
}

// Copied as they stand they would be refused.
TEST(BannerTest, TheCommandsNameWhatTheServerAsksFor) {
  ServerConfig config;
  config.tls = {"c.pem", "k.pem", ""};
  config.auth.tokens = "tokens";
  EXPECT_THAT(ReadyBanner(config, {8001, 8002, 0, 8003}, {}),
              AllOf(HasSubstr("  assay admit --ca FILE --token-file FILE PATH\n"),
                    HasSubstr("  assay status --ca FILE --token-file FILE\n"),
                    HasSubstr("  curl --header 'authorization: Bearer TOKEN' --cacert FILE "
                              "https://127.0.0.1:8002/metrics\n")));
}

TEST(BannerTest, WhereAdministrationIs) {
  EXPECT_THAT(AddressLine({}, {1, 2, 0, 3}), HasSubstr("admin     127.0.0.1:3"));
  EXPECT_THAT(AddressLine({}, {1, 2, 3, 0}), Not(HasSubstr("admin")));
  EXPECT_THAT(ReadyBanner({}, {8001, 8002, 0, 8003}, {}), HasSubstr("assay admit PATH"));
  EXPECT_THAT(ReadyBanner({}, {4001, 8002, 0, 0}, {}),
              HasSubstr("assay admit --server 127.0.0.1:4001 PATH"));
}

}  // namespace
}  // namespace assay
