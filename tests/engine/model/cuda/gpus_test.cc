// Which GPUs a process uses, on emulated ones.
#include "engine/model/cuda/gpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
