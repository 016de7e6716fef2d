// Broken weights of every scheme must be seen: by Inspect, which looks at the stored numbers alone,
// or by comparing what they decode to with the original (SQNR), as admission does.
#include <cfloat>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "base/float16.h"
#include "base/float8.h"
#include "gtest/gtest.h"
#include "quant/scheme.h"
#include "tests/support/random_tensor.h"
#include "tests/support/scheme_testing.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kN = 256, kK = 256;

// Blocks of different magnitude, whatever block a scheme has: a scale in the wrong place shows.
std::vector<float> UnevenWeights(uint64_t seed) {
  std::vector<float> w = RandomNormal(kN * kK, seed);
  for (int64_t i = 0; i < kN; ++i) {
    for (int64_t j = 0; j < kK; ++j)
      w[i * kK + j] *=
          std::exp2(static_cast<float>(i % 2 * 3 + i / 128 * 2 + j / 128 * 4 + j / 16 * 3 % 5));
  }
  return w;
}

QuantizedTensor Encoded(const QuantScheme& scheme, const std::vector<float>& w) {
  return scheme.Encode(TensorOf({kN, kK}, w).view()).value();
}

// Inspect, or decoding what `sabotage` leaves: at least 3 dB less than the honest encoding.
void ExpectSeen(const QuantScheme& scheme, const std::function<void(QuantizedTensor&)>& sabotage) {
  const std::vector<float> w = UnevenWeights(1);
  QuantizedTensor q = Encoded(scheme, w);
  const double honest = Sqnr(w, DecodeAll(q));
  sabotage(q);
  if (!scheme.Inspect(q).defect.empty()) return;
  EXPECT_LT(Sqnr(w, DecodeAll(q)), honest - 3) << std::string(scheme.name());
}

class SabotageTest : public testing::TestWithParam<const QuantScheme*> {
 protected:
  const QuantScheme& scheme() const { return *GetParam(); }
};

std::vector<const QuantScheme*> QuantizingSchemes() {
  std::vector<const QuantScheme*> found;
  for (const QuantScheme* scheme : AllSchemes()) {
    if (!scheme->is_floating()) found.push_back(scheme);
  }
  return found;
}

INSTANTIATE_TEST_SUITE_P(All, SabotageTest, testing::ValuesIn(QuantizingSchemes()),
                         [](const auto& info) { return TestName(info.param->name()); });

TEST_P(SabotageTest, HonestWeightsPass) {
  const std::vector<float> w = UnevenWeights(1);
  const QuantizedTensor q = Encoded(scheme(), w);
  EXPECT_EQ(scheme().Inspect(q).defect, "");
  EXPECT_GT(Sqnr(w, DecodeAll(q)), 5);
}

TEST_P(SabotageTest, SwappedNeighbourCodes) {
  ExpectSeen(scheme(), [](QuantizedTensor& q) {
    const int bits = CodeBits(q);
    uint8_t* codes = q.codes.data<uint8_t>();
    const auto bytes = static_cast<int64_t>(q.codes.bytes());
    if (bits == 4) {  // the nibble order
      for (int64_t i = 0; i < bytes; ++i)
        codes[i] = static_cast<uint8_t>(codes[i] << 4 | codes[i] >> 4);
    } else {
      for (int64_t i = 0; i + 1 < bytes; i += 2) std::swap(codes[i], codes[i + 1]);
    }
  });
}

// The block of 128 x 128 bytes, or the narrower one, in the corner of the largest weights.
TEST_P(SabotageTest, TransposedBlockOfCodes) {
  ExpectSeen(scheme(), [](QuantizedTensor& q) {
    const int64_t stride =
        q.codes.shape().rank == 2 ? q.codes.shape()[1] : static_cast<int64_t>(q.codes.bytes()) / kN;
    const int64_t width = std::min<int64_t>(128, stride);
    uint8_t* corner = q.codes.data<uint8_t>() + (kN - width) * stride + stride - width;
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j < i; ++j) std::swap(corner[i * stride + j], corner[j * stride + i]);
    }
  });
}

// Scales that belonged to the weight before it changed.
TEST_P(SabotageTest, StaleScales) {
  ExpectSeen(scheme(), [this](QuantizedTensor& q) {
    std::vector<float> other = UnevenWeights(2);
    for (float& v : other) v *= 3;
    QuantizedTensor stale = Encoded(scheme(), other);
    q.scales = std::move(stale.scales);
    for (const char* name : {"nested_absmax", "nested_offset", "global_scale", "row_scales"}) {
      if (q.extra.count(name) != 0) q.extra[name] = std::move(stale.extra[name]);
    }
  });
}

// Each block has its neighbour's scale.
TEST_P(SabotageTest, ScalesOfTheWrongGroup) {
  ExpectSeen(scheme(), [](QuantizedTensor& q) {
    Tensor& scales = q.scales.shape().elements() > 1 ? q.scales : q.codes;
    auto* bytes = scales.data<uint8_t>();
    const size_t one = scales.bytes() / static_cast<size_t>(scales.shape().elements());
    std::rotate(bytes, bytes + one, bytes + scales.bytes());
  });
}

