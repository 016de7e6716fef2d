// The contract of CudaRuntime, held to the emulator and, where there is a GPU, to the driver.
#include "base/cuda/runtime.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "base/cuda/cuda_device.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

TEST(CudaStatusTest, NamesErrorAndOperation) {
  EXPECT_OK(CudaStatus(0, "x"));
  EXPECT_THAT(CudaStatus(2, "allocate bytes=5"),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("out of memory"), HasSubstr("allocate bytes=5"))));
  EXPECT_THAT(CudaStatus(35, "count_devices"),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("driver")));
  EXPECT_THAT(CudaStatus(4711, "x"), StatusIs(absl::StatusCode::kInternal, HasSubstr("4711")));
}

TEST(CudaStatusTest, KnowsWhatNothingRecoversFrom) {
  EXPECT_TRUE(IsSticky(CudaStatus(700, "x")));
  EXPECT_TRUE(IsSticky(CudaStatus(719, "x")));
  EXPECT_FALSE(IsSticky(CudaStatus(2, "x")));
  EXPECT_FALSE(IsSticky(absl::InternalError("x")));
  EXPECT_FALSE(IsSticky(absl::OkStatus()));
}

class CudaRuntimeTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    runtime_ = GetParam() ? DriverCuda() : &EmulatedCuda();
    if (runtime_ == nullptr) GTEST_SKIP() << "SKIPPED: built without a CUDA toolkit";
    if (const auto count = runtime_->CountDevices(); !count.ok())
      GTEST_SKIP() << "SKIPPED: no GPU here: " << count.status();
    ASSERT_OK_AND_ASSIGN(stream_, runtime_->CreateStream(0, true));
  }
  void TearDown() override {
    if (!IsSkipped()) runtime_->DestroyStream(stream_);
  }
  const CudaRuntime* runtime_ = nullptr;
  GpuStream stream_ = nullptr;
};
INSTANTIATE_TEST_SUITE_P(Runtimes, CudaRuntimeTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Driver" : "Emulated"; });

TEST_P(CudaRuntimeTest, KnowsItsDevice) {
  ASSERT_OK_AND_ASSIGN(const CudaProperties properties, runtime_->Properties(0));
  EXPECT_GE(properties.compute(), 75);
  EXPECT_FALSE(properties.name.empty());
  EXPECT_GT(properties.multiprocessors, 0);
  EXPECT_GE(properties.shared_bytes_per_block, size_t{64} << 10);
  ASSERT_OK_AND_ASSIGN(const size_t free, runtime_->FreeBytes(0));
  EXPECT_LE(free, properties.memory_bytes);
  EXPECT_FALSE(runtime_->Properties(99).ok());
}

TEST_P(CudaRuntimeTest, MovesBytes) {
  ASSERT_OK_AND_ASSIGN(const GpuBuffer buffer, GpuBuffer::Create(*runtime_, 0, 1000));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 256, 0u);
  std::vector<char> from(1000, 'x'), to(1000, '?');
  ASSERT_OK(runtime_->Upload(from.data(), buffer.data(), 1000, stream_));
  ASSERT_OK(runtime_->Fill(buffer.data() + 10, 'y', 5, stream_));
  ASSERT_OK(runtime_->Download(buffer.data(), to.data(), 1000, stream_));
  ASSERT_OK(runtime_->Synchronize(stream_));
  std::fill_n(from.begin() + 10, 5, 'y');
  EXPECT_EQ(to, from);
}

TEST_P(CudaRuntimeTest, SaysWhatItHasTooLittleOf) {
  EXPECT_THAT(GpuBuffer::Create(*runtime_, 0, size_t{1} << 45).status(),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("bytes=35184372088832"), HasSubstr("free="))));
  EXPECT_OK(GpuBuffer::Create(*runtime_, 0, 1024).status());  // not the end of it
}

TEST_P(CudaRuntimeTest, GraphsDoAgainWhatWasCaptured) {
  ASSERT_OK_AND_ASSIGN(const GpuBuffer buffer, GpuBuffer::Create(*runtime_, 0, 64));
  ASSERT_OK(runtime_->Fill(buffer.data(), 1, 64, stream_));
  ASSERT_OK(runtime_->BeginCapture(stream_));
  ASSERT_OK(runtime_->Fill(buffer.data(), 2, 64, stream_));
  ASSERT_OK_AND_ASSIGN(const GpuGraph graph, runtime_->EndCapture(stream_));
  std::vector<char> to(64);
  const auto read = [&] {
    EXPECT_OK(runtime_->Download(buffer.data(), to.data(), 64, stream_));
    EXPECT_OK(runtime_->Synchronize(stream_));
  };
  read();
  EXPECT_THAT(to, Each(1));
  for (int i = 0; i < 2; ++i) {
    ASSERT_OK(runtime_->Fill(buffer.data(), 3, 64, stream_));
    ASSERT_OK(runtime_->Launch(graph, stream_));
    read();
    EXPECT_THAT(to, Each(2));
  }
  runtime_->DestroyGraph(graph);
}

