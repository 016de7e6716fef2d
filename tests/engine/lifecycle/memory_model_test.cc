#include "engine/lifecycle/memory_model.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

constexpr char kLoosePolicy[] =
    "version: 1\n"
    "recipes: {plain: {scheme: int8_channel}}\n"
    "budgets: {loose: {mean_kl: 100, top1: 0, perplexity_ratio: 1000000, cosine: 0}}\n"
    "rules: [{name: any, reason: test, when: {device: cpu}, recipe: plain, budget: loose}]\n";

constexpr double kClose = 0.05;  // technique row 28: predictions within 5 % of what is measured

class MemoryModelTest : public AdmissionFixture {
 protected:
  void SetUp() override {
    AdmissionOptions options;
    options.policy = Policy::Parse(kLoosePolicy, "test").value();
    Start(options);
  }
  AdmissionReport Report(const AdmissionRequest& request) {
    registry_.WaitForRetirements();  // what they free would be taken off what this one takes
    const AdmissionProgress end = Admit(request);
    EXPECT_OK(end.status);
    return end.report == nullptr ? AdmissionReport() : *end.report;
  }
  AdmissionRequest Stories(const std::string& recipe) const {
    return {.name = "stories",
            .path = Stories260k(),
            .recipe = directory_.Write("recipe.yaml", recipe)};
  }
  // As the admission asks, of the model in `scheme`, with a KV pool of the fixture's size.
  MemoryEstimate EstimateOf(const std::string& path, const std::string& scheme,
                            ActivationMode activation) {
    const auto checkpoint = OpenCheckpoint(path).value();
    const ModelFamily* family = FamilyOf(*checkpoint).value();
    const ModelSpec spec = family->parse(*checkpoint).value();
    const std::vector<LinearSlot> slots = family->slots(spec);
    Plan plan;
    uint64_t other = 0;
    for (const CheckpointTensor& tensor : checkpoint->tensors())
      other += static_cast<uint64_t>(tensor.shape.elements()) * 4;
    for (const LinearSlot& slot : slots) {
      plan[slot.name] = {.scheme = scheme, .activation = activation};
      other -= static_cast<uint64_t>(slot.shape.elements()) * 4;
    }
    EngineOptions engine{.max_sequences = 4, .kv_bytes = 1 << 20};
    return EstimateMemory(
        {.spec = spec, .slots = slots, .plan = plan, .other_bytes = other, .engine = engine});
  }
};

double Off(uint64_t estimated, uint64_t measured) {
  return std::abs(static_cast<double>(estimated) / static_cast<double>(measured) - 1);
}

TEST_F(MemoryModelTest, SteadyBytesAreThoseThatServingTakes) {
  const std::pair<const char*, ActivationMode> plans[] = {
      {"int8_channel", ActivationMode::kA16},
      {"int8_group:g32", ActivationMode::kA16},
      {"int8_channel", ActivationMode::kA8Token},
      {"f32", ActivationMode::kA16}};
  for (const std::string& path : {Stories260k(), GoldenPath("models/bert_mean")}) {
    for (const auto& [scheme, activation] : plans) {
      const size_t before = CpuDevice().allocated_bytes();
      const std::string recipe =
          absl::StrCat("scheme: ", scheme, "\nembedding: ", scheme,
                       "\nactivation: ", std::string(Name(activation)), "\n");
      const AdmissionReport report = Report(
          {.name = "served", .path = path, .recipe = directory_.Write("recipe.yaml", recipe)});
      const size_t taken = CpuDevice().allocated_bytes() - before;
      const MemoryEstimate estimate = EstimateOf(path, scheme, activation);
      EXPECT_LE(Off(estimate.steady(), taken), kClose)
          << path << " " << scheme << " estimated=" << estimate.steady() << " taken=" << taken;
      // Without the engine, or as another scheme, it would show.
      EXPECT_GT(Off(estimate.weights, taken), kClose) << path << " " << scheme;
      ASSERT_OK(registry_.Unload("served", report.version));
      registry_.WaitForRetirements();
    }
  }
}

TEST_F(MemoryModelTest, ThePeakOfAnAdmissionIsPredicted) {
  const std::string gptq =
      "scheme: int4_group:g32,asym\nactivation: a16\nembedding: int8_channel\n"
      "rounding: gptq:act_order\ncalibration: {samples: 16, window: 256}\n";
  // Decoded to f32, the head calibrated, too.
  const std::string outliers =
      "scheme: int8_channel\nactivation: int8_outlier\ncalibration: {samples: 16, window: 256}\n";
  for (const std::string& recipe :
       {std::string("scheme: int8_channel\nactivation: a16\n"),
        std::string("scheme: int8_group:g32\nactivation: a16\n"), gptq, outliers}) {
    for (const bool dry_run : {false, true}) {
      AdmissionRequest request = Stories(recipe);
      request.dry_run = dry_run;
      const AdmissionReport report = Report(request);
      ASSERT_GT(report.measured_peak_bytes, 0u);
      EXPECT_LE(Off(report.estimated_peak_bytes, report.measured_peak_bytes), kClose)
          << recipe << "estimated=" << report.estimated_peak_bytes
          << " measured=" << report.measured_peak_bytes << " dry_run=" << dry_run;
    }
  }
}

TEST_F(MemoryModelTest, AnotherSchemesEstimateIsNotWithinReach) {
  const AdmissionReport report = Report(Stories("scheme: int8_channel\nactivation: a16\n"));
  const MemoryEstimate right = EstimateOf(Stories260k(), "int8_channel", ActivationMode::kA16);
  const MemoryEstimate wrong = EstimateOf(Stories260k(), "f32", ActivationMode::kA16);
  EXPECT_LE(Off(right.weights, report.bytes), kClose);
  EXPECT_GT(Off(wrong.weights, report.bytes), 1);
}

TEST_F(MemoryModelTest, AnUnknownSchemeCountsAsF32) {
  const MemoryEstimate unknown = EstimateOf(Stories260k(), "int9", ActivationMode::kA16);
  const MemoryEstimate f32 = EstimateOf(Stories260k(), "f32", ActivationMode::kA16);
  EXPECT_LE(Off(unknown.weights, f32.weights), kClose);
}

}  // namespace
}  // namespace assay
