// main() of tests that need a GPU. Where there is none, every test is skipped and says why.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/cuda_world.h"

namespace assay {
namespace {

absl::Status FindDevice() {
  if (DriverCuda() == nullptr) return absl::UnavailableError("built without a CUDA toolkit");
  RETURN_IF_ERROR(WorldCuda().CountDevices().status());
  ASSIGN_OR_RETURN(const auto device, CudaDevice::Open(WorldCuda(), 0, WorldProfile()));
  printf("on %s, as compute capability %d\n", device->properties().name.c_str(),
         device->profile().compute);
  return absl::OkStatus();
}

class SkipAll : public testing::EmptyTestEventListener {
 public:
  explicit SkipAll(absl::Status why) : why_(std::move(why)) {}
  void OnTestStart(const testing::TestInfo&) override {
    GTEST_SKIP() << "SKIPPED: no GPU here: " << why_;
  }

 private:
  const absl::Status why_;
};

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  const absl::Status device = assay::FindDevice();
  // A profile that the device cannot play is a mistake of the caller's, not a reason to skip.
  if (absl::IsInvalidArgument(device)) {
    fprintf(stderr, "%s\n", device.ToString().c_str());
    return 1;
  }
  if (!device.ok())
    testing::UnitTest::GetInstance()->listeners().Append(new assay::SkipAll(device));
  return RUN_ALL_TESTS();
}