TEST(SchemeSabotageTest, ZeroPointsOffByOne) {
  int schemes = 0;
  for (const QuantScheme* scheme : QuantizingSchemes()) {
    if (Encoded(*scheme, UnevenWeights(1)).zeros.empty()) continue;
    ++schemes;
    ExpectSeen(*scheme, [&](QuantizedTensor& q) {
      for (int64_t i = 0; i < q.zeros.shape().elements(); ++i) {
        if (q.zeros.dtype() == DType::kBf16) {
          uint16_t& zero = q.zeros.data<uint16_t>()[i];
          zero = F32ToBf16(Bf16ToF32(zero) + Bf16ToF32(q.scales.data<uint16_t>()[i]));
        } else {  // both halves of a byte where zero points have 4 bits
          q.zeros.data<uint8_t>()[i] += CodeBits(q) == 8 ? 1 : 0x11;
        }
      }
    });
  }
  EXPECT_GE(schemes, 6);
}

TEST_P(SabotageTest, InspectNamesTheRowOfConstantCodes) {
  QuantizedTensor q = Encoded(scheme(), UnevenWeights(1));
  if (CodeBits(q) == 0) {  // int8_sparse: the row before it is constant, and so is its encoding
    std::vector<float> w = UnevenWeights(1);
    std::fill_n(w.begin() + 3 * kK, kK, 0.5f);
    q = Encoded(scheme(), w);
  } else {
    FillRow(q, 3, 1);
  }
  EXPECT_EQ(scheme().Inspect(q).defect, "all codes of the row are equal: row=3");
}

TEST_P(SabotageTest, InspectNamesTheRowOfANaNScale) {
  QuantizedTensor q = Encoded(scheme(), UnevenWeights(1));
  const int64_t per_row = q.scales.shape().elements() / kN;
  std::string expected = "row=3";
  if (q.extra.count("nested_absmax") != 0) {
    // 256 magnitudes share it: rows of 4 blocks, so the first has rows 0 to 63.
    q.extra["nested_absmax"].data<float>()[0] = kNaN;
    expected = "row=0";
  } else if (q.extra.count("row_scales") != 0) {
    q.extra["row_scales"].data<float>()[3] = kNaN;
  } else if (q.scales.dtype() == DType::kF32) {
    const int64_t i = std::max<int64_t>(0, 3 * per_row);
    q.scales.data<float>()[q.scales.shape()[0] == kN ? i : 0] = kNaN;
    if (q.scales.shape()[0] != kN) expected = "row=0";
  } else if (q.scales.dtype() == DType::kBf16) {
    q.scales.data<uint16_t>()[3 * per_row] = F32ToBf16(kNaN);
  } else {
    // E8M0 and E4M3: the NaN of each.
    q.scales.data<uint8_t>()[3 * per_row] = q.scales.dtype() == DType::kU8 ? 0xff : 0x7f;
  }
  EXPECT_THAT(scheme().Inspect(q).defect, HasSubstr("scale is NaN: " + expected));
}

TEST(SchemeSabotageTest, InspectNamesTheRowOfAZeroScale) {
  for (const QuantScheme* scheme : QuantizingSchemes()) {
    QuantizedTensor q = Encoded(*scheme, UnevenWeights(1));
    // In these two no scale can be zero: a power of two, a sum with the mean.
    if (scheme->name() == "mxfp4" || q.extra.count("nested_absmax") != 0) continue;
    const bool by_row = q.scales.shape()[0] == kN;
    if (q.extra.count("row_scales") != 0) {
      q.extra["row_scales"].data<float>()[3] = 0;
    } else {
      const size_t row_bytes = q.scales.bytes() / (by_row ? kN : 1);
      std::memset(q.scales.data<std::byte>() + (by_row ? 3 * row_bytes : 0), 0, row_bytes);
    }
    EXPECT_THAT(scheme->Inspect(q).defect, HasSubstr("scale is zero"));
    EXPECT_THAT(scheme->Inspect(q).defect, HasSubstr(by_row ? "row=3" : "row=0"));
  }
}

