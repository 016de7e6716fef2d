// 16-bit and 8-bit numbers, and the tensor-core products, for kernels (simt.h). Conversions round
// half to even. Products sum in f32 (integers: exactly) in an order that the hardware chooses; the
// emulator sums in f64 and rounds once.
//
// Fragments of a warp operation, lane l, g = l / 4, t = l % 4 (PTX ISA, mma.m16n8k16, m16n8k32):
//   A [16, k]  registers of row g, g + 8, g, g + 8: elements from w t on, the last two k / 2
//   further B [k, 8]   column g: elements from w t on, the second register k / 2 further C [16, 8]
//   (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
// where a register holds w = 2 numbers of 16 bit or w = 4 of 8 bit, the first in the low bits.
#pragma once
#include <math.h>

#include "base/cuda/simt.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#else
#include <bit>

#include "base/float16.h"
#include "base/float8.h"
#endif

namespace assay::ASSAY_SIMT {

struct F16 {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};
struct Two {
  float low, high;
};

#if defined(__CUDACC__)

ASSAY_DEVICE float ToFloat(float v) { return v; }
ASSAY_DEVICE float ToFloat(F16 v) { return __half2float(__ushort_as_half(v.bits)); }
ASSAY_DEVICE float ToFloat(Bf16 v) { return __uint_as_float(uint32_t{v.bits} << 16); }
template <typename T>
ASSAY_DEVICE T FromFloat(float v);
template <>
ASSAY_DEVICE float FromFloat<float>(float v) {
  return v;
}
template <>
ASSAY_DEVICE F16 FromFloat<F16>(float v) {
  return {__half_as_ushort(__float2half_rn(v))};
}
template <>
ASSAY_DEVICE Bf16 FromFloat<Bf16>(float v) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
}
// Saturates; NaN becomes a NaN code.
ASSAY_DEVICE uint8_t E4M3Of(float v) { return __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3); }
ASSAY_DEVICE float FromE4M3(uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}
ASSAY_DEVICE uint32_t BitsOf(float v) { return __float_as_uint(v); }
ASSAY_DEVICE float FloatOf(uint32_t bits) { return __uint_as_float(bits); }
ASSAY_DEVICE float Fma(float a, float b, float c) { return fmaf(a, b, c); }
ASSAY_DEVICE float Round(float v) { return rintf(v); }  // half to even
ASSAY_DEVICE float Exp2(float v) { return exp2f(v); }
ASSAY_DEVICE float Log2(float v) { return log2f(v); }
// (sine, cosine) of an angle of any size; at most 2 units in the last place off.
ASSAY_DEVICE Two SinCos(float angle) {
  Two turn;
  sincosf(angle, &turn.low, &turn.high);
  return turn;
}
// Four bytes out of the eight of (high, low), by the selector's nibbles (prmt).
ASSAY_DEVICE uint32_t Bytes(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}
namespace internal {
ASSAY_DEVICE __half2 AsHalf2(uint32_t v) { return *reinterpret_cast<const __half2*>(&v); }
ASSAY_DEVICE uint32_t Bits(__half2 v) { return *reinterpret_cast<const uint32_t*>(&v); }
ASSAY_DEVICE __nv_bfloat162 AsBrain2(uint32_t v) {
  return *reinterpret_cast<const __nv_bfloat162*>(&v);
}
ASSAY_DEVICE uint32_t Bits(__nv_bfloat162 v) { return *reinterpret_cast<const uint32_t*>(&v); }
}  // namespace internal
// Element by element on two packed numbers, each operation rounded once.
template <typename T>
ASSAY_DEVICE uint32_t Sub2(uint32_t a, uint32_t b);
template <typename T>
ASSAY_DEVICE uint32_t Mul2(uint32_t a, uint32_t b);
template <typename T>
ASSAY_DEVICE uint32_t Fma2(uint32_t a, uint32_t b, uint32_t c);
template <>
ASSAY_DEVICE uint32_t Sub2<F16>(uint32_t a, uint32_t b) {
  return internal::Bits(__hsub2(internal::AsHalf2(a), internal::AsHalf2(b)));
}
template <>
ASSAY_DEVICE uint32_t Mul2<F16>(uint32_t a, uint32_t b) {
  return internal::Bits(__hmul2(internal::AsHalf2(a), internal::AsHalf2(b)));
}
template <>
ASSAY_DEVICE uint32_t Fma2<F16>(uint32_t a, uint32_t b, uint32_t c) {
  return internal::Bits(__hfma2(internal::AsHalf2(a), internal::AsHalf2(b), internal::AsHalf2(c)));
}
#if __CUDA_ARCH__ >= 800
template <>
ASSAY_DEVICE uint32_t Sub2<Bf16>(uint32_t a, uint32_t b) {
  return internal::Bits(__hsub2(internal::AsBrain2(a), internal::AsBrain2(b)));
}
template <>
ASSAY_DEVICE uint32_t Mul2<Bf16>(uint32_t a, uint32_t b) {
  return internal::Bits(__hmul2(internal::AsBrain2(a), internal::AsBrain2(b)));
}
template <>
ASSAY_DEVICE uint32_t Fma2<Bf16>(uint32_t a, uint32_t b, uint32_t c) {
  return internal::Bits(
      __hfma2(internal::AsBrain2(a), internal::AsBrain2(b), internal::AsBrain2(c)));
}
#else  // no bf16 here: Supports() refuses
template <>
ASSAY_DEVICE uint32_t Sub2<Bf16>(uint32_t, uint32_t) {
  __trap();
  return 0;
}
template <>
ASSAY_DEVICE uint32_t Mul2<Bf16>(uint32_t, uint32_t) {
  __trap();
  return 0;
}
template <>
ASSAY_DEVICE uint32_t Fma2<Bf16>(uint32_t, uint32_t, uint32_t) {
  __trap();
  return 0;
}
#endif

