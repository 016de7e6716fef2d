// Weights that admission quantizes on a GPU, on an emulated one: the artifact is the host's.
#include "absl/strings/str_cat.h"
#include "engine/model/cuda/gpus.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

// Of weights, by the kernel that made them.
struct Launches {
  int rows = 0, groups = 0, nf4 = 0, tiles = 0;
  int all() const { return rows + groups + nf4 + tiles; }
} launches;

CudaLinearKernels Counted() {
  CudaLinearKernels kernels = EmulatedLinearKernels();
  kernels.quantize_rows = [](const QuantizeRowsArgs& args, const LaunchContext& context) {
    const bool weight = args.to == RowCodes::kInt8Channel || args.to == RowCodes::kE4M3Channel;
    if (weight) ++launches.rows;  // else: activations
    return emulated::QuantizeRows(args, context);
  };
  kernels.quantize_groups = [](const QuantizeGroupsArgs& args, const LaunchContext& context) {
    ++launches.groups;
    return emulated::QuantizeGroups(args, context);
  };
  kernels.quantize_nf4 = [](const QuantizeNf4Args& args, const LaunchContext& context) {
    ++launches.nf4;
    return emulated::QuantizeNf4(args, context);
  };
  kernels.quantize_tiles = [](const QuantizeTilesArgs& args, const LaunchContext& context) {
    ++launches.tiles;
    return emulated::QuantizeTiles(args, context);
  };
  return kernels;
}

