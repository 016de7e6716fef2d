// Activation mode a8_token: one row of x to signed 8 bit with its own scale.
//
//   scale = absmax(x) / 127,  code = round half even(x * (127 / absmax)),  x ~ scale * code
//
// A row whose absmax is below 2^-119 (no f32 reciprocal of absmax / 127 is sure to be finite there)
// counts as zero: scale 0, codes 0. A row with NaN or infinity gets scale NaN and codes 0, so that
// its whole output is NaN: a broken activation stays visible. Every implementation gives the same
// bits. Pure; any thread.
#pragma once
#include <cstdint>

namespace assay {

inline constexpr float kA8MaxCode = 127.0f;
inline constexpr float kA8Smallest = 0x1p-119f;

// x [k] -> codes [k] in [-127, 127]; returns the scale. Baseline x86-64.
float QuantizeA8Token(const float* x, int64_t k, int8_t* codes);

}  // namespace assay
