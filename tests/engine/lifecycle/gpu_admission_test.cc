// Admission onto GPUs, on emulated ones: the real kernels and host code, so what is proven here is
// all but the silicon.
#include "absl/strings/str_join.h"
#include "base/cuda/emulator.h"
#include "engine/model/cuda/gpus.h"
#include "engine/model/cuda/scratch_bound.h"
#include "engine/model/families/forward_parts.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// One GPU rule, one for the CPU: 8-bit weights on both.
constexpr char kPolicy[] = R"(version: 1
recipes:
  gpu:
    scheme: int8_channel
    activation: a8_token
    embedding: int8_channel
    fallback: {scheme: bf16, activation: a16, max_fraction: 0.2}
  host:
    scheme: int8_channel
    activation: a16
    embedding: int8_channel
    fallback: {scheme: bf16, activation: a16, max_fraction: 0.2}
budgets:
  wide: {mean_kl: 0.1, top1: 0.8, perplexity_ratio: 1.1, cosine: 0.9, label_agreement: 0.9}
rules:
  - {name: gpu, reason: a GPU, when: {device: cuda}, recipe: gpu, budget: wide}
  - {name: host, reason: a CPU, when: {device: cpu}, recipe: host, budget: wide}
)";

class GpuAdmissionTest : public AdmissionFixture {
 protected:
  static AdmissionOptions WithPolicy(AdmissionOptions options = {}) {
    options.policy = Policy::Parse(kPolicy, "test").value();
    return options;
  }
  void Open(int devices, const Gpus::Options& options = {}) {
    pipeline_.reset();
    world_.emplace(CudaWorld{EmulatedCuda(devices), EmulatedLinearKernels(), EmulatedOpsKernels()});
    auto gpus = Gpus::Open(&*world_, options);
    ASSERT_OK(gpus);
    gpus_ = std::make_unique<Gpus>(*std::move(gpus));
    // Of the GPU that the device plays.
    if (!gpus_->all().empty())
      emulated::set_most_shared(gpus_->all()[0].profile.shared_bytes_per_block);
  }
  // The emulator computes some hundred tokens a second: what is not about the proof has one of 16
  // tokens, too short for the check of decode steps.
  void StartOnGpus(AdmissionOptions options = WithPolicy(), AdmissionHooks hooks = {},
                   int window = 16) {
    options.gpus = gpus_.get();
    options.engine.max_context = max_context_;
    options.engine.max_step_tokens = 32;
    hooks.evaluation = EvaluationSize{
        .documents = window == 16 ? 1 : 2, .window = window, .sentences = 6, .sentence_tokens = 12};
    Start(std::move(options), std::move(hooks));
  }
  std::string Trace(const AdmissionProgress& end) {
    return end.report == nullptr ? "" : absl::StrJoin(end.report->decision.trace, "\n");
  }
  const Device& DeviceOf(const std::string& name) {
    return (*registry_.Acquire(name))->model->device();
  }

  // All of a device's memory but so much.
  static Buffer Occupy(CudaDevice& device, uint64_t left) {
    return device.Allocate(device.free_bytes() - left).value();
  }
  // Before a weight is there, no less than the model says then; and no idle fear.
  void ExpectScratchBound(const std::string& name) {
    const std::shared_ptr<Servable> servable = registry_.Acquire(name).value();
    const Model& model = *servable->model;
    for (const int64_t rows : {1, 7, 33, 300, 2048}) {
      for (const int64_t out_rows : {int64_t{1}, std::min<int64_t>(rows, 64)}) {
        const uint64_t needed = model.scratch_bytes(rows, out_rows, 512);
        const uint64_t bound = ScratchBound(model.spec(), model.slots(), {rows, out_rows, 512});
        EXPECT_GE(bound, needed) << name << " rows=" << rows << " out_rows=" << out_rows;
        // cuBLASLt's workspace is not there in the emulator; each weight in 16 bit, and x padded.
        EXPECT_LE(bound, 3 * needed + (uint64_t{33} << 20)) << name << " rows=" << rows;
      }
    }
  }