TEST(SchemeSabotageTest, InspectFindsWhatIsSpecialToEachScheme) {
  struct Case {
    const char* spelling;
    const char* defect;
    void (*sabotage)(QuantizedTensor& q);
  };
  const Case cases[] = {
      {"int4_group", "code is below the symmetric range: row=3 block=0",
       [](QuantizedTensor& q) { q.codes.data<uint8_t>()[3 * kK / 2] = 0x80; }},
      {"int8_group:g64", "code is below the symmetric range: row=3 block=1",
       [](QuantizedTensor& q) { q.codes.data<int8_t>()[3 * kK + 64] = -128; }},
      {"int4_group", "scale is negative: row=3 block=1",
       [](QuantizedTensor& q) { q.scales.data<uint16_t>()[3 * 2 + 1] |= 0x8000; }},
      {"int3_group:asym", "zero point is beyond the codes: row=3 block=1",
       [](QuantizedTensor& q) { q.zeros.data<uint8_t>()[3] |= 0xf0; }},
      {"int4_group:float", "zero point is NaN or infinite: row=3 block=1",
       [](QuantizedTensor& q) { q.zeros.data<uint16_t>()[3 * 2 + 1] = F32ToBf16(kNaN); }},
      {"fp8_e4m3", "code is NaN or infinite: row=3 block=0",
       [](QuantizedTensor& q) { q.codes.data<uint8_t>()[3 * kK + 5] = 0xff; }},
      {"fp8_e5m2", "code is NaN or infinite: row=3 block=0",
       [](QuantizedTensor& q) { q.codes.data<uint8_t>()[3 * kK + 5] = 0x7c; }},
      {"nf4", "all codes are zero but the scale is not: row=3",
       [](QuantizedTensor& q) { FillRow(q, 3, 7); }},
      {"nf4:double", "scale is infinite: row=0 block=0",
       [](QuantizedTensor& q) { q.extra["nested_offset"].data<float>()[0] = INFINITY; }},
      {"nvfp4", "scale is negative: row=0 block=0",
       [](QuantizedTensor& q) { q.extra["global_scale"].data<float>()[0] = -1; }},
      {"w4a8", "group scale is outside [1, 16]: row=3 block=1",
       [](QuantizedTensor& q) { q.scales.data<uint8_t>()[3 * 2 + 1] = 17; }},
  };
  for (const Case& c : cases) {
    const QuantScheme& scheme = *FindScheme(c.spelling).value();
    QuantizedTensor q = Encoded(scheme, RandomNormal(kN * kK, 3));
    EXPECT_EQ(scheme.Inspect(q).defect, "") << c.spelling;
    c.sabotage(q);
    EXPECT_EQ(scheme.Inspect(q).defect, c.defect) << c.spelling;
  }
}

TEST(Int8SparseSabotageTest, BrokenTilesAreErrorsThatNameTheRow) {
  const QuantScheme& scheme = *FindScheme("int8_sparse").value();
  std::vector<float> out(kK);
  const auto expect_error = [&](QuantizedTensor& q, const char* message) {
    EXPECT_THAT(scheme.DecodeRows(q, 3, 1, std::span(out)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
    EXPECT_THAT(scheme.Inspect(q).defect, HasSubstr(message));
  };
  QuantizedTensor q = Encoded(scheme, UnevenWeights(1));
  q.extra["tile_offsets"].data<int32_t>()[4] -= 5;
  expect_error(q, "tile does not hold the codes of its row: row=3");

  q = Encoded(scheme, UnevenWeights(1));
  q.extra["tile_offsets"].data<int32_t>()[4] = 1 << 30;
  expect_error(q, "tile lies outside the codes: row=3");

  q = Encoded(scheme, UnevenWeights(1));
  std::memset(q.extra["code_lengths"].data<uint8_t>(), 1, 256);
  expect_error(q, "not those of a prefix code");

  q = Encoded(scheme, UnevenWeights(1));
  q.extra.erase("tile_offsets");
  expect_error(q, "needs tile_offsets i32[257]");
}

TEST(Int8SparseTest, ProtectedOutliersKeepTheirCodes) {
  std::vector<float> w = RandomNormal(4 * 1000, 5);
  w[1000 + 17] = 40;  // beyond 7 steps of 0.37, within 127
  const QuantScheme& scheme = *FindScheme("int8_sparse").value();
  const QuantizedTensor q = scheme.Encode(TensorOf({4, 1000}, w).view()).value();
  EXPECT_NEAR(DecodeAll(q)[1000 + 17], 40, q.scales.data<float>()[1] / 2);
}

TEST(Int8SparseTest, RefusesMoreThanItsOffsetsReach) {
  const QuantScheme& scheme = *FindScheme("int8_sparse").value();
  EXPECT_THAT(scheme.Accepts({1 << 20, 1 << 11}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("shape=[1048576,2048]")));
}

TEST(W4A8Test, EightBitValuesStayWithinAByte) {
  const QuantScheme& scheme = *FindScheme("w4a8:g32").value();
  std::vector<float> w = RandomNormal(64 * 128, 6);
  for (size_t i = 0; i < w.size(); i += 3) w[i] *= 30;
  const QuantizedTensor q = scheme.Encode(TensorOf({64, 128}, w).view()).value();
  const std::vector<float> decoded = DecodeAll(q);
  for (int64_t i = 0; i < 64 * 128; ++i) {
    const float value = decoded[i] / q.extra.find("row_scales")->second.data<float>()[i / 128];
    ASSERT_LE(std::fabs(value), 127 * (1 + FLT_EPSILON));
    ASSERT_NEAR(value, std::round(value), 1e-4);
  }
}

}  // namespace
}  // namespace assay
