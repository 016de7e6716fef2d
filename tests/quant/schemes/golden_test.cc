// Weight schemes against the tools whose formats they follow: torch, torchao, bitsandbytes,
// compressed-tensors, and two published formulas (tests/golden/schemes/make.py).
#include "tests/support/golden.h"

#include <cmath>
#include <cstring>

#include "absl/strings/escaping.h"
#include "base/float16.h"
#include "base/float8.h"
#include "gtest/gtest.h"
#include "quant/schemes/absmax_block.h"
#include "tests/support/random_tensor.h"
#include "tests/support/scheme_testing.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

const nlohmann::json& Golden() {
  static const auto& golden = *new nlohmann::json(ReadGoldenJson("schemes/schemes.json.xz"));
  return golden;
}

template <typename T>
std::vector<T> Array(const nlohmann::json& entry) {
  std::string bytes;
  EXPECT_TRUE(absl::Base64Unescape(entry["base64"].get<std::string>(), &bytes));
  EXPECT_EQ(entry["dtype"].get<std::string>().back(), '0' + static_cast<char>(sizeof(T)));
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

template <typename T>
std::vector<T> Stored(const Tensor& tensor) {
  return {tensor.data<T>(), tensor.data<T>() + tensor.bytes() / sizeof(T)};
}

QuantizedTensor EncodeGolden(std::string_view spelling) {
  const nlohmann::json& w = Golden()["w"];
  const Shape shape = {w["shape"][0].get<int64_t>(), w["shape"][1].get<int64_t>()};
  const Tensor tensor = TensorOf(shape, Array<float>(w));
  return FindScheme(spelling).value()->Encode(tensor.view()).value();
}

// The codes of a scheme of 4 bits, one a byte.
std::vector<uint8_t> Nibbles(const Tensor& packed) {
  std::vector<uint8_t> codes;
  for (const uint8_t byte : Stored<uint8_t>(packed)) {
    codes.push_back(byte & 15);
    codes.push_back(byte >> 4);
  }
  return codes;
}

TEST(SchemeGoldenTest, CastsEqualTorch) {
  const nlohmann::json& casts = Golden()["casts"];
  const std::vector<float> x = Array<float>(casts["f32"]);
  const std::vector<uint8_t> e4m3 = Array<uint8_t>(casts["e4m3"]),
                             e5m2 = Array<uint8_t>(casts["e5m2"]);
  ASSERT_GT(x.size(), 10000U);
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(F32ToE4M3(x[i]), e4m3[i]) << x[i];
    ASSERT_EQ(F32ToE5M2(x[i]), e5m2[i]) << x[i];
  }
}

TEST(SchemeGoldenTest, ValuesOfAllCodesEqualTorch) {
  const nlohmann::json& values = Golden()["values"];
  const std::vector<float> e4m3 = Array<float>(values["e4m3"]), e5m2 = Array<float>(values["e5m2"]),
                           e8m0 = Array<float>(values["e8m0"]);
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    const float pairs[][2] = {{E4M3ToF32(byte), e4m3[byte]},
                              {E5M2ToF32(byte), e5m2[byte]},
                              {E8M0ToF32(byte), e8m0[byte]}};
    for (const auto& [ours, theirs] : pairs) {
      EXPECT_TRUE(ours == theirs || (std::isnan(ours) && std::isnan(theirs))) << code;
    }
  }
}

TEST(SchemeGoldenTest, Fp8EqualsTorch) {
  for (const char* spelling : {"fp8_e4m3", "fp8_e5m2"}) {
    const QuantizedTensor q = EncodeGolden(spelling);
    EXPECT_EQ(Stored<float>(q.scales), Array<float>(Golden()[spelling]["scales"])) << spelling;
    EXPECT_EQ(Stored<uint8_t>(q.codes), Array<uint8_t>(Golden()[spelling]["codes"])) << spelling;
  }
}

TEST(SchemeGoldenTest, FloatZeroEqualsTorchao) {
  for (const char* spelling : {"int4_group:float", "int4_group:g32,float"}) {
    const QuantizedTensor q = EncodeGolden(spelling);
    const nlohmann::json& golden = Golden()[spelling];
    EXPECT_EQ(Stored<uint16_t>(q.scales), Array<uint16_t>(golden["scales"])) << spelling;
    EXPECT_EQ(Stored<uint16_t>(q.zeros), Array<uint16_t>(golden["zeros"])) << spelling;
    EXPECT_EQ(Nibbles(q.codes), Array<uint8_t>(golden["codes"])) << spelling;
  }
}

