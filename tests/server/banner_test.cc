#include "server/banner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace assay {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

AdmissionProgress Admitted() {
  auto report = std::make_shared<AdmissionReport>();
  report->bytes_f32 = 400 << 20;
  report->bytes = 110 << 20;
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

TEST(BannerTest, AModelThatCannotBeReadSaysSo) {
  AdmissionProgress progress;
  progress.name = "broken";
  progress.version = 1;
  progress.status = absl::DataLossError("model.gguf: truncated");
  EXPECT_THAT(ModelLine(progress, absl::Seconds(1)), HasSubstr("FAILED after 1.00 s: model.gguf"));
}

TEST(BannerTest, ThreeCommandsToTryNext) {
  ServerConfig config;
  const std::string two = ReadyBanner(
      config, 8001, 8002, {{"smollm2", ModelTask::kGenerate}, {"minilm", ModelTask::kEmbed}},
      absl::Seconds(2));
  EXPECT_THAT(two, AllOf(HasSubstr("gRPC      127.0.0.1:8001\n"), HasSubstr("ready in 2.00 s"),
                         HasSubstr("assay generate smollm2"), HasSubstr("assay embed minilm"),
                         HasSubstr("assay status\n")));
  const std::string none = ReadyBanner(config, 4001, 4002, {}, absl::Seconds(2));
  EXPECT_THAT(none, AllOf(HasSubstr("assay admit --server 127.0.0.1:4001 PATH"),
                          HasSubstr("curl http://127.0.0.1:4002/metrics")));
}

TEST(BannerTest, ExposureIsWarnedOfOutsideLoopback) {
  ServerConfig config;
  EXPECT_EQ(ExposureWarning(config), "");
  config.listen = "0.0.0.0";
  EXPECT_THAT(ExposureWarning(config), AllOf(HasSubstr("0.0.0.0"), HasSubstr("without TLS")));
}

}  // namespace
}  // namespace assay
