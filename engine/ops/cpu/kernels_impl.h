// Norms, rotation and elementwise functions over an eight-lane vector type V (vector_<isa>.h).
// Included only by kernels_<isa>.cc. Nothing here calls a function that another file could share
// (std::max, ...): the linker keeps one copy of those, compiled for who knows which instruction
// set.
#pragma once
#include <cstdint>
#include <type_traits>

#include "engine/ops/cpu/kernels.h"

namespace assay {

template <class V>
struct ElementKernels {
  // The first n of eight lanes, the rest zero.
  static V LoadPart(const float* p, int64_t n) {
    alignas(32) float f[8] = {};
    for (int64_t i = 0; i < n; ++i) f[i] = p[i];
    return V::Load(f);
  }
  static void StorePart(V v, float* p, int64_t n) {
    alignas(32) float f[8];
    v.Store(f);
    for (int64_t i = 0; i < n; ++i) p[i] = f[i];
  }

  // e^x, relative error below 2e-7 on [-87.33, 88.37]; 0 below, saturated above; NaN stays NaN.
  // Cephes' expf: x = n ln 2 + r, e^r by a polynomial on |r| <= ln 2 / 2.
  static V Exp(V x) {
    const V low = V::Set(-87.33654f), high = V::Set(88.37626f);
    const V c = V::Min(high, V::Max(low, x));
    const V n = V::Round(c * V::Set(1.44269504f));
    V r = V::MulAdd(n, V::Set(-0.693359375f), c);
    r = V::MulAdd(n, V::Set(2.12194440e-4f), r);
    V p = V::Set(1.9875691500e-4f);
    p = V::MulAdd(p, r, V::Set(1.3981999507e-3f));
    p = V::MulAdd(p, r, V::Set(8.3334519073e-3f));
    p = V::MulAdd(p, r, V::Set(4.1665795894e-2f));
    p = V::MulAdd(p, r, V::Set(1.6666665459e-1f));
    p = V::MulAdd(p, r, V::Set(5.0000001201e-1f));
    p = V::MulAdd(p, r * r, r + V::Set(1.0f));
    return V::ZeroWhereLess(x, low, V::Scale2(p, n));
  }
  // tanh x = 1 - 2 / (e^2x + 1); absolute error below 3e-7.
  static V Tanh(V x) { return V::Set(1.0f) - V::Set(2.0f) / (Exp(x + x) + V::Set(1.0f)); }
  // erf x, absolute error below 5e-7: the rational minimax approximation x P(x^2) / Q(x^2) on
  // [-4, 4] that Eigen uses; |erf| differs from 1 by less than 2e-8 outside.
  static V Erf(V x) {
    const V c = V::Min(V::Set(4.0f), V::Max(V::Set(-4.0f), x));
    const V z = c * c;
    V p = V::Set(-2.72614225801306e-10f);
    p = V::MulAdd(p, z, V::Set(2.77068142495902e-08f));
    p = V::MulAdd(p, z, V::Set(-2.10102402082508e-06f));
    p = V::MulAdd(p, z, V::Set(-5.69250639462346e-05f));
    p = V::MulAdd(p, z, V::Set(-7.34990630326855e-04f));
    p = V::MulAdd(p, z, V::Set(-2.95459980854025e-03f));
    p = V::MulAdd(p, z, V::Set(-1.60960333262415e-02f));
    V q = V::Set(-1.45660718464996e-05f);
    q = V::MulAdd(q, z, V::Set(-2.13374055278905e-04f));
    q = V::MulAdd(q, z, V::Set(-1.68282697438203e-03f));
    q = V::MulAdd(q, z, V::Set(-7.37332916720468e-03f));
    q = V::MulAdd(q, z, V::Set(-1.42647390514189e-02f));
    return c * p / q;
  }

  template <Activation kAct>
  static V Apply(V x) {
    if constexpr (kAct == Activation::kSilu) {
      return x / (V::Set(1.0f) + Exp(V::Zero() - x));
    } else if constexpr (kAct == Activation::kGelu) {
      return V::Set(0.5f) * x * (V::Set(1.0f) + Erf(x * V::Set(0.70710678f)));
    } else if constexpr (kAct == Activation::kGeluTanh) {
      // sqrt(2 / pi) (x + 0.044715 x^3)
      const V inner = x * V::Set(0.79788456f) * V::MulAdd(x * x, V::Set(0.044715f), V::Set(1.0f));
      return V::Set(0.5f) * x * (V::Set(1.0f) + Tanh(inner));
    } else if constexpr (kAct == Activation::kRelu) {
      return V::Max(V::Zero(), x);
    } else {
      return Tanh(x);
    }
  }
  // Calls f with the activation as a compile-time constant.
  template <class F>
  static void Dispatch(Activation act, F f) {
    switch (act) {
      case Activation::kSilu:
        return f(std::integral_constant<Activation, Activation::kSilu>{});
      case Activation::kGelu:
        return f(std::integral_constant<Activation, Activation::kGelu>{});
      case Activation::kGeluTanh:
        return f(std::integral_constant<Activation, Activation::kGeluTanh>{});
      case Activation::kRelu:
        return f(std::integral_constant<Activation, Activation::kRelu>{});
      case Activation::kTanh:
        return f(std::integral_constant<Activation, Activation::kTanh>{});
    }
  }

