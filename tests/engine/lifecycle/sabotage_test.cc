// Models that are broken on purpose: each must be rejected, the report must name the layer, and
// keeping layers in higher precision must not hide it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::Contains;
using testing::HasSubstr;

constexpr char kVictim[] = "model.layers.2.mlp.down_proj";

class SabotageTest : public AdmissionFixture {
 protected:
  using Tamper = std::function<void(QuantizedTensor&)>;
  void ExpectRejectedByName(const Tamper& tamper) {
    AdmissionHooks hooks;
    hooks.after_quantize = [&](const LinearSlot& slot, QuantizedTensor& tensor) {
      if (slot.name == kVictim) tamper(tensor);
    };
    Start(Cached(), hooks);
    const AdmissionProgress end = AdmitStories();
    EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition, HasSubstr(kVictim)));
    ASSERT_NE(end.report, nullptr);
    EXPECT_EQ(end.report->verdict, "rejected");
    EXPECT_THAT(end.report->verification.defects, Contains(HasSubstr(kVictim)));
    EXPECT_EQ(end.report->fallback_fraction, 0);
    EXPECT_EQ(registry_.Find("stories", 0)->state, VersionState::kRejected);
    // Nothing of it stays in the cache.
    for (const auto& entry :
         std::filesystem::directory_iterator(directory_.path() + "/cache/artifacts")) {
      ADD_FAILURE() << "left behind: " << entry.path();
    }
  }
};

TEST_F(SabotageTest, DoubledScalesOfOneLayer) {
  ExpectRejectedByName([](QuantizedTensor& tensor) {
    for (int64_t i = 0; i < tensor.scales.shape()[0]; ++i) tensor.scales.data<float>()[i] *= 2;
  });
}

TEST_F(SabotageTest, OneDoubledScale) {
  ExpectRejectedByName([](QuantizedTensor& tensor) { tensor.scales.data<float>()[5] *= 2; });
}

TEST_F(SabotageTest, TwoSwappedCodesOfOneRow) {
  ExpectRejectedByName([](QuantizedTensor& tensor) {
    const int64_t k = tensor.shape[1];
    int8_t* row = tensor.codes.data<int8_t>() + 3 * k;
    std::iter_swap(std::max_element(row, row + k), std::min_element(row, row + k));
  });
}

TEST_F(SabotageTest, OneSwappedNibble) {
  ExpectRejectedByName([](QuantizedTensor& tensor) {
    auto* codes = tensor.codes.data<uint8_t>();
    uint8_t* code = std::find_if(codes, codes + tensor.codes.bytes(), [](uint8_t c) {
      return (c >> 4) != (c & 15) && c != 0x80 && (((c & 15) << 4) | (c >> 4)) != 0x80;
    });
    *code = static_cast<uint8_t>((*code << 4) | (*code >> 4));
  });
}

TEST_F(SabotageTest, TwoSwappedRows) {
  ExpectRejectedByName([](QuantizedTensor& tensor) {
    const int64_t k = tensor.shape[1];
    int8_t* codes = tensor.codes.data<int8_t>();
    std::swap_ranges(codes, codes + k, codes + k);
  });
}

TEST_F(SabotageTest, NanScale) {
  ExpectRejectedByName([](QuantizedTensor& tensor) {
    tensor.scales.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  });
}

TEST_F(SabotageTest, ZeroScale) {
  ExpectRejectedByName([](QuantizedTensor& tensor) { tensor.scales.data<float>()[1] = 0; });
}

TEST_F(SabotageTest, ConstantCodes) {
  ExpectRejectedByName([](QuantizedTensor& tensor) {
    std::fill_n(tensor.codes.data<int8_t>(), tensor.shape[1], int8_t{64});
  });
}

TEST_F(SabotageTest, ADecodePathThatDisagreesWithPrefill) {
  AdmissionHooks hooks;
  hooks.candidate = [](std::shared_ptr<const Model> model) {
    return std::make_shared<const OffInDecode>(std::move(model), 0.1f);
  };
  Start(Cached(), hooks);
  const AdmissionProgress end = AdmitStories();
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition, HasSubstr("disagrees")));
  ASSERT_NE(end.report, nullptr);
  EXPECT_EQ(end.report->verdict, "rejected");
  EXPECT_THAT(end.report->verification.defects, Contains(HasSubstr("decoding step by step")));
  EXPECT_EQ(registry_.Find("stories", 0)->state, VersionState::kRejected);
}

TEST_F(SabotageTest, WithoutSabotageTheSameChecksPass) {
  Start(Cached());
  EXPECT_OK(AdmitStories().status);
}

// The bundled checkpoint with NaN in the first row of one tensor.
std::string WithNan(const TempDir& directory, const std::string& tensor) {
  std::ifstream file(Stories260k(), std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const std::unique_ptr<const Checkpoint> checkpoint = OpenCheckpoint(Stories260k()).value();
  const Tensor values = checkpoint->ReadAll(tensor).value();
  constexpr size_t kPrint = 16 * sizeof(float);  // enough to be found once
  const std::string print(reinterpret_cast<const char*>(values.data<float>()), kPrint);
  const size_t at = bytes.find(print);
  EXPECT_NE(at, std::string::npos);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data() + at, &nan, sizeof(nan));
  return directory.Write("nan.gguf", bytes);
}

TEST_F(SabotageTest, NanWeightInTheCheckpoint) {
  Start({});
  const AdmissionProgress end =
      Admit({.path = WithNan(directory_, "model.layers.3.mlp.down_proj.weight")});
  EXPECT_THAT(end.status,
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("model.layers.3.mlp.down_proj")));
  ASSERT_NE(end.report, nullptr);
  EXPECT_EQ(end.report->verdict, "rejected");
  EXPECT_THAT(end.report->verification.defects, Contains(HasSubstr("down_proj")));
}

TEST_F(SabotageTest, NanInANormOfTheCheckpoint) {
  Start({});
  const AdmissionProgress end =
      Admit({.path = WithNan(directory_, "model.layers.1.input_layernorm.weight")});
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition,
                                   HasSubstr("model.layers.1.input_layernorm.weight")));
  EXPECT_EQ(registry_.Find("nan", 1)->state, VersionState::kRejected);
}

// Changed while its layers are quantized: no artifact under the hash of what the file was.
TEST_F(SabotageTest, ACheckpointThatChangesWhileItIsReadFailsAndLeavesNoArtifact) {
  const std::string path = directory_.path() + "/stories.gguf";
  std::filesystem::copy_file(Stories260k(), path);
  AdmissionHooks hooks;
  hooks.after_quantize = [&](const LinearSlot&, QuantizedTensor&) {
    std::fstream(path, std::ios::in | std::ios::out).seekp(200'000).put('x');
  };
  Start(Cached(), hooks);
  const AdmissionProgress changed = Admit({.name = "stories", .path = path});
  EXPECT_EQ(changed.status.code(), absl::StatusCode::kDataLoss) << changed.status;
  EXPECT_THAT(changed.status.message(), HasSubstr("was changed while it was in use"));
  Start(Cached());
  ASSERT_OK(AdmitStories().status);
  EXPECT_GT(quantized_, 0);  // not from the cache
}

}  // namespace
}  // namespace assay