// d += a b, [16, 16] times [16, 8].
template <typename T>
ASSAY_DEVICE void Mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
ASSAY_DEVICE void Mma<F16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int half = 0; half < 2; ++half) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#endif
}
template <>
ASSAY_DEVICE void Mma<Bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}
// d += a b, [16, 32] times [32, 8], signed bytes.
ASSAY_DEVICE void MmaS8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int half = 0; half < 2; ++half) {
    for (int row = 0; row < 2; ++row) {
      asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};\n"
                   : "+r"(d[2 * row]), "+r"(d[2 * row + 1])
                   : "r"(a[2 * half + row]), "r"(b[half]));
    }
  }
#endif
}

// Four matrices of [8, 8] 16-bit numbers out of shared memory: lane l names row l % 8 of matrix
// l / 8 (16 aligned bytes) and gets, of each matrix, elements 2t and 2t + 1 of row g; transposed:
// those of column g.
ASSAY_DEVICE void LoadMatrix4(uint32_t (&r)[4], const void* row) {
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
ASSAY_DEVICE void LoadMatrix4Transposed(uint32_t (&r)[4], const void* row) {
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}

#else  // emulated

ASSAY_DEVICE float ToFloat(float v) { return v; }
ASSAY_DEVICE float ToFloat(F16 v) { return F16ToF32(v.bits); }
ASSAY_DEVICE float ToFloat(Bf16 v) { return Bf16ToF32(v.bits); }
template <typename T>
T FromFloat(float v);
template <>
ASSAY_DEVICE float FromFloat<float>(float v) {
  return v;
}
template <>
ASSAY_DEVICE F16 FromFloat<F16>(float v) {
  return {F32ToF16(v)};
}
template <>
ASSAY_DEVICE Bf16 FromFloat<Bf16>(float v) {
  return {F32ToBf16(v)};
}
ASSAY_DEVICE uint8_t E4M3Of(float v) { return F32ToE4M3(v); }
ASSAY_DEVICE float FromE4M3(uint8_t code) { return E4M3ToF32(code); }
ASSAY_DEVICE uint32_t BitsOf(float v) { return std::bit_cast<uint32_t>(v); }
ASSAY_DEVICE float FloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }
ASSAY_DEVICE float Fma(float a, float b, float c) { return fmaf(a, b, c); }
ASSAY_DEVICE float Round(float v) { return rintf(v); }
ASSAY_DEVICE float Exp2(float v) { return exp2f(v); }
ASSAY_DEVICE float Log2(float v) { return log2f(v); }
ASSAY_DEVICE Two SinCos(float angle) {
  const double exact = angle;
  return {static_cast<float>(sin(exact)), static_cast<float>(cos(exact))};
}
ASSAY_DEVICE uint32_t Bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = (uint64_t{high} << 32) | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i)
    out |= static_cast<uint32_t>((both >> (8 * ((selector >> (4 * i)) & 7))) & 0xff) << (8 * i);
  return out;
}
namespace internal {
// f64 -> f32 rounded to odd: rounding that once more to 16 bits is rounding the f64 once.
ASSAY_DEVICE float RoundToOdd(double v) {
  const auto nearest = static_cast<float>(v);
  if (static_cast<double>(nearest) == v || !(nearest - nearest == 0)) return nearest;
  const bool away = fabs(static_cast<double>(nearest)) > fabs(v);
  return FloatOf((BitsOf(nearest) - (away ? 1 : 0)) | 1);
}
template <typename T, typename F>
uint32_t Each(F f) {
  const auto low = FromFloat<T>(RoundToOdd(f(0))), high = FromFloat<T>(RoundToOdd(f(16)));
  return static_cast<uint32_t>(low.bits) | (static_cast<uint32_t>(high.bits) << 16);
}
template <typename T>
double At(uint32_t packed, int shift) {
  return ToFloat(T{static_cast<uint16_t>(packed >> shift)});
}
}  // namespace internal
template <typename T>
uint32_t Sub2(uint32_t a, uint32_t b) {
  return internal::Each<T>([=](int s) { return internal::At<T>(a, s) - internal::At<T>(b, s); });
}
template <typename T>
uint32_t Mul2(uint32_t a, uint32_t b) {
  return internal::Each<T>([=](int s) { return internal::At<T>(a, s) * internal::At<T>(b, s); });
}
template <typename T>
uint32_t Fma2(uint32_t a, uint32_t b, uint32_t c) {
  return internal::Each<T>(
      [=](int s) { return internal::At<T>(a, s) * internal::At<T>(b, s) + internal::At<T>(c, s); });
}