  static void RmsNorm(const float* x, const float* gain, float eps, int64_t d, float* y) {
    V sum = V::Zero();
    int64_t i = 0;
    for (; i + 8 <= d; i += 8) {
      const V v = V::Load(x + i);
      sum = V::MulAdd(v, v, sum);
    }
    if (i < d) {
      const V v = LoadPart(x + i, d - i);
      sum = V::MulAdd(v, v, sum);
    }
    const float scale = 1.0f / __builtin_sqrtf(sum.Sum() / static_cast<float>(d) + eps);
    for (i = 0; i + 8 <= d; i += 8) {
      (V::Load(x + i) * V::Set(scale) * V::Load(gain + i)).Store(y + i);
    }
    for (; i < d; ++i) y[i] = x[i] * scale * gain[i];
  }

  static void LayerNorm(const float* x, const float* gain, const float* bias, float eps, int64_t d,
                        float* y) {
    V sum = V::Zero();
    int64_t i = 0;
    for (; i + 8 <= d; i += 8) sum = sum + V::Load(x + i);
    if (i < d) sum = sum + LoadPart(x + i, d - i);
    const float mean = sum.Sum() / static_cast<float>(d);
    V squares = V::Zero();
    for (i = 0; i + 8 <= d; i += 8) {
      const V v = V::Load(x + i) - V::Set(mean);
      squares = V::MulAdd(v, v, squares);
    }
    float variance = squares.Sum();
    for (; i < d; ++i) variance += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / __builtin_sqrtf(variance / static_cast<float>(d) + eps);
    for (i = 0; i + 8 <= d; i += 8) {
      V::MulAdd((V::Load(x + i) - V::Set(mean)) * V::Set(scale), V::Load(gain + i),
                V::Load(bias + i))
          .Store(y + i);
    }
    for (; i < d; ++i) y[i] = (x[i] - mean) * scale * gain[i] + bias[i];
  }

  static void Rope(float* x, const float* cos, const float* sin, int64_t half) {
    int64_t i = 0;
    for (; i + 8 <= half; i += 8) {
      const V a = V::Load(x + i), b = V::Load(x + half + i);
      const V c = V::Load(cos + i), s = V::Load(sin + i);
      (a * c - b * s).Store(x + i);
      (b * c + a * s).Store(x + half + i);
    }
    for (; i < half; ++i) {
      const float a = x[i], b = x[half + i];
      x[i] = a * cos[i] - b * sin[i];
      x[half + i] = b * cos[i] + a * sin[i];
    }
  }

  static void ToHalf(const float* x, int64_t n, uint16_t* y) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) V::Load(x + i).Store(y + i);
    if (i == n) return;
    alignas(32) uint16_t h[8];
    LoadPart(x + i, n - i).Store(h);
    for (int64_t j = 0; i + j < n; ++j) y[i + j] = h[j];
  }

  // engine/ops/kv_row.h
  static void StoreKv(DType dtype, const float* x, int64_t n, std::byte* row) {
    switch (dtype) {
      case DType::kF16:
        return ToHalf(x, n, reinterpret_cast<uint16_t*>(row));
      case DType::kI8:
        return EncodeKvI8(x, n, row);
      case DType::kU4:
        return EncodeKvU4(x, n, row);
      default:
        __builtin_memcpy(row, x, static_cast<size_t>(n) * sizeof(float));
    }
  }

  static void GatedActivation(Activation act, const float* x, int64_t f, float* y) {
    Dispatch(act, [=](auto constant) {
      int64_t i = 0;
      for (; i + 8 <= f; i += 8) {
        (Apply<constant.value>(V::Load(x + i)) * V::Load(x + f + i)).Store(y + i);
      }
      if (i == f) return;
      StorePart(Apply<constant.value>(LoadPart(x + i, f - i)) * LoadPart(x + f + i, f - i), y + i,
                f - i);
    });
  }
  static void Activate(Activation act, float* x, int64_t n) {
    Dispatch(act, [=](auto constant) {
      int64_t i = 0;
      for (; i + 8 <= n; i += 8) Apply<constant.value>(V::Load(x + i)).Store(x + i);
      if (i == n) return;
      StorePart(Apply<constant.value>(LoadPart(x + i, n - i)), x + i, n - i);
    });
  }
  static void Add(const float* x, int64_t n, float* y) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) (V::Load(y + i) + V::Load(x + i)).Store(y + i);
    for (; i < n; ++i) y[i] += x[i];
  }
};

}  // namespace assay
