#include <nlohmann/json.hpp>

#include "quant/policy/policy.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using testing::SizeIs;

TEST(HardwareTest, ReadsARecordedMachine) {
  ASSERT_OK_AND_ASSIGN(const HardwareInfo h100, HardwareFromJson(ReadGolden("hardware/h100.json")));
  EXPECT_EQ(h100.cpu_isa, "amx");
  EXPECT_EQ(h100.cores, 112);
  ASSERT_THAT(h100.gpus, SizeIs(8));
  EXPECT_EQ(h100.gpus[7].name, "NVIDIA H100 80GB HBM3");
  EXPECT_EQ(h100.gpus[0].compute_capability, 90);
  EXPECT_EQ(h100.gpus[0].memory_bytes, uint64_t{81559} << 20);
}

TEST(HardwareTest, SurvivesARoundTripThroughJson) {
  ASSERT_OK_AND_ASSIGN(const HardwareInfo before, HardwareFromJson(ReadGolden("hardware/t4.json")));
  ASSERT_OK_AND_ASSIGN(const HardwareInfo after, HardwareFromJson(ToJson(before).dump()));
  EXPECT_EQ(ToJson(after), ToJson(before));
}

TEST(HardwareTest, ProbeDescribesThisHost) {
  const HardwareInfo host = ProbeHardware();
  EXPECT_FALSE(host.cpu_isa.empty());
  EXPECT_GT(host.cores, 0);
  EXPECT_GT(host.memory_bytes, uint64_t{1} << 20);
  EXPECT_OK(Policy::Default().Choose(host, 4 << 20));
}

TEST(HardwareTest, ErrorsNameTheKey) {
  const nlohmann::json good = nlohmann::json::parse(ReadGolden("hardware/t4.json"));
  const auto expect_error = [](const nlohmann::json& json, const char* key) {
    EXPECT_THAT(HardwareFromJson(json.dump()),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(key)));
  };
  nlohmann::json bad = good;
  bad["cpu"].erase("isa");
  expect_error(bad, "key=cpu.isa");
  bad = good;
  bad["cpu"]["cores"] = -1;
  expect_error(bad, "key=cpu.cores");
  bad = good;
  bad["cpu"]["sockets"] = 1;
  expect_error(bad, "key=cpu.sockets");
  bad = good;
  bad["gpus"][0]["compute_capability"] = "75";
  expect_error(bad, "key=gpus[0].compute_capability");
  bad = good;
  bad["gpus"] = 1;
  expect_error(bad, "key=gpus");
  bad = good;
  bad["npu"] = 1;
  expect_error(bad, "key=npu");
  EXPECT_THAT(HardwareFromJson("{"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("JSON")));
  EXPECT_THAT(HardwareFromJson("{}"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("key=cpu")));
}

}  // namespace
}  // namespace assay
