#include "base/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace assay {
namespace {

// gcc's own _Float16 is the independent implementation.
TEST(Float16Test, WidensEveryF16CodeAsTheCompilerDoes) {
  for (uint32_t code = 0; code < 65536; ++code) {
    const auto half = std::bit_cast<_Float16>(static_cast<uint16_t>(code));
    const float want = static_cast<float>(half), got = F16ToF32(static_cast<uint16_t>(code));
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << code;
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(want), std::bit_cast<uint32_t>(got)) << code;
    }
  }
}

TEST(Float16Test, NarrowsAsTheCompilerDoesIncludingTiesAndSubnormals) {
  // Every 257th f32 bit pattern: 16.7 million values over all exponents, both signs.
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 257) {
    const float f = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (std::isnan(f)) continue;
    const uint16_t want = std::bit_cast<uint16_t>(static_cast<_Float16>(f));
    ASSERT_EQ(want, F32ToF16(f)) << "bits=" << bits;
  }
  // Exact ties between neighbours round to even.
  for (uint32_t code = 0; code < 0x7bff; ++code) {
    const float low = F16ToF32(static_cast<uint16_t>(code)),
                high = F16ToF32(static_cast<uint16_t>(code + 1));
    ASSERT_EQ((code & 1) == 0 ? code : code + 1, F32ToF16((low + high) / 2)) << code;
  }
}

TEST(Float16Test, Bf16RoundsTiesToEvenAndKeepsNan) {
  EXPECT_EQ(F32ToBf16(1.0f), 0x3f80);
  EXPECT_EQ(F32ToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie, even below
  EXPECT_EQ(F32ToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // tie, even above
  EXPECT_EQ(F32ToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_TRUE(std::isnan(Bf16ToF32(F32ToBf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(Bf16ToF32(F32ToBf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isinf(Bf16ToF32(F32ToBf16(std::numeric_limits<float>::infinity()))));
}

}  // namespace
}  // namespace assay