TEST_P(CudaRuntimeTest, EventsMeasureTime) {
  ASSERT_OK_AND_ASSIGN(const GpuEvent from, runtime_->CreateEvent(0));
  ASSERT_OK_AND_ASSIGN(const GpuEvent to, runtime_->CreateEvent(0));
  ASSERT_OK(runtime_->Record(from, stream_));
  ASSERT_OK(runtime_->Record(to, stream_));
  ASSERT_OK(runtime_->WaitFor(stream_, to));
  ASSERT_OK_AND_ASSIGN(const double milliseconds, runtime_->Milliseconds(from, to));
  EXPECT_GE(milliseconds, 0);
  runtime_->DestroyEvent(from);
  runtime_->DestroyEvent(to);
}

TEST_P(CudaRuntimeTest, ADeviceOwnsItsMemory) {
  ASSERT_OK_AND_ASSIGN(const auto device, CudaDevice::Open(*runtime_, 0));
  EXPECT_EQ(device->name(), "cuda:0");
  EXPECT_EQ(device->kind(), DeviceKind::kCuda);
  {
    ASSERT_OK_AND_ASSIGN(Buffer buffer, device->Allocate(4096));
    EXPECT_EQ(device->allocated_bytes(), 4096u);
    std::vector<std::byte> from(4096, std::byte{7}), to(4096);
    ASSERT_OK(device->Upload(from, buffer));
    ASSERT_OK(device->Download(buffer, to));
    EXPECT_EQ(to, from);
    from.push_back({});
    EXPECT_THAT(device->Upload(from, buffer),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bytes=4097 buffer=4096")));
    EXPECT_THAT(device->Download(buffer, from),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bytes=4097 buffer=4096")));
  }
  EXPECT_EQ(device->allocated_bytes(), 0u);
  EXPECT_FALSE(CudaDevice::Open(*runtime_, 99).ok());
}

// Through the ring: three slots' worth and an end that is no multiple of anything, twice.
TEST_P(CudaRuntimeTest, LongUploadsArriveWhole) {
  ASSERT_OK_AND_ASSIGN(const auto device, CudaDevice::Open(*runtime_, 0));
  std::vector<std::byte> from((size_t{40} << 20) + 13), to(from.size());
  ASSERT_OK_AND_ASSIGN(Buffer buffer, device->Allocate(from.size()));
  for (uint32_t seed : {1u, 2u}) {
    for (size_t i = 0; i < from.size(); ++i)
      from[i] = static_cast<std::byte>((i * 2654435761u + seed) >> 16);
    ASSERT_OK(device->Upload(from, buffer));
    ASSERT_OK(device->Download(buffer, to));
    EXPECT_TRUE(to == from);
  }
}

TEST(CudaDeviceTest, PlaysWeakerDevices) {
  ASSERT_OK_AND_ASSIGN(const auto device, CudaDevice::Open(EmulatedCuda(), 0, "sm86"));
  EXPECT_EQ(device->profile().compute, 86);
  EXPECT_EQ(device->profile().shared_bytes_per_block, size_t{99} << 10);
  EXPECT_EQ(device->properties().compute(), 90);
  EXPECT_THAT(CudaDevice::Open(EmulatedCuda(), 0, "sm120").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("profile=sm120"), HasSubstr("device=sm90"))));
  EXPECT_THAT(CudaDevice::Open(EmulatedCuda(), 0, "hopper").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("profile=hopper"), HasSubstr("sm75, sm80"))));
}

TEST(CudaDeviceTest, RemembersWhatEndsItsUse) {
  ASSERT_OK_AND_ASSIGN(const auto device, CudaDevice::Open(EmulatedCuda(), 0));
  EXPECT_FALSE(device->Noted(CudaStatus(2, "allocate")).ok());
  EXPECT_OK(device->health());
  EXPECT_FALSE(device->Noted(CudaStatus(700, "first")).ok());
  EXPECT_FALSE(device->Noted(CudaStatus(719, "second")).ok());
  EXPECT_THAT(device->health(), StatusIs(absl::StatusCode::kInternal, HasSubstr("first")));
}

}  // namespace
}  // namespace assay
