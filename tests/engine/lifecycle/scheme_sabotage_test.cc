// The gate against every sabotage of every quantizing scheme: one layer of a real admission is
// broken after it was encoded, the way a wrong packer, a stale file or a wrong reader would break
// it. Each must end in a rejection that names the layer; without sabotage no check may speak.
#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

#include "base/float16.h"
#include "base/float8.h"
#include "tests/engine/lifecycle/admission_fixture.h"
#include "tests/support/scheme_testing.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kVictim[] = "model.layers.2.mlp.gate_up_proj";  // [344, 64]

struct Sabotage {
  const char* name;
  // False where the scheme has nothing of the kind.
  std::function<bool(QuantizedTensor&)> apply;
};

// What the same layer one block further up encodes to.
QuantizedTensor Neighbour(const QuantScheme& scheme) {
  const auto checkpoint = OpenCheckpoint(Stories260k()).value();
  const ModelFamily* family = FamilyOf(*checkpoint).value();
  for (const LinearSlot& slot : family->slots(family->parse(*checkpoint).value())) {
    if (slot.name != "model.layers.3.mlp.gate_up_proj") continue;
    return scheme.Encode(ReadSlotWeight(*checkpoint, slot).value().view()).value();
  }
  return {};
}

bool SwapNeighbourCodes(QuantizedTensor& q) {
  auto* codes = q.codes.data<uint8_t>();
  const auto bytes = static_cast<int64_t>(q.codes.bytes());
  for (int64_t i = 0; i < bytes; ++i) {
    if (CodeBits(q) == 4) codes[i] = static_cast<uint8_t>(codes[i] << 4 | codes[i] >> 4);
    if (CodeBits(q) != 4 && i % 2 == 0 && i + 1 < bytes) std::swap(codes[i], codes[i + 1]);
  }
  return true;
}

bool TransposeBlock(QuantizedTensor& q) {
  const int64_t stride = static_cast<int64_t>(q.codes.bytes()) / q.shape[0];
  const int64_t width = std::min<int64_t>(32, stride);
  auto* codes = q.codes.data<uint8_t>();
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < i; ++j) std::swap(codes[i * stride + j], codes[j * stride + i]);
  }
  return true;
}

bool RotateScales(QuantizedTensor& q) {  // each group has its neighbour's
  if (q.scales.shape().elements() < 2) return false;
  auto* bytes = q.scales.data<uint8_t>();
  const size_t one = q.scales.bytes() / static_cast<size_t>(q.scales.shape().elements());
  std::rotate(bytes, bytes + one, bytes + q.scales.bytes());
  return true;
}

bool StaleScales(QuantizedTensor& q) {  // of another layer
  QuantizedTensor other = Neighbour(*q.scheme);
  if (q.scales.shape().elements() < 2) return false;  // one scale: nearly the same number
  q.scales = std::move(other.scales);
  for (const char* name : {"nested_absmax", "nested_offset", "global_scale", "row_scales"}) {
    if (q.extra.contains(name)) q.extra[name] = std::move(other.extra[name]);
  }
  return true;
}

bool ShiftZeros(QuantizedTensor& q) {
  if (q.zeros.empty()) return false;
  for (int64_t i = 0; i < q.zeros.shape().elements(); ++i) {
    if (q.zeros.dtype() == DType::kBf16) {
      uint16_t& zero = q.zeros.data<uint16_t>()[i];
      zero = F32ToBf16(Bf16ToF32(zero) + Bf16ToF32(q.scales.data<uint16_t>()[i]));
    } else {
      q.zeros.data<uint8_t>()[i] += CodeBits(q) == 8 ? 1 : 0x11;
    }
  }
  return true;
}

bool NanScale(QuantizedTensor& q) {
  if (q.scales.dtype() == DType::kF32) {
    q.scales.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  } else if (q.scales.dtype() == DType::kBf16) {
    q.scales.data<uint16_t>()[0] = 0x7fc0;
  } else {
    return false;  // integer scales hold no NaN
  }
  return true;
}

bool ConstantRow(QuantizedTensor& q) {
  const int bits = CodeBits(q);
  if (bits == 0) return false;
  FillRow(q, 5, bits == 3 ? 5 : bits == 4 ? 11 : 64);
  return true;
}

bool CodesOfAnotherLayer(QuantizedTensor& q) {
  QuantizedTensor other = Neighbour(*q.scheme);
  if (other.codes.bytes() != q.codes.bytes()) return false;  // entropy-coded
  q.codes = std::move(other.codes);
  return true;
}

const Sabotage kSabotages[] = {{"neighbour codes swapped", SwapNeighbourCodes},
                               {"a block transposed", TransposeBlock},
                               {"scales of the wrong group", RotateScales},
                               {"stale scales", StaleScales},
                               {"zero points off by one", ShiftZeros},
                               {"NaN scale", NanScale},
                               {"constant codes", ConstantRow},
                               {"codes of another layer", CodesOfAnotherLayer}};

class SchemeSabotageTest : public AdmissionFixture,
                           public testing::WithParamInterface<const QuantScheme*> {
 protected:
  AdmissionProgress AdmitWith(const std::function<void(QuantizedTensor&)>& tamper) {
    AdmissionHooks hooks;
    hooks.evaluation = EvaluationSize{.documents = 2, .window = 64};
    hooks.after_quantize = [&](const LinearSlot& slot, QuantizedTensor& tensor) {
      if (slot.name == kVictim && tensor.scheme == GetParam()) tamper(tensor);
    };
    Start({}, hooks);
    return Admit(
        {.name = "stories", .path = Stories260k(), .scheme = std::string(GetParam()->name())});
  }
};

std::vector<const QuantScheme*> Quantizing() {
  std::vector<const QuantScheme*> found;
  for (const QuantScheme* scheme : AllSchemes()) {
    if (!scheme->is_floating()) found.push_back(scheme);
  }
  return found;
}
INSTANTIATE_TEST_SUITE_P(All, SchemeSabotageTest, testing::ValuesIn(Quantizing()),
                         [](const auto& info) { return TestName(info.param->name()); });

TEST_P(SchemeSabotageTest, EveryOneIsFoundAndNamed) {
  int tried = 0;
  for (const Sabotage& sabotage : kSabotages) {
    bool applied = false;
    const AdmissionProgress end =
        AdmitWith([&](QuantizedTensor& tensor) { applied = sabotage.apply(tensor); });
    if (!applied) continue;
    ++tried;
    EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition, HasSubstr(kVictim)))
        << sabotage.name;
    ASSERT_NE(end.report, nullptr) << sabotage.name;
    EXPECT_EQ(end.report->verdict, "rejected") << sabotage.name;
    EXPECT_THAT(end.report->verification.defects, Contains(HasSubstr(kVictim))) << sabotage.name;
  }
  EXPECT_GE(tried, 2);  // int8_sparse: its tiles hold codes and scales in one
}

// A correct one is judged by its accuracy alone.
TEST_P(SchemeSabotageTest, WithoutItThereIsNoDefect) {
  const AdmissionProgress end = AdmitWith([](QuantizedTensor&) {});
  ASSERT_NE(end.report, nullptr) << end.status;
  EXPECT_THAT(end.report->verification.defects, IsEmpty());
}

}  // namespace
}  // namespace assay
