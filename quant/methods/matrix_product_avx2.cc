// Compiled with -mavx2 -mfma. 12 accumulators, 2 loads and 6 broadcasts per step of p.
#include "quant/methods/matrix_product_avx2.h"

#include <immintrin.h>

namespace assay {
namespace {

struct F32 {
  using Element = float;
  using Vector = __m256;
  static constexpr int kLanes = 8;
  static Vector Zero() { return _mm256_setzero_ps(); }
  static Vector Load(const float* v) { return _mm256_loadu_ps(v); }
  static Vector Broadcast(const float* v) { return _mm256_broadcast_ss(v); }
  static Vector Fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static void Store(float* to, Vector v) { _mm256_storeu_ps(to, v); }
};
struct F64 {
  using Element = double;
  using Vector = __m256d;
  static constexpr int kLanes = 4;
  static Vector Zero() { return _mm256_setzero_pd(); }
  static Vector Load(const double* v) { return _mm256_loadu_pd(v); }
  static Vector Broadcast(const double* v) { return _mm256_broadcast_sd(v); }
  static Vector Fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_pd(a, b, c); }
  static void Store(double* to, Vector v) { _mm256_storeu_pd(to, v); }
};

template <typename S>
void Block(const typename S::Element* a, const typename S::Element* b, int64_t p,
           typename S::Element* out) {
  typename S::Vector low[kProductRows], high[kProductRows];
  for (int i = 0; i < kProductRows; ++i) low[i] = high[i] = S::Zero();
  for (int64_t step = 0; step < p; ++step, a += kProductRows, b += 2 * S::kLanes) {
    const typename S::Vector b_low = S::Load(b), b_high = S::Load(b + S::kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < kProductRows; ++i) {
      const typename S::Vector a_i = S::Broadcast(a + i);
      low[i] = S::Fma(a_i, b_low, low[i]);
      high[i] = S::Fma(a_i, b_high, high[i]);
    }
  }
  for (int i = 0; i < kProductRows; ++i) {
    S::Store(out + i * 2 * S::kLanes, low[i]);
    S::Store(out + i * 2 * S::kLanes + S::kLanes, high[i]);
  }
}

}  // namespace

void ProductBlockAvx2(const float* a, const float* b, int64_t p, float* out) {
  Block<F32>(a, b, p, out);
}
void ProductBlockAvx2(const double* a, const double* b, int64_t p, double* out) {
  Block<F64>(a, b, p, out);
}

}  // namespace assay
