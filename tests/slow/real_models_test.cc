// Admission of the demo models as a user gets them. Needs ASSAY_MODELS, a folder that holds
// smollm2 and minilm as a model repository has them (smollm2/1/*.gguf) or without versions; skips
// loudly without it. Run by `make check-slow`.
#include <cstdlib>
#include <iostream>

#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

// First of the candidates that exists below ASSAY_MODELS; empty when there is none.
std::string ModelPath(std::initializer_list<const char*> candidates) {
  const char* root = std::getenv("ASSAY_MODELS");
  if (root == nullptr) return "";
  for (const char* candidate : candidates) {
    const fs::path path = fs::path(root) / candidate;
    std::error_code error;
    if (fs::exists(path, error)) return path.string();
  }
  return "";
}

#define REQUIRE_MODEL(path)                                                      \
  if (path.empty()) {                                                            \
    std::cerr << "SKIPPED LOUDLY: this model is not below $ASSAY_MODELS\n";      \
    GTEST_SKIP() << "set ASSAY_MODELS to the folder that holds the demo models"; \
  }

class RealModelsTest : public AdmissionFixture {
 protected:
  void SetUp() override { verbose_ = true; }
  static double CacheLoadSeconds(const AdmissionReport& report) {
    absl::Duration total;
    for (const StageReport& stage : report.stages) total += stage.elapsed;
    return absl::ToDoubleSeconds(total);
  }
  void ExpectSecondStartIsALoad(const AdmissionRequest& request, const AdmissionReport& first) {
    Start(Cached());
    const AdmissionProgress second = Admit(request);
    ASSERT_OK(second.status);
    EXPECT_TRUE(second.report->certificate_hit);
    EXPECT_EQ(second.report->artifact_hash, first.artifact_hash);
    std::cout << ToTerminalText(*second.report, 100);
    std::cout << "second start: " << CacheLoadSeconds(*second.report) << " s\n";
  }
};

TEST_F(RealModelsTest, SmolLm2KeepsToTheBudgetInInt8) {
  const std::string path = ModelPath({"smollm2.gguf", "smollm2/1", "smollm2"});
  REQUIRE_MODEL(path);
  Start(Cached());
  const AdmissionRequest request{.name = "smollm2", .path = path};
  const AdmissionProgress end = Admit(request);
  if (end.report != nullptr) std::cout << ToTerminalText(*end.report, 100);
  ASSERT_OK(end.status);
  const AdmissionReport& report = *end.report;
  EXPECT_LE(report.verification.mean_kl.mean, 0.01);
  EXPECT_GE(report.verification.top1_agreement.mean, 0.95);
  EXPECT_LE(report.verification.perplexity_ratio, 1.01);
  EXPECT_LE(report.fallback_fraction, 0.2);
  EXPECT_LE(static_cast<double>(report.bytes), 0.36 * static_cast<double>(report.bytes_f32));
  EXPECT_EQ(report.layers[0].scheme, "int8_channel") << report.layers[0].name;
  EXPECT_LE(report.measured_peak_bytes, report.estimated_peak_bytes);
  ExpectSecondStartIsALoad(request, report);
}

TEST_F(RealModelsTest, MiniLmKeepsToTheBudgetInInt8) {
  const std::string path = ModelPath({"minilm/1", "minilm"});
  REQUIRE_MODEL(path);
  Start(Cached());
  const AdmissionRequest request{.name = "minilm", .path = path};
  const AdmissionProgress end = Admit(request);
  if (end.report != nullptr) std::cout << ToTerminalText(*end.report, 100);
  ASSERT_OK(end.status);
  const AdmissionReport& report = *end.report;
  EXPECT_GE(report.verification.cosine.mean, 0.995);
  EXPECT_LE(report.fallback_fraction, 0.2);
  EXPECT_LE(static_cast<double>(report.bytes), 0.36 * static_cast<double>(report.bytes_f32));
  EXPECT_LE(report.measured_peak_bytes, report.estimated_peak_bytes);
  ExpectSecondStartIsALoad(request, report);
}

}  // namespace
}  // namespace assay