  int max_context_ = 64;
  std::optional<CudaWorld> world_;
  std::unique_ptr<Gpus> gpus_;
  // Before the devices: what lives there.
  void TearDown() override {
    pipeline_.reset();
    for (const VersionInfo& version : registry_.List())
      registry_.Unload(version.name, version.version).IgnoreError();
    registry_.WaitForRetirements();
  }
};

TEST_F(GpuAdmissionTest, ProvesAndServesOnTheGpu) {
  Open(1, {.devices = "none"});
  StartOnGpus(WithPolicy(), {}, 40);
  const AdmissionProgress host =
      Admit({.name = "stories", .path = Stories260k(), .scheme = "int8_channel"});
  ASSERT_OK(host.status);
  EXPECT_EQ(host.report->decision.device, "cpu");
  Open(1);
  StartOnGpus(WithPolicy(), {}, 40);
  const AdmissionProgress end = AdmitStories();
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->decision.device, "cuda:0");
  EXPECT_EQ(end.report->decision.rule, "gpu");
  for (const LayerReport& layer : end.report->layers) {
    EXPECT_EQ(layer.kernel, "cuda") << layer.name;
    EXPECT_GT(layer.weight_sqnr_db, 30) << layer.name;  // 8 bits, read back from the device
  }
  const VerificationResult& v = end.report->verification;
  // The same codes of weights and activations as on the CPU; bf16 between the layers moves some
  // activations to the next code.
  EXPECT_NEAR(v.mean_kl.mean / host.report->verification.mean_kl.mean, 1, 0.5);
  EXPECT_GT(v.decode_positions, 0);
  EXPECT_THAT(Trace(end), AllOf(HasSubstr("memory of cuda:0: "), HasSubstr("keys and values")));
  EXPECT_EQ(DeviceOf("stories").name(), "cuda:0");
  EXPECT_THAT(metrics_.Scrape(), HasSubstr("device=\"cuda:0\""));
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<Servable> servable, registry_.Acquire("stories"));
  std::promise<int> tokens;
  int count = 0;
  ASSERT_OK(servable->generate->Submit({.prompt = {1, 2, 3}, .sampling = {.max_tokens = 4}},
                                       [&](TokenEvent&& event) {
                                         if (event.kind == TokenEvent::Kind::kToken) ++count;
                                         if (event.kind == TokenEvent::Kind::kEnd)
                                           tokens.set_value(count);
                                       }));
  EXPECT_EQ(tokens.get_future().get(), 4);
}

TEST_F(GpuAdmissionTest, EncodersAndClassifiersToo) {
  Open(2);
  StartOnGpus();
  for (const char* name : {"bert_mean", "roberta_classifier"}) {
    SCOPED_TRACE(name);
    const AdmissionProgress end = Admit({.path = GoldenPath(std::string("models/") + name)});
    ASSERT_OK(end.status);
    EXPECT_NE(end.report->decision.device, "cpu");
    EXPECT_THAT(Trace(end), AllOf(HasSubstr("memory of cuda:"), Not(HasSubstr("keys and values"))));
    for (const LayerReport& layer : end.report->layers) EXPECT_EQ(layer.kernel, "cuda");
    EXPECT_GT(end.report->verification.cosine.mean, 0.99);
    EXPECT_LT(end.report->verification.cosine.mean, 1 - 1e-9);  // 8 bits are not f32
    ASSERT_OK_AND_ASSIGN(const std::shared_ptr<Servable> servable, registry_.Acquire(name));
    EXPECT_EQ(servable->model->device().name(), end.report->decision.device);
    ExpectScratchBound(name);
    std::promise<EncodeResult> result;
    ASSERT_OK(servable->encode->Submit(
        {.tokens = {1, 2, 3}}, [&](EncodeResult&& value) { result.set_value(std::move(value)); }));
    const EncodeResult got = result.get_future().get();
    ASSERT_OK(got.status);
    EXPECT_EQ(got.values.size(), static_cast<size_t>(EncoderColumns(servable->model->spec())));
  }
  for (const char* name : {"bert_mean", "roberta_classifier"}) ASSERT_OK(registry_.Unload(name, 0));
  registry_.WaitForRetirements();
  for (const Gpus::Found& gpu : gpus_->all())
    EXPECT_EQ(gpu.backend->device().allocated_bytes(), 0u);
}

