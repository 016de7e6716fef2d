#include "quant/kernels/a8_token.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace assay {

float QuantizeA8Token(const float* x, int64_t k, int8_t* codes) {
  // As integers, |x| orders finite < infinity < NaN: one maximum finds all three.
  uint32_t bits = 0;
  for (int64_t i = 0; i < k; ++i) {
    bits = std::max(bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  }
  const float absmax = std::bit_cast<float>(bits);
  if (bits >= 0x7f800000u || absmax < kA8Smallest) {
    std::fill_n(codes, k, int8_t{0});
    return bits >= 0x7f800000u ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  }
  const float inverse = kA8MaxCode / absmax;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds half to even
  for (int64_t i = 0; i < k; ++i) {
    // |x * inverse| <= 127 (1 + 2^-23): rounds to 127 at most.
    codes[i] = static_cast<int8_t>(static_cast<int32_t>((x[i] * inverse + kMagic) - kMagic));
  }
  return absmax / kA8MaxCode;
}

}  // namespace assay
