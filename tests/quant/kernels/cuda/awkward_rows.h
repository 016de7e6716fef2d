// What quantizers are tried on, in either world (tests/support/cuda_world.h).
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "quant/kernels/cuda/quantize.h"
#include "tests/quant/kernels/cuda/device_weight.h"

namespace assay::ASSAY_WORLD {

// Rows of sizes from 1e-42 to the top of f32, of zeros and, unless `finite`, with NaN and infinity;
// of what T can hold, so that its conversion to f32 is exact.
template <typename T>
std::vector<float> AwkwardRows(int rows, int k, bool finite) {
  std::vector<float> out = RandomNormal(static_cast<int64_t>(rows) * k, 11);
  const float factors[] = {1, 0, 1e-30f, 3e4f, 6e-5f, 1e-38f, 1e-42f, 0x1p-119f, 1e38f, 2e-39f};
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < k; ++i) {
      float& v = out[static_cast<size_t>(row) * k + i];
      v = ToFloat(FromFloat<T>(std::clamp(v, -3.3f, 3.3f) * factors[row % 10]));
      if (finite && !std::isfinite(v)) v = 1;
    }
  }
  if (finite) return out;
  const auto row = static_cast<size_t>(k);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  out[row] = kInfinity;
  out[2 * row] = std::nanf("");
  out[4 * row - 1] = -kInfinity;
  return out;
}

// Rows whose largest magnitude is `top` and whose other numbers are multiples of `unit`, of both
// signs, half steps among them.
inline std::vector<float> RowsOfTies(int rows, int k, float top, float unit) {
  std::vector<float> out(static_cast<size_t>(rows) * k);
  for (size_t i = 0; i < out.size(); ++i) {
    const float v = std::fmod(static_cast<float>(i) * unit, top);
    out[i] = i % 8 == 0 ? top : (i % 3 == 0 ? -v : v);
  }
  return out;
}

template <typename T>
constexpr Number kNumber = Number::kF32;
template <>
inline constexpr Number kNumber<F16> = Number::kF16;
template <>
inline constexpr Number kNumber<Bf16> = Number::kBf16;

template <typename T>
DeviceArray<T> OnDevice(const std::vector<float>& values) {
  DeviceArray<T> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) out[i] = FromFloat<T>(values[i]);
  return out;
}

// Whether the device's bytes are the tensor's; both may be none.
template <typename T>
bool SameBytes(const Tensor& tensor, const DeviceArray<T>& array) {
  return tensor.empty() || std::memcmp(tensor.data<std::byte>(), array.data(), tensor.bytes()) == 0;
}

}  // namespace assay::ASSAY_WORLD