namespace internal {
struct Operands {
  uint32_t a[4], b[2];
};
// Element (row, at) of A or (at, column) of B, of width bits, out of what the lanes hold.
template <int kBits>
uint32_t ElementOf(const std::byte* slots, bool of_b, int index, int at, int k) {
  constexpr int kEach = 32 / kBits;
  const int half = at / (k / 2), in_half = at % (k / 2);
  const auto lane = FromLane<Operands>(slots, index % 8 * 4 + in_half / kEach);
  const uint32_t word = of_b ? lane.b[half] : lane.a[2 * half + index / 8];
  return (word >> (kBits * (in_half % kEach))) & ((1u << kBits) - 1);
}
}  // namespace internal
template <typename T>
void Mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const internal::Operands mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const std::byte* const slots = ExchangeInWarp(&mine, sizeof(mine), "Mma");
  const int lane = ThreadX() % kWarp;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = d[i];
    for (int k = 0; k < 16; ++k) {
      const T x{static_cast<uint16_t>(internal::ElementOf<16>(slots, false, row, k, 16))};
      const T y{static_cast<uint16_t>(internal::ElementOf<16>(slots, true, column, k, 16))};
      sum += static_cast<double>(ToFloat(x)) * ToFloat(y);
    }
    d[i] = static_cast<float>(sum);
  }
}
ASSAY_DEVICE void MmaS8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const internal::Operands mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const std::byte* const slots = ExchangeInWarp(&mine, sizeof(mine), "MmaS8");
  const int lane = ThreadX() % kWarp;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 32; ++k) {
      const auto x = static_cast<int8_t>(internal::ElementOf<8>(slots, false, row, k, 32));
      const auto y = static_cast<int8_t>(internal::ElementOf<8>(slots, true, column, k, 32));
      d[i] += x * y;
    }
  }
}