TEST_F(GpuAdmissionTest, MemoryOnTheGpuIsGivenBack) {
  Open(1);
  StartOnGpus();
  const CudaDevice& device = gpus_->all()[0].backend->device();
  ASSERT_OK(AdmitStories().status);
  EXPECT_GT(device.allocated_bytes(), 0u);
  ASSERT_OK(registry_.Unload("stories", 0));
  registry_.WaitForRetirements();
  EXPECT_EQ(device.allocated_bytes(), 0u);
}

TEST_F(GpuAdmissionTest, EveryModelHasAGpuOfItsOwnThenTheHost) {
  Open(2);
  StartOnGpus();
  const auto admit = [&](const std::string& name) {
    return Admit({.name = name, .path = Stories260k()});
  };
  ASSERT_OK(admit("a").status);
  ASSERT_OK(admit("b").status);
  const AdmissionProgress third = admit("c");
  ASSERT_OK(third.status);
  EXPECT_EQ(DeviceOf("a").name(), "cuda:0");
  EXPECT_EQ(DeviceOf("b").name(), "cuda:1");
  EXPECT_EQ(DeviceOf("c").name(), "cpu");
  EXPECT_THAT(Trace(third), AllOf(HasSubstr("cuda:0 cannot be used: it serves a"),
                                  HasSubstr("cuda:1 cannot be used: it serves b")));
  // The next version of a model goes where the model is.
  ASSERT_OK(admit("b").status);
  EXPECT_EQ(DeviceOf("b").name(), "cuda:1");
}

TEST_F(GpuAdmissionTest, WhatAGpuCannotRunTheHostDoes) {
  Open(1);
  StartOnGpus();
  const AdmissionProgress end = Admit({.name = "stories",
                                       .path = Stories260k(),
                                       .recipe = "mxfp4",
                                       .budget = Budget{10, 0, 10, 0, 0}});
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->decision.device, "cpu");
  EXPECT_EQ(end.report->decision.recipe.name, "mxfp4");
  EXPECT_THAT(Trace(end), AllOf(HasSubstr("cuda:0 cannot be used: recipe mxfp4"),
                                HasSubstr("no products for scheme mxfp4")));
}

// The built-in rules, on devices that play their GPUs.
TEST_F(GpuAdmissionTest, TheBuiltInRulesFindKernels) {
  struct Case {
    const char *profile, *rule, *recipe, *scheme;
  };
  for (const Case& c : {Case{"sm90", "hopper", "fp8", "fp8_e4m3"},
                        Case{"sm86", "ampere_consumer", "int4", "int4_group"},
                        Case{"sm80", "ampere_datacenter", "int8_smooth", "int8_channel"},
                        Case{"sm75", "turing", "int8_smooth", "int8_channel"}}) {
    SCOPED_TRACE(c.profile);
    Open(1, {.profile = c.profile});
    AdmissionOptions options;
    options.policy = Policy::Default();
    StartOnGpus(options);
    const AdmissionProgress end =
        Admit({.name = "stories", .path = Stories260k(), .budget = Budget{1, 0, 10, 0, 0}});
    ASSERT_OK(end.status);
    EXPECT_EQ(end.report->decision.device, "cuda:0") << Trace(end);
    EXPECT_EQ(end.report->decision.rule, c.rule);
    EXPECT_EQ(end.report->decision.recipe.name, c.recipe);
    EXPECT_EQ(end.report->layers[1].scheme, c.scheme);
    EXPECT_EQ(end.report->fallback_fraction, 0);
    ExpectScratchBound("stories");
    ASSERT_OK(registry_.Unload("stories", 0));
    registry_.WaitForRetirements();
  }
}

