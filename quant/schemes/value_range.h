// Range of a run of weights, in loops that vectorise on any x86-64. REQUIRES: no NaN. Thread-safe.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace assay {

// Finite floats without their sign are ordered like their bits.
inline float AbsMax(const float* w, int64_t count) {
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t bits = std::bit_cast<int32_t>(w[i]) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return std::bit_cast<float>(most);
}

struct ValueRange {
  float min, max;
};
// REQUIRES: count >= 1.
inline ValueRange RangeOf(const float* w, int64_t count) {
  constexpr int kLanes = 8;  // independent chains
  float low[kLanes], high[kLanes];
  for (int j = 0; j < kLanes; ++j) low[j] = high[j] = w[0];
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      low[j] = w[i + j] < low[j] ? w[i + j] : low[j];
      high[j] = w[i + j] > high[j] ? w[i + j] : high[j];
    }
  }
  ValueRange range = {low[0], high[0]};
  for (int j = 1; j < kLanes; ++j)
    range = {std::min(range.min, low[j]), std::max(range.max, high[j])};
  for (; i < count; ++i) range = {std::min(range.min, w[i]), std::max(range.max, w[i])};
  return range;
}

// Half to even without a library call; exact for |v| < 2^22.
inline float RoundHalfEven(float v) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: its ulp is 1
  return (v + kMagic) - kMagic;
}

}  // namespace assay