std::string PolicyOf(std::string_view scheme, std::string_view embedding,
                     std::string_view more = "") {
  return absl::StrCat(R"(version: 1
recipes:
  only: {scheme: ")",
                      std::string(scheme), R"(", activation: a16, embedding: ")",
                      std::string(embedding), "\"", std::string(more), R"(}
budgets:
  any: {mean_kl: 10, top1: 0, perplexity_ratio: 10, cosine: 0, label_agreement: 0}
rules:
  - {name: gpu, reason: a GPU, when: {device: cuda}, recipe: only, budget: any}
  - {name: host, reason: a CPU, when: {device: cpu}, recipe: only, budget: any}
)");
}

class GpuQuantizationTest : public AdmissionFixture {
 protected:
  // On the host where there are no kernels. Nothing of it stays registered.
  AdmissionProgress AdmitOn(const CudaLinearKernels* kernels, const std::string& policy) {
    pipeline_.reset();
    launches = {};
    std::optional<CudaWorld> world;
    if (kernels != nullptr)
      world.emplace(CudaWorld{EmulatedCuda(), *kernels, EmulatedOpsKernels()});
    auto gpus = Gpus::Open(world.has_value() ? &*world : nullptr, {});
    EXPECT_OK(gpus);
    AdmissionOptions options;
    options.policy = Policy::Parse(policy, "test").value();
    options.gpus = &*gpus;
    options.engine.max_context = 64;
    options.engine.max_step_tokens = 32;
    options.cache_dir =
        absl::StrCat(directory_.path(), "/", world.has_value() ? "gpu" : "cpu", ++admissions_);
    AdmissionHooks hooks;
    hooks.evaluation =
        EvaluationSize{.documents = 1, .window = 16, .sentences = 6, .sentence_tokens = 12};
    Start(std::move(options), std::move(hooks));
    const AdmissionProgress end = AdmitStories();
    pipeline_.reset();
    registry_.Unload("stories", 0).IgnoreError();
    registry_.WaitForRetirements();
    return end;
  }

  int admissions_ = 0;
};

TEST_F(GpuQuantizationTest, TheArtifactIsTheHosts) {
  struct Case {
    const char *scheme, *embedding;
    int Launches::*kernel;
    int Launches::*of_embedding;
  };
  std::set<std::string> hashes;
  const CudaLinearKernels kernels = Counted();
  for (const Case& c : {Case{"int8_channel", "int8_channel", &Launches::rows, &Launches::rows},
                        Case{"fp8_e4m3", "fp8_e4m3:block", &Launches::rows, &Launches::tiles},
                        Case{"int4_group", "fp8_e4m3:tensor", &Launches::groups, &Launches::tiles},
                        Case{"nf4", "int8_group:g32", &Launches::nf4, &Launches::groups}}) {
    SCOPED_TRACE(c.scheme);
    const std::string policy = PolicyOf(c.scheme, c.embedding);
    const AdmissionProgress host = AdmitOn(nullptr, policy);
    ASSERT_OK(host.status);
    EXPECT_EQ(host.report->decision.device, "cpu");
    EXPECT_EQ(launches.all(), 0);
    const AdmissionProgress gpu = AdmitOn(&kernels, policy);
    ASSERT_OK(gpu.status);
    EXPECT_EQ(gpu.report->decision.device, "cuda:0");
    EXPECT_GT(quantized_, 10);
    EXPECT_EQ(launches.all(), quantized_);  // every layer is one slice
    EXPECT_GE(launches.*c.kernel, quantized_ - 1);
    EXPECT_GE(launches.*c.of_embedding, 1);
    EXPECT_FALSE(host.report->artifact_hash.empty());
    EXPECT_EQ(gpu.report->artifact_hash, host.report->artifact_hash);
    hashes.insert(gpu.report->artifact_hash);
  }
  EXPECT_EQ(hashes.size(), 4u);  // the hash tells schemes apart
}

// What one byte does to the hash.
TEST_F(GpuQuantizationTest, AWrongCodeIsAnotherArtifact) {
  CudaLinearKernels kernels = Counted();
  const std::string policy = PolicyOf("int8_channel", "int8_channel");
  const AdmissionProgress good = AdmitOn(nullptr, policy);
  ASSERT_OK(good.status);
  kernels.quantize_rows = [](const QuantizeRowsArgs& args, const LaunchContext& context) {
    const int error = emulated::QuantizeRows(args, context);
    if (args.to == RowCodes::kInt8Channel) args.codes[5] ^= 1;
    return error;
  };
  const AdmissionProgress wrong = AdmitOn(&kernels, policy);
  ASSERT_OK(wrong.status);  // within the proof's tolerance
  EXPECT_NE(wrong.report->artifact_hash, good.report->artifact_hash);
}

// A scale that is far off is found: the proof rounds the checkpoint on the host.
TEST_F(GpuQuantizationTest, AWrongScaleIsRejected) {
  CudaLinearKernels kernels = Counted();
  kernels.quantize_rows = [](const QuantizeRowsArgs& args, const LaunchContext& context) {
    const int error = emulated::QuantizeRows(args, context);
    if (args.to == RowCodes::kInt8Channel) args.scales[3] *= 4;
    return error;
  };
  EXPECT_THAT(AdmitOn(&kernels, PolicyOf("int8_channel", "int8_channel")).status,
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("row=3")));
}

// Rounding methods are the host's; the table beside them is rounded to nearest.
TEST_F(GpuQuantizationTest, MethodsStayOnTheHost) {
  const CudaLinearKernels kernels = Counted();
  const AdmissionProgress end =
      AdmitOn(&kernels, PolicyOf("int4_group:g32", "int8_channel", ", rounding: mse"));
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->decision.device, "cuda:0");
  EXPECT_EQ(launches.groups, 0);
  EXPECT_EQ(launches.rows, 1);
}

TEST_F(GpuQuantizationTest, AnErrorOfTheDeviceEndsTheAdmission) {
  CudaLinearKernels kernels = Counted();
  kernels.quantize_nf4 = [](const QuantizeNf4Args&, const LaunchContext&) { return 700; };
  EXPECT_THAT(AdmitOn(&kernels, PolicyOf("nf4", "nf4")).status,
              StatusIs(StatusCode::kInternal, HasSubstr("quantize_nf4")));
}

}  // namespace
}  // namespace assay