// Rows of 4-bit weights are multiplied by one kernel in steps of up to 64 and by another in longer
// ones, and decode steps have an attention of their own: the gate looks at both.
TEST_F(GpuAdmissionTest, DecodeStepsAreProvenToo) {
  const auto admit = [&] {
    AdmissionHooks hooks;
    AdmissionOptions options;
    options.policy = Policy::Default();
    StartOnGpus(options, hooks, 80);
    return Admit({.name = "stories", .path = Stories260k(), .budget = Budget{1, 0, 10, 0, 0}});
  };
  Open(1, {.profile = "sm86"});
  const AdmissionProgress good = admit();
  ASSERT_OK(good.status);
  EXPECT_EQ(good.report->decision.recipe.name, "int4");
  EXPECT_GT(good.report->verification.decode_positions, 0);
  EXPECT_LT(good.report->verification.decode_kl_max, 0.05);
  ASSERT_EQ(good.report->slices.size(), 1u);
  EXPECT_THAT(good.report->slices[0].name, HasSubstr("every row a decode step"));
  // Few rows are closer to the reference: weights are not rounded a second time.
  EXPECT_NEAR(good.report->slices[0].result.mean_kl.mean / good.report->verification.mean_kl.mean,
              1, 0.25);
  ASSERT_OK(registry_.Unload("stories", 0));
  registry_.WaitForRetirements();

  CudaOpsKernels broken = EmulatedOpsKernels();
  broken.decode_attention = [](const DecodeAttentionArgs&, const LaunchContext&) { return 1; };
  pipeline_.reset();
  const CudaWorld world = {EmulatedCuda(1), EmulatedLinearKernels(), broken};
  ASSERT_OK_AND_ASSIGN(Gpus gpus, Gpus::Open(&world, {.profile = "sm86"}));
  gpus_ = std::make_unique<Gpus>(std::move(gpus));
  EXPECT_THAT(admit().status, StatusIs(StatusCode::kInternal, HasSubstr("decode_attention")));
  pipeline_.reset();
  gpus_.reset();
}

// 588 MB are the reserve of an emulated device of 1 GiB.
TEST_F(GpuAdmissionTest, ADeviceWithoutRoomIsPassedOver) {
  Open(2);
  StartOnGpus();
  const Buffer first = Occupy(gpus_->all()[0].backend->device(), 590'000'000);
  const AdmissionProgress end = AdmitStories();
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->decision.device, "cuda:1");
  EXPECT_THAT(Trace(end), HasSubstr("cuda:0 cannot be used: does not fit on the GPU"));
  ASSERT_OK(registry_.Unload("stories", 0));
  registry_.WaitForRetirements();
  const Buffer second = Occupy(gpus_->all()[1].backend->device(), 590'000'000);
  const AdmissionProgress host = AdmitStories();
  ASSERT_OK(host.status);
  EXPECT_EQ(host.report->decision.device, "cpu");
  EXPECT_THAT(Trace(host), HasSubstr("cuda:1 cannot be used: does not fit on the GPU"));
}

// Served ten times slower from then on, and nobody had asked for it.
TEST_F(GpuAdmissionTest, ANextVersionWithoutRoomDoesNotGoToTheHost) {
  Open(1);
  StartOnGpus();
  ASSERT_OK(AdmitStories().status);
  const Buffer rest = Occupy(gpus_->all()[0].backend->device(), 590'000'000);
  const AdmissionProgress next = AdmitStories();
  EXPECT_THAT(next.status, StatusIs(StatusCode::kResourceExhausted,
                                    AllOf(HasSubstr("cuda:0: does not fit on the GPU"),
                                          HasSubstr("unload it first"))));
  EXPECT_EQ(registry_.Find("stories", 1)->state, VersionState::kServing);
  EXPECT_EQ(registry_.Find("stories", 2)->state, VersionState::kRejected);
}

TEST_F(GpuAdmissionTest, ASmallCacheClipsTheContext) {
  Open(1);
  max_context_ = 0;
  AdmissionOptions options = WithPolicy();
  // 5 layers x 4 heads x 16 (of 8, as products want them) x (keys and values) x 2 bytes = 1280
  // bytes a token: 40 of them and a half.
  options.gpu_kv_bytes = 1280 * 40 + 640;
  StartOnGpus(options);
  const AdmissionProgress end = AdmitStories();
  ASSERT_OK(end.status);
  EXPECT_THAT(Trace(end), HasSubstr("sequences are clipped to 32 tokens"));  // whole blocks of 16
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<Servable> servable, registry_.Acquire("stories"));
  EXPECT_THAT(servable->generate->Submit({.prompt = {1, 2, 3}, .sampling = {.max_tokens = 30}},
                                         [](TokenEvent&&) {}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("context=32")));
}

