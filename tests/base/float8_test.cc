// The casts of base/float8.h over all codes, all ties and both neighbours of each; torch's casts of
// the same numbers are in tests/quant/schemes/golden_test.cc.
#include "base/float8.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <limits>

namespace assay {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Format {
  const char* name;
  uint8_t (*narrow)(float);
  float (*widen)(uint8_t);
  int largest, sign;  // codes: of the largest finite value; the sign bit
};
constexpr Format kFormats[] = {
    {"e4m3", F32ToE4M3, E4M3ToF32, 0x7e, 0x80},
    {"e5m2", F32ToE5M2, E5M2ToF32, 0x7b, 0x80},
    {"e2m1", F32ToE2M1, [](uint8_t code) { return kE2M1Values[code]; }, 7, 8},
};

uint8_t Code(int code) { return static_cast<uint8_t>(code); }

TEST(Float8Test, KnownCodesHaveTheirValues) {
  EXPECT_EQ(E4M3ToF32(0x7e), 448);
  EXPECT_TRUE(std::isnan(E4M3ToF32(0x7f)));
  EXPECT_TRUE(std::isnan(E4M3ToF32(0xff)));
  EXPECT_EQ(E4M3ToF32(0x08), 0x1p-6f);
  EXPECT_EQ(E4M3ToF32(0x01), 0x1p-9f);
  EXPECT_EQ(E4M3ToF32(0x38), 1);
  EXPECT_EQ(E5M2ToF32(0x7b), 57344);
  EXPECT_EQ(E5M2ToF32(0x7c), kInfinity);
  EXPECT_EQ(E5M2ToF32(0xfc), -kInfinity);
  EXPECT_TRUE(std::isnan(E5M2ToF32(0x7d)));
  EXPECT_EQ(E5M2ToF32(0x04), 0x1p-14f);
  EXPECT_EQ(E5M2ToF32(0x01), 0x1p-16f);
  EXPECT_EQ(E5M2ToF32(0x3c), 1);
  EXPECT_EQ(E8M0ToF32(0x7f), 1);
  EXPECT_EQ(E8M0ToF32(0x00), 0x1p-127f);
  EXPECT_EQ(E8M0ToF32(0xfe), 0x1p127f);
  EXPECT_TRUE(std::isnan(E8M0ToF32(0xff)));
}

TEST(Float8Test, EveryCodeSurvivesTheRoundTrip) {
  for (const Format& f : kFormats) {
    for (int code = 0; code <= f.largest; ++code) {
      EXPECT_EQ(f.narrow(f.widen(Code(code))), code) << f.name;
      EXPECT_EQ(f.narrow(f.widen(Code(code | f.sign))), code | f.sign) << f.name;
      EXPECT_EQ(f.widen(Code(code | f.sign)), -f.widen(Code(code))) << f.name;
      if (code > 0) {
        EXPECT_GT(f.widen(Code(code)), f.widen(Code(code - 1))) << f.name;
      }
    }
  }
  for (int code = 0; code < 255; ++code) {
    EXPECT_EQ(E8M0Of(std::ilogb(E8M0ToF32(Code(code)))), code);
  }
}

// The middle of two neighbours is exact in f32: it goes to the even code, what lies next to it on
// either side to the nearer one. Nothing between two neighbours is farther from a decision.
TEST(Float8Test, TiesGoToTheEvenCodeAndTheirNeighboursDoNot) {
  for (const Format& f : kFormats) {
    for (int code = 0; code < f.largest; ++code) {
      const float middle = (f.widen(Code(code)) + f.widen(Code(code + 1))) / 2;
      for (const int sign : {0, f.sign}) {
        const float direction = sign == 0 ? 1.0f : -1.0f;
        EXPECT_EQ(f.narrow(direction * middle), (code + code % 2) | sign) << f.name << code;
        EXPECT_EQ(f.narrow(direction * std::nextafter(middle, 0.0f)), code | sign) << f.name;
        EXPECT_EQ(f.narrow(direction * std::nextafter(middle, kInfinity)), (code + 1) | sign)
            << f.name << code;
      }
    }
  }
}

TEST(Float8Test, NarrowingSaturatesAndKeepsNaN) {
  for (const Format& f : kFormats) {
    const float largest = f.widen(Code(f.largest));
    for (const float big : {std::nextafter(largest, kInfinity), 2 * largest, FLT_MAX, kInfinity}) {
      EXPECT_EQ(f.narrow(big), f.largest) << f.name << big;
      EXPECT_EQ(f.narrow(-big), f.largest | f.sign) << f.name << big;
    }
    EXPECT_EQ(f.narrow(FLT_TRUE_MIN), 0) << f.name;
    EXPECT_EQ(f.narrow(-0.0f), f.sign) << f.name;
  }
  EXPECT_TRUE(std::isnan(E4M3ToF32(F32ToE4M3(kNaN))));
  EXPECT_TRUE(std::isnan(E4M3ToF32(F32ToE4M3(-kNaN))));
  EXPECT_TRUE(std::isnan(E5M2ToF32(F32ToE5M2(kNaN))));
  EXPECT_EQ(E8M0Of(200), 254);
  EXPECT_EQ(E8M0Of(-200), 0);
}

}  // namespace
}  // namespace assay
