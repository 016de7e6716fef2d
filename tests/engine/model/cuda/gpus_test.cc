// Which GPUs a process uses, on emulated ones.
#include "engine/model/cuda/gpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

CudaWorld World(int devices) {
  return {EmulatedCuda(devices), EmulatedLinearKernels(), EmulatedOpsKernels()};
}

TEST(GpusTest, FindsAllAndTriesThem) {
  const CudaWorld world = World(2);
  ASSERT_OK_AND_ASSIGN(const Gpus gpus, Gpus::Open(&world, {}));
  ASSERT_THAT(gpus.all(), SizeIs(2));
  EXPECT_THAT(gpus.why_none(), IsEmpty());
  for (const Gpus::Found& found : gpus.all()) {
    ASSERT_NE(found.backend, nullptr) << found.why_not;
    EXPECT_EQ(found.backend->device().name(), found.name);
    EXPECT_EQ(found.backend->half(), Half::kBf16);
    EXPECT_EQ(found.profile.compute, 90);
    EXPECT_OK(found.backend->health());
  }
  EXPECT_EQ(gpus.all()[1].name, "cuda:1");
  EXPECT_NE(&gpus.all()[0].backend->device(), &gpus.all()[1].backend->device());
}

TEST(GpusTest, UsesThoseThatAreNamed) {
  const CudaWorld world = World(2);
  ASSERT_OK_AND_ASSIGN(const Gpus second, Gpus::Open(&world, {.devices = "cuda:1"}));
  ASSERT_THAT(second.all(), SizeIs(2));
  EXPECT_EQ(second.all()[0].backend, nullptr);
  EXPECT_THAT(second.all()[0].why_not, HasSubstr("devices=cuda:1"));
  EXPECT_NE(second.all()[1].backend, nullptr);
  ASSERT_OK_AND_ASSIGN(const Gpus none, Gpus::Open(&world, {.devices = "none"}));
  EXPECT_THAT(none.all(), IsEmpty());
}

TEST(GpusTest, PlaysWeakerDevices) {
  const CudaWorld world = World(1);
  ASSERT_OK_AND_ASSIGN(const Gpus gpus, Gpus::Open(&world, {.profile = "sm75"}));
  ASSERT_NE(gpus.all()[0].backend, nullptr);
  EXPECT_EQ(gpus.all()[0].profile.compute, 75);
  EXPECT_EQ(gpus.all()[0].backend->half(), Half::kF16);  // no bf16 before 8.0
  EXPECT_THAT(gpus.all()[0].backend->fingerprint(), HasSubstr("sm_75"));
}

TEST(GpusTest, BadOptionsAreNamed) {
  const CudaWorld world = World(1);
  for (const char* bad : {"cuda", "cuda:x", "cuda:-1", "gpu:0", "cuda:0,", ""}) {
    EXPECT_THAT(Gpus::Open(&world, {.devices = bad}).status(),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(std::string("devices=") + bad)));
  }
  EXPECT_THAT(
      Gpus::Open(&world, {.devices = "cuda:1"}).status(),
      StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("cuda:1"), HasSubstr("there are 1"))));
  EXPECT_THAT(Gpus::Open(&world, {.profile = "sm120"}).status(),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("sm120")));
  EXPECT_THAT(Gpus::Open(nullptr, {.devices = "cuda:0"}).status(),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("built without CUDA")));
}

TEST(GpusTest, WithoutCudaThereAreNoneAndItSaysWhy) {
  ASSERT_OK_AND_ASSIGN(const Gpus gpus, Gpus::Open(nullptr, {}));
  EXPECT_THAT(gpus.all(), IsEmpty());
  EXPECT_THAT(gpus.why_none(), HasSubstr("built without CUDA"));
}

// As where the binary has no code for the device's architecture.
int NoKernel(const QuantizeRowsArgs&, const LaunchContext&) { return 209; }
// As where it has, and the device computes something else.
int WrongNumbers(const QuantizeRowsArgs& args, const LaunchContext&) {
  std::fill_n(args.codes, 4, uint8_t{3});
  return 0;
}

