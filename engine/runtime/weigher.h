// Internal to the sampler: unnormalised probabilities, and how they are summed. The kernel
// TopCandidates (engine/ops/cuda/top_candidates.cu) computes the same, bit for bit: what changes
// here changes there. REQUIRES: a * b + c in two roundings (CMakeLists.txt).
#pragma once
#include <bit>
#include <cstring>

#include "engine/ops/candidates.h"

namespace assay {

// Four lanes in the compiler's vector notation: SSE2 on x86-64, NEON elsewhere.
using Float4 = float __attribute__((vector_size(16)));
using Int4 = int32_t __attribute__((vector_size(16)));
constexpr size_t kLanes = 4;
constexpr size_t kSumBlock = 256;  // logits per partial sum

inline Float4 Load(const float* p) {
  Float4 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline Float4 Splat(float x) { return Float4{x, x, x, x}; }

// e^x for x <= 0, relative error below 3e-7 down to -87, 0 below (also for -infinity).
// Cephes' expf: x = n ln 2 + r, |r| <= ln 2 / 2, polynomial in r, exponent n.
inline Float4 Exp(Float4 x) {
  const Int4 tiny = x < Splat(-87.0f);
  x = tiny ? Splat(-87.0f) : x;
  const Float4 shift = Splat(12582912.0f);  // 1.5 * 2^23: rounds to an integer in the low bits
  const Float4 shifted = x * 1.44269504088896341f + shift;
  const Float4 n = shifted - shift;
  const Float4 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Float4 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Int4 exponent = (std::bit_cast<Int4>(shifted) - std::bit_cast<Int4>(shift) + 127) << 23;
  const Float4 result = p * std::bit_cast<Float4>(exponent);
  return tiny ? Splat(0.0f) : result;
}
inline float Exp(float x) { return Exp(Splat(x))[0]; }

inline double Sum(Float4 x) { return double{x[0]} + x[1] + x[2] + x[3]; }
inline bool Any(Int4 x) { return (x[0] | x[1] | x[2] | x[3]) != 0; }

// Unnormalised probability of a logit: e^((x - max) / temperature).
class Weigher {
 public:
  Weigher(float max, float temperature) : max_(max), scale_(1.0f / temperature) {}
  template <typename T>  // float or Float4, the same bits
  T operator()(T x) const {
    return Exp((x - max_) * scale_);
  }

 private:
  const float max_, scale_;
};

inline bool RanksBefore(const RankedLogit& a, const RankedLogit& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

}  // namespace assay
