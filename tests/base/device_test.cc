#include "base/device.h"

#include <cstring>

#include "base/cpu_info.h"
#include "base/tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

TEST(CpuDeviceTest, GivesAlignedMemoryAndCountsIt) {
  Device& cpu = CpuDevice();
  const size_t before = cpu.allocated_bytes();
  for (size_t bytes : {size_t{1}, size_t{4095}, size_t{2} << 20, (size_t{5} << 20) + 7}) {
    ASSERT_OK_AND_ASSIGN(Buffer buffer, cpu.Allocate(bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    EXPECT_EQ(cpu.allocated_bytes(), before + bytes);
    std::memset(buffer.data(), 0xab, bytes);
  }
  EXPECT_EQ(cpu.allocated_bytes(), before);
}

TEST(CpuDeviceTest, RefusesAnAbsurdSizeWithTheNumber) {
  EXPECT_THAT(CpuDevice().Allocate(size_t{1} << 60),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("1152921504606846976")));
}

TEST(CpuInfoTest, AgreesWithTheCompilersOwnProbe) {
  __builtin_cpu_init();
  EXPECT_EQ(HostCpu().avx2, __builtin_cpu_supports("avx2") != 0);
  EXPECT_EQ(HostCpu().fma, __builtin_cpu_supports("fma") != 0);
  EXPECT_EQ(HostCpu().avx512_vnni, __builtin_cpu_supports("avx512vnni") != 0);
  EXPECT_GE(HostCpu().cores, 1);
  EXPECT_GT(HostCpu().memory_bytes, uint64_t{64} << 20);
  EXPECT_GT(AvailableMemoryBytes(), 0u);
}

TEST(TensorTest, BytesCountSubByteTypes) {
  EXPECT_EQ(BytesOf(7, DType::kU4), 4u);
  EXPECT_EQ(BytesOf(7, DType::kF32), 28u);
  EXPECT_EQ(ToString(Shape{2, 3}), "[2,3]");
}

}  // namespace
}  // namespace assay
