// The 8-bit floats E4M3FN and E5M2 (OCP 8-bit Floating Point Specification 1.0) and the parts of
// the OCP Microscaling formats 1.0: E2M1 elements and E8M0 scales. Narrowing rounds half to even
// and saturates: what is too large, infinity included, becomes the largest finite value, never NaN
// or infinity. NaN stays NaN (E2M1 has none: REQUIRES a number). Branch-free, so that loops
// vectorise. Thread-safe.
//
//   E4M3FN  s eeee mmm  bias 7   largest 448 (0x7e)    smallest 2^-9   NaN 0x7f 0xff, no infinity
//   E5M2    s eeeee mm  bias 15  largest 57344 (0x7b)  smallest 2^-16  infinity 0x7c, NaN above
//   E2M1    s ee m      bias 1   0 .5 1 1.5 2 3 4 6
//   E8M0    eeeeeeee    bias 127 2^-127 .. 2^127, NaN 0xff
#pragma once
#include <array>
#include <bit>
#include <cstdint>

namespace assay {

inline uint8_t F32ToE4M3(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f), sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t a = magnitude < 0x43e00000u ? magnitude : 0x43e00000u;  // 448
  const uint32_t normal = ((a + 0x7ffffu + ((a >> 20) & 1)) >> 20) - (120u << 3);
  // Below 2^-6 the f32 adder rounds at 2^-9: the ulp of numbers from 2^14.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0x1p14f) - std::bit_cast<uint32_t>(0x1p14f);
  const uint32_t code = a < 0x3c800000u ? subnormal : normal;
  return static_cast<uint8_t>(sign | (magnitude > 0x7f800000u ? 0x7fu : code));
}

inline uint8_t F32ToE5M2(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f), sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t a = magnitude < 0x47600000u ? magnitude : 0x47600000u;  // 57344
  const uint32_t normal = ((a + 0xfffffu + ((a >> 21) & 1)) >> 21) - (112u << 2);
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0x1p7f) - std::bit_cast<uint32_t>(0x1p7f);
  const uint32_t code = a < 0x38800000u ? subnormal : normal;
  return static_cast<uint8_t>(sign | (magnitude > 0x7f800000u ? 0x7fu : code));
}

// The code (0..15) of the nearest E2M1 value; ties go to the even code.
inline uint8_t F32ToE2M1(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const float a = std::bit_cast<float>(bits & 0x7fffffffu);
  const int code = static_cast<int>(a > 0.25f) + static_cast<int>(a >= 0.75f) +
                   static_cast<int>(a > 1.25f) + static_cast<int>(a >= 1.75f) +
                   static_cast<int>(a > 2.5f) + static_cast<int>(a >= 3.5f) +
                   static_cast<int>(a > 5.0f);
  return static_cast<uint8_t>(((bits >> 28) & 8u) | static_cast<uint32_t>(code));
}

// The code of 2^e; e beyond -127..127 saturates.
constexpr uint8_t E8M0Of(int e) {
  return static_cast<uint8_t>((e < -127 ? -127 : e > 127 ? 127 : e) + 127);
}

namespace float8_internal {

constexpr float kNaN = std::bit_cast<float>(0x7fc00000u);

constexpr float PowerOfTwo(int e) {  // e in -149..127
  return e >= -126 ? std::bit_cast<float>(static_cast<uint32_t>(e + 127) << 23)
                   : std::bit_cast<float>(1u << (e + 149));
}
constexpr float Widen(uint32_t code, int mantissa_bits, int bias) {
  const uint32_t exponent = (code & 0x7fu) >> mantissa_bits;
  const auto mantissa = static_cast<float>(code & ((1u << mantissa_bits) - 1));
  const float unit = PowerOfTwo((exponent == 0 ? 1 : static_cast<int>(exponent)) - bias);
  const float fraction = mantissa * PowerOfTwo(-mantissa_bits) + (exponent == 0 ? 0.0f : 1.0f);
  return (code & 0x80u) != 0 ? -(unit * fraction) : unit * fraction;
}
constexpr std::array<float, 256> MakeE4M3() {
  std::array<float, 256> values{};
  for (uint32_t code = 0; code < 256; ++code)
    values[code] = (code & 0x7fu) == 0x7fu ? kNaN : Widen(code, 3, 7);
  return values;
}
constexpr std::array<float, 256> MakeE5M2() {
  std::array<float, 256> values{};
  for (uint32_t code = 0; code < 256; ++code) {
    const float infinity = std::bit_cast<float>(0x7f800000u | ((code & 0x80u) << 24));
    values[code] = (code & 0x7fu) > 0x7cu    ? kNaN
                   : (code & 0x7fu) == 0x7cu ? infinity
                                             : Widen(code, 2, 15);
  }
  return values;
}

}  // namespace float8_internal

// Values by code.
inline constexpr std::array<float, 256> kE4M3Values = float8_internal::MakeE4M3();
inline constexpr std::array<float, 256> kE5M2Values = float8_internal::MakeE5M2();
inline constexpr std::array<float, 16> kE2M1Values = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,
                                                      4.0f,  6.0f,  -0.0f, -0.5f, -1.0f, -1.5f,
                                                      -2.0f, -3.0f, -4.0f, -6.0f};

inline float E4M3ToF32(uint8_t code) { return kE4M3Values[code]; }
inline float E5M2ToF32(uint8_t code) { return kE5M2Values[code]; }
inline float E8M0ToF32(uint8_t code) {
  return code == 0xff ? float8_internal::kNaN : float8_internal::PowerOfTwo(code - 127);
}

}  // namespace assay