TEST(GpusTest, ADeviceThatFailsItsFirstKernelIsNotUsed) {
  for (const auto& [kernel, says] : {std::pair(&NoKernel, "no kernel for this architecture"),
                                     std::pair(&WrongNumbers, "wrong numbers: 3 3 3 3")}) {
    CudaLinearKernels broken = EmulatedLinearKernels();
    broken.quantize_rows = kernel;
    const CudaWorld world = {EmulatedCuda(), broken, EmulatedOpsKernels()};
    ASSERT_OK_AND_ASSIGN(const Gpus gpus, Gpus::Open(&world, {}));
    ASSERT_THAT(gpus.all(), SizeIs(1));
    EXPECT_EQ(gpus.all()[0].backend, nullptr);
    EXPECT_THAT(gpus.all()[0].why_not, HasSubstr(says));
    // Asked for by name it is an error.
    EXPECT_THAT(Gpus::Open(&world, {.devices = "cuda:0"}).status(),
                StatusIs(StatusCode::kInternal, AllOf(HasSubstr("cuda:0"), HasSubstr(says))));
  }
}

// All bytes of a weight, with the form of each tensor.
std::string BytesOf(const QuantizedTensor& q) {
  std::string out = std::string(q.scheme->name()) + ToString(q.shape) + std::to_string(q.group);
  const auto append = [&](std::string_view name, const Tensor& tensor) {
    out += std::string(name) + std::string(Name(tensor.dtype())) + ToString(tensor.shape());
    out.append(reinterpret_cast<const char*>(tensor.data<std::byte>()), tensor.bytes());
  };
  append("codes", q.codes);
  append("scales", q.scales);
  append("zeros", q.zeros);
  for (const auto& [name, tensor] : q.extra) append(name, tensor);
  return out;
}

int slices = 0;  // that a device has seen, of weights to quantize
CudaLinearKernels CountedKernels() {
  CudaLinearKernels kernels = EmulatedLinearKernels();
  kernels.largest_of_tiles = [](const LargestOfTilesArgs& args, const LaunchContext& context) {
    ++slices;
    return emulated::LargestOfTiles(args, context);
  };
  return kernels;
}

TEST(GpusTest, QuantizesAsTheHostDoes) {
  const CudaLinearKernels kernels = CountedKernels();
  const CudaWorld world = {EmulatedCuda(), kernels, EmulatedOpsKernels()};
  ASSERT_OK_AND_ASSIGN(const Gpus gpus, Gpus::Open(&world, {}));
  const GpuBackend& backend = *gpus.all()[0].backend;
  const Tensor weight = RandomTensor({9, 200}, 3, 0.05f);
  int on_device = 0;
  for (const QuantScheme* scheme : AllSchemes()) {
    SCOPED_TRACE(std::string(scheme->name()));
    slices = 0;
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor host, CpuBackend().Encode(*scheme, weight.view()));
    EXPECT_EQ(slices, 0);
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor device, backend.Encode(*scheme, weight.view()));
    on_device += slices > 0 ? 1 : 0;
    EXPECT_EQ(BytesOf(device), BytesOf(host));
  }
  EXPECT_GE(on_device, 10);
  EXPECT_EQ(backend.device().allocated_bytes(), 0u);
}

TEST(GpusTest, WeightsThatCannotBeQuantizedAreNamedAsOnTheHost) {
  const CudaWorld world = World(1);
  ASSERT_OK_AND_ASSIGN(const Gpus gpus, Gpus::Open(&world, {}));
  std::vector<float> values(6, 1.0f);
  values[4] = std::nanf("");
  ASSERT_OK_AND_ASSIGN(const Tensor halves, Tensor::Create(CpuDevice(), {2, 3}, DType::kBf16));
  for (const char* spelling : {"int8_channel", "int4_group", "nf4", "fp8_e4m3:tensor"}) {
    const QuantScheme& scheme = **FindScheme(spelling);
    const auto encode = [&](const ModelBackend& backend, const Tensor& weight) {
      return backend.Encode(scheme, weight.view()).status();
    };
    const GpuBackend& gpu = *gpus.all()[0].backend;
    const Tensor broken = TensorOf({2, 3}, values), vector = TensorOf({6}, values);
    EXPECT_THAT(encode(gpu, broken),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("row=1 column=1")));
    for (const Tensor* weight : {&broken, &vector, &halves}) {
      EXPECT_FALSE(encode(gpu, *weight).ok());
      EXPECT_EQ(encode(gpu, *weight), encode(CpuBackend(), *weight));
    }
  }
}

