// What is special to the schemes f32, bf16 and int8_channel.
#include <cfloat>
#include <cmath>
#include <limits>

#include "base/float16.h"
#include "gtest/gtest.h"
#include "quant/schemes/schemes.h"
#include "tests/support/random_tensor.h"
#include "tests/support/scheme_testing.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Bf16SchemeTest, RefusesWhatRoundsToInfinity) {
  const Tensor tensor = TensorOf({1, 2}, {1.0f, FLT_MAX});
  EXPECT_THAT(Bf16Scheme().Encode(tensor.view()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("row=0 column=1")));
}

TEST(FloatSchemesTest, InspectNamesTheRowOfANaN) {
  const Tensor tensor = RandomTensor({4, 8}, 1);
  ASSERT_OK_AND_ASSIGN(QuantizedTensor f32, F32Scheme().Encode(tensor.view()));
  f32.codes.data<float>()[2 * 8 + 3] = kNaN;
  EXPECT_EQ(F32Scheme().Inspect(f32).defect, "weight is NaN or infinite: row=2");
  ASSERT_OK_AND_ASSIGN(QuantizedTensor bf16, Bf16Scheme().Encode(tensor.view()));
  bf16.codes.data<uint16_t>()[3 * 8] = F32ToBf16(kInfinity);
  EXPECT_EQ(Bf16Scheme().Inspect(bf16).defect, "weight is NaN or infinite: row=3");
}

TEST(Int8ChannelTest, RoundsHalfToEvenWithinPlusMinus127) {
  // absmax 127 makes the scale exactly 1.
  const Tensor tensor = TensorOf({1, 8}, {127, -127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f});
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, Int8ChannelScheme().Encode(tensor.view()));
  EXPECT_EQ(q.scales.data<float>()[0], 1.0f);
  const std::vector<int8_t> codes(q.codes.data<int8_t>(), q.codes.data<int8_t>() + 8);
  EXPECT_THAT(codes, testing::ElementsAre(127, -127, 0, 2, 2, 0, -2, -2));
}

TEST(Int8ChannelTest, InspectFindsEachDefectAndNamesTheRow) {
  struct Case {
    const char* defect;
    void (*sabotage)(QuantizedTensor& q);
  };
  const Case cases[] = {
      {"scale is NaN: row=3", [](QuantizedTensor& q) { q.scales.data<float>()[3] = kNaN; }},
      {"scale is infinite: row=3",
       [](QuantizedTensor& q) { q.scales.data<float>()[3] = kInfinity; }},
      {"scale is negative: row=3", [](QuantizedTensor& q) { q.scales.data<float>()[3] *= -1; }},
      {"scale is zero but codes are not: row=3",
       [](QuantizedTensor& q) { q.scales.data<float>()[3] = 0; }},
      {"all codes are zero but the scale is not: row=3",
       [](QuantizedTensor& q) { std::fill_n(q.codes.data<int8_t>() + 3 * 64, 64, 0); }},
      {"all codes of the row are equal: row=3",
       [](QuantizedTensor& q) { std::fill_n(q.codes.data<int8_t>() + 3 * 64, 64, 127); }},
      {"code -128 is outside [-127, 127]: row=3",
       [](QuantizedTensor& q) { q.codes.data<int8_t>()[3 * 64 + 1] = -128; }},
  };
  const Tensor tensor = RandomTensor({5, 64}, 4);
  for (const Case& c : cases) {
    ASSERT_OK_AND_ASSIGN(QuantizedTensor q, Int8ChannelScheme().Encode(tensor.view()));
    EXPECT_THAT(Int8ChannelScheme().Inspect(q).defect, IsEmpty());
    c.sabotage(q);
    EXPECT_EQ(Int8ChannelScheme().Inspect(q).defect, c.defect);
  }
}

TEST(Int8ChannelTest, InspectMeasuresSaturation) {
  // One code in eight at an end of the range: +1 and -1 in rows of sixteen.
  std::vector<float> w(2 * 16, 0.25f);
  w[0] = 1, w[15] = -1, w[16] = -1, w[31] = 1;
  const Tensor tensor = TensorOf({2, 16}, w);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q, Int8ChannelScheme().Encode(tensor.view()));
  EXPECT_DOUBLE_EQ(Int8ChannelScheme().Inspect(q).saturated_fraction, 4.0 / 32);
}

}  // namespace
}  // namespace assay