// What the device has no product for is left out of the choice.
TEST_F(GpuAdmissionTest, ASearchTakesWhatTheDeviceComputes) {
  Open(1);
  StartOnGpus();
  AdmissionRequest request = {.name = "stories", .path = Stories260k()};
  request.search.candidates = {"mxfp4", "int8_channel"};
  request.search.max_loss = 0.05;
  const AdmissionProgress end = Admit(request);
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->decision.device, "cuda:0");
  for (const LayerReport& layer : end.report->layers) EXPECT_NE(layer.scheme, "mxfp4");
}

// Its weights would be rounded on the way.
TEST_F(GpuAdmissionTest, F32StaysOnTheHost) {
  Open(1);
  StartOnGpus();
  const AdmissionProgress end = Admit({.name = "stories", .path = Stories260k(), .scheme = "f32"});
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->decision.device, "cpu");
  EXPECT_THAT(Trace(end), HasSubstr("16 bit at most"));
}

TEST_F(GpuAdmissionTest, SabotagedCodesAreRejectedThereToo) {
  Open(1);
  AdmissionHooks hooks;
  hooks.after_quantize = [](const LinearSlot& slot, QuantizedTensor& tensor) {
    if (slot.name == "model.layers.1.mlp.down_proj") tensor.scales.data<float>()[3] *= 4;
  };
  StartOnGpus(WithPolicy(), hooks);
  const AdmissionProgress end = AdmitStories();
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition, HasSubstr("down_proj")));
  EXPECT_EQ(gpus_->all()[0].backend->device().allocated_bytes(), 0u);
}

TEST_F(GpuAdmissionTest, ALostDeviceIsPassedOver) {
  Open(1);
  StartOnGpus();
  CudaDevice& device = gpus_->all()[0].backend->device();
  EXPECT_THAT(device.Noted(CudaStatus(700, "norm rows=4")),
              StatusIs(StatusCode::kInternal, HasSubstr("illegal address")));
  const AdmissionProgress end = AdmitStories();
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->decision.device, "cpu");
  EXPECT_THAT(Trace(end), HasSubstr("illegal address"));
}

// Between two recipes of a ladder: the rule that matches then has no second one.
TEST_F(GpuAdmissionTest, ADeviceLostOnTheWayEndsOnTheHost) {
  Open(1);
  std::string policy = kPolicy;
  policy.replace(policy.find("recipe: gpu,"), 12, "recipe: [gpu, host],");
  AdmissionOptions options;
  options.policy = Policy::Parse(policy, "test").value();
  AdmissionHooks hooks;
  hooks.after_quantize = [this](const LinearSlot&, QuantizedTensor&) {
    gpus_->all()[0].backend->device().Noted(CudaStatus(700, "norm rows=4")).IgnoreError();
  };
  StartOnGpus(options, hooks);
  const AdmissionProgress end = AdmitStories();
  ASSERT_OK(end.status);
  EXPECT_EQ(end.report->decision.device, "cpu");
  EXPECT_EQ(end.report->decision.recipe.name, "host");
}

TEST_F(GpuAdmissionTest, CertificatesOfAnotherDeviceDoNotCount) {
  Open(1);
  StartOnGpus(WithPolicy(Cached()));
  ASSERT_OK(AdmitStories().status);
  StartOnGpus(WithPolicy(Cached()));
  const AdmissionProgress again = AdmitStories();
  ASSERT_OK(again.status);
  EXPECT_TRUE(again.report->certificate_hit);
  registry_.Unload("stories", 0).IgnoreError();
  registry_.WaitForRetirements();
  Open(1, {.profile = "sm86"});
  StartOnGpus(WithPolicy(Cached()));
  const AdmissionProgress other = AdmitStories();
  ASSERT_OK(other.status);
  EXPECT_TRUE(other.report->artifact_cache_hit);
  EXPECT_FALSE(other.report->certificate_hit);
}

}  // namespace
}  // namespace assay