TEST(GpusTest, WhereThereIsNoMemoryTheHostQuantizes) {
  const CudaLinearKernels kernels = CountedKernels();
  const CudaWorld world = {EmulatedCuda(), kernels, EmulatedOpsKernels()};
  ASSERT_OK_AND_ASSIGN(const Gpus gpus, Gpus::Open(&world, {}));
  const GpuBackend& backend = *gpus.all()[0].backend;
  const QuantScheme& scheme = **FindScheme("int4_group");
  const Tensor weight = RandomTensor({64, 128}, 3, 0.05f);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor host, scheme.Encode(weight.view()));
  std::vector<Buffer> taken;  // the weight wants 32 KiB, its codes more than 4
  for (const size_t left : {size_t{64} << 10, size_t{34} << 10, size_t{1} << 10, size_t{0}}) {
    slices = 0;
    auto more = backend.device().Allocate(backend.device().free_bytes() - left);
    ASSERT_OK(more);
    taken.push_back(*std::move(more));
    const size_t before = backend.device().allocated_bytes();
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor got, backend.Encode(scheme, weight.view()));
    EXPECT_EQ(BytesOf(got), BytesOf(host));
    EXPECT_EQ(slices > 0, left == size_t{64} << 10) << left;
    EXPECT_EQ(backend.device().allocated_bytes(), before);
  }
  EXPECT_OK(backend.health());
}

TEST(GpusTest, ADeviceThatFailsIsNotPassedOver) {
  CudaLinearKernels broken = EmulatedLinearKernels();
  broken.quantize_groups = [](const QuantizeGroupsArgs&, const LaunchContext&) { return 719; };
  const CudaWorld world = {EmulatedCuda(), broken, EmulatedOpsKernels()};
  ASSERT_OK_AND_ASSIGN(const Gpus gpus, Gpus::Open(&world, {}));
  const GpuBackend& backend = *gpus.all()[0].backend;
  EXPECT_THAT(backend.Encode(**FindScheme("int4_group"), RandomTensor({4, 128}, 3).view()).status(),
              StatusIs(StatusCode::kInternal, HasSubstr("quantize_groups")));
  EXPECT_FALSE(backend.health().ok());
}

// A launch into a stream of another device than the thread's: what Use() is for.
TEST(GpusTest, AThreadLaunchesOnItsDeviceAlone) {
  const CudaWorld world = World(2);
  ASSERT_OK_AND_ASSIGN(const Gpus gpus, Gpus::Open(&world, {}));
  CudaDevice& first = gpus.all()[0].backend->device();
  ASSERT_OK_AND_ASSIGN(Buffer memory, first.Allocate(256));
  const QuantizeRowsArgs args = {.from = memory.data(),
                                 .codes = reinterpret_cast<uint8_t*>(memory.data()),
                                 .scales = reinterpret_cast<float*>(memory.data() + 128),
                                 .rows = 1,
                                 .k = 4,
                                 .from_stride = 4,
                                 .codes_stride = 4};
  ASSERT_OK(gpus.all()[1].backend->device().Use());
  EXPECT_EQ(EmulatedLinearKernels().quantize_rows(args, {.stream = first.stream()}), 400);
  ASSERT_OK(first.Use());
  EXPECT_EQ(EmulatedLinearKernels().quantize_rows(args, {.stream = first.stream()}), 0);
}

TEST(GpusTest, AFailureThatEndsADeviceIsToldOnce) {
  const CudaWorld world = World(1);
  ASSERT_OK_AND_ASSIGN(const Gpus gpus, Gpus::Open(&world, {}));
  CudaDevice& device = gpus.all()[0].backend->device();
  std::vector<std::string> told;
  device.OnFailure([&](const absl::Status& status) { told.emplace_back(status.message()); });
  EXPECT_THAT(device.Noted(CudaStatus(2, "allocate")), StatusIs(StatusCode::kResourceExhausted));
  EXPECT_THAT(told, IsEmpty());  // out of memory is no such thing
  EXPECT_THAT(device.Noted(CudaStatus(700, "norm rows=4")), StatusIs(StatusCode::kInternal));
  EXPECT_THAT(device.Noted(CudaStatus(719, "gemm16")), StatusIs(StatusCode::kInternal));
  ASSERT_THAT(told, SizeIs(1));
  EXPECT_THAT(told[0], AllOf(HasSubstr("illegal address"), HasSubstr("norm rows=4")));
  EXPECT_THAT(gpus.all()[0].backend->health(), StatusIs(StatusCode::kInternal));
}

}  // namespace
}  // namespace assay