namespace internal {
ASSAY_DEVICE void LoadMatrices(uint32_t (&r)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) Die("a row of LoadMatrix is not aligned");
  const std::byte* const slots =
      ExchangeInWarp(&row, sizeof(row), transposed ? "LoadMatrix4Transposed" : "LoadMatrix4");
  const int g = ThreadX() % kWarp / 4, t = ThreadX() % 4;
  for (int i = 0; i < 4; ++i) {
    uint16_t low, high;
    const auto at = [&](int from_row, int column, uint16_t& out) {
      const auto* const from = FromLane<const std::byte*>(slots, 8 * i + from_row);
      std::memcpy(&out, from + 2 * static_cast<ptrdiff_t>(column), 2);
    };
    at(transposed ? 2 * t : g, transposed ? g : 2 * t, low);
    at(transposed ? 2 * t + 1 : g, transposed ? g : 2 * t + 1, high);
    r[i] = static_cast<uint32_t>(low) | (static_cast<uint32_t>(high) << 16);
  }
}
}  // namespace internal
ASSAY_DEVICE void LoadMatrix4(uint32_t (&r)[4], const void* row) {
  internal::LoadMatrices(r, row, false);
}
ASSAY_DEVICE void LoadMatrix4Transposed(uint32_t (&r)[4], const void* row) {
  internal::LoadMatrices(r, row, true);
}

#endif

// Two numbers in one register.
template <typename T>
ASSAY_DEVICE uint32_t Pack2(float low, float high) {
  return static_cast<uint32_t>(FromFloat<T>(low).bits) |
         (static_cast<uint32_t>(FromFloat<T>(high).bits) << 16);
}
template <typename T>
ASSAY_DEVICE Two Unpack2(uint32_t packed) {
  return {ToFloat(T{static_cast<uint16_t>(packed & 0xffffu)}),
          ToFloat(T{static_cast<uint16_t>(packed >> 16)})};
}

ASSAY_DEVICE float WarpSum(float v) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) v += ShuffleXor(v, mask);
  return v;
}
ASSAY_DEVICE float WarpMax(float v) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) v = fmaxf(v, ShuffleXor(v, mask));
  return v;
}
// Over the block, for every thread, in an order that is always the same. `partial`: 32 floats of
// shared memory, free again after.
ASSAY_DEVICE float BlockSum(float v, float* partial) {
  v = WarpSum(v);
  const int warps = (ThreadsOfBlock() + kWarp - 1) / kWarp;
  if (ThreadIndex() % kWarp == 0) partial[ThreadIndex() / kWarp] = v;
  SyncThreads();
  float sum = 0;
  for (int i = 0; i < warps; ++i) sum += partial[i];
  SyncThreads();
  return sum;
}
ASSAY_DEVICE float BlockMax(float v, float* partial) {
  v = WarpMax(v);
  const int warps = (ThreadsOfBlock() + kWarp - 1) / kWarp;
  if (ThreadIndex() % kWarp == 0) partial[ThreadIndex() / kWarp] = v;
  SyncThreads();
  float most = partial[0];
  for (int i = 1; i < warps; ++i) most = fmaxf(most, partial[i]);
  SyncThreads();
  return most;
}

}  // namespace assay::ASSAY_SIMT