TEST(SchemeGoldenTest, FullRangeScalesEqualCompressedTensors) {
  const QuantizedTensor q = EncodeGolden("int4_group:full");
  std::vector<uint16_t> expected;
  for (const float scale : Array<float>(Golden()["int4_group:full"]["scales"]))
    expected.push_back(F32ToBf16(scale));
  EXPECT_EQ(Stored<uint16_t>(q.scales), expected);
}

void ExpectEqualsBitsandbytes(std::string_view spelling) {
  const QuantizedTensor q = EncodeGolden(spelling);
  const nlohmann::json& golden = Golden()[std::string(spelling)];
  std::vector<float> absmax = Array<float>(golden["absmax"]);
  std::vector<uint8_t> codes = Array<uint8_t>(golden["codes"]);
  const bool is_fp4 = spelling.substr(0, 3) == "fp4";
  for (uint8_t& code : codes) {
    if (is_fp4 && code == 8) code = 0;  // minus zero
  }
  for (float& a : absmax) a = a < 1e-37f ? 0 : a;  // a block of zeros: theirs is 1e-38
  EXPECT_EQ(Stored<float>(q.scales), absmax) << spelling;
  EXPECT_EQ(Nibbles(q.codes), codes) << spelling;
  EXPECT_EQ(DecodeAll(q), Array<float>(golden["decoded"])) << spelling;
}
TEST(SchemeGoldenTest, Nf4AndFp4EqualBitsandbytes) {
  ExpectEqualsBitsandbytes("nf4");
  ExpectEqualsBitsandbytes("fp4");
  ExpectEqualsBitsandbytes("nf4:b256");
}

TEST(SchemeGoldenTest, TheDynamicMapEqualsBitsandbytes) {
  const std::vector<float> theirs = Array<float>(Golden()["dynamic_map"]);
  EXPECT_EQ(std::vector<float>(DynamicMap().begin(), DynamicMap().end()), theirs);
}

// torch adds the magnitudes for their mean in another order: one unit in the last place.
TEST(SchemeGoldenTest, DoubleQuantizationEqualsBitsandbytes) {
  const QuantizedTensor q = EncodeGolden("nf4:double");
  const nlohmann::json& golden = Golden()["nf4"];
  EXPECT_EQ(Stored<uint8_t>(q.scales), Array<uint8_t>(golden["nested_codes"]));
  const auto offset = golden["nested_offset"].get<float>();
  EXPECT_NEAR(*q.extra.find("nested_offset")->second.data<float>(), offset, offset * 0x1p-23f);
  const std::vector<float> nested = Array<float>(golden["nested_absmax"]);
  for (size_t i = 0; i < nested.size(); ++i) {
    EXPECT_NEAR(q.extra.find("nested_absmax")->second.data<float>()[i], nested[i],
                nested[i] * 0x1p-22f);
  }
}

TEST(SchemeGoldenTest, Nvfp4EqualsCompressedTensors) {
  const QuantizedTensor q = EncodeGolden("nvfp4");
  const nlohmann::json& golden = Golden()["nvfp4"];
  EXPECT_EQ(*q.extra.find("global_scale")->second.data<float>(),
            golden["global_scale"].get<float>());
  EXPECT_EQ(Stored<uint8_t>(q.scales), Array<uint8_t>(golden["scales"]));
  EXPECT_EQ(Stored<uint8_t>(q.codes), Array<uint8_t>(golden["packed"]));
}

TEST(SchemeGoldenTest, Mxfp4EqualsTheFormula) {
  const QuantizedTensor q = EncodeGolden("mxfp4");
  EXPECT_EQ(Stored<uint8_t>(q.scales), Array<uint8_t>(Golden()["mxfp4"]["scales"]));
  EXPECT_EQ(Nibbles(q.codes), Array<uint8_t>(Golden()["mxfp4"]["codes"]));
}

TEST(SchemeGoldenTest, W4A8EqualsTheFormula) {
  for (const char* spelling : {"w4a8", "w4a8:g32"}) {
    const QuantizedTensor q = EncodeGolden(spelling);
    const nlohmann::json& golden = Golden()[spelling];
    EXPECT_EQ(Stored<float>(q.extra.find("row_scales")->second),
              Array<float>(golden["row_scales"]));
    EXPECT_EQ(Stored<uint8_t>(q.scales), Array<uint8_t>(golden["scales"]));
    EXPECT_EQ(Nibbles(q.zeros), Array<uint8_t>(golden["zeros"]));
    EXPECT_EQ(Nibbles(q.codes), Array<uint8_t>(golden["codes"])) << spelling;
  }
}

}  // namespace
}  // namespace assay
