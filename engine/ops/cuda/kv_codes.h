// Codes of the KV pool as numbers for tensor cores, exactly, in a few instructions a pair; and rows
// in shared memory that LoadMatrix4 reads without bank conflicts.
#pragma once
#include "base/cuda/simt_math.h"
#include "engine/ops/cuda/kv_layout.h"

namespace assay::ASSAY_SIMT {

// Bytes kFirst and kSecond of `four` codes as a pair of T.
template <typename T, KvCodes kFormat, int kFirst, int kSecond>
struct CodePair;

// A byte b + 128 behind the mantissa of 1024 is 1024 + 128 + b.
template <int kFirst, int kSecond>
struct CodePair<F16, KvCodes::kS8, kFirst, kSecond> {
  static ASSAY_DEVICE uint32_t Of(uint32_t four) {
    constexpr uint32_t kPick = 0x4040u | kFirst | (kSecond << 8);
    return Sub2<F16>(Bytes(four ^ 0x80808080u, 0x64646464u, kPick), 0x64806480u);
  }
};
// The mantissa of bf16 is too short for that: through f32, 2^23 + 128 + b.
template <int kFirst, int kSecond>
struct CodePair<Bf16, KvCodes::kS8, kFirst, kSecond> {
  static ASSAY_DEVICE uint32_t Of(uint32_t four) {
    const uint32_t shifted = four ^ 0x80808080u;
    const float first = FloatOf(Bytes(shifted, 0x4b000000u, 0x7540u | kFirst)) - 8388736.0f;
    const float second = FloatOf(Bytes(shifted, 0x4b000000u, 0x7540u | kSecond)) - 8388736.0f;
    return Bytes(BitsOf(first), BitsOf(second), 0x7632u);
  }
};
// s eeee mmm moved to where T has its exponent and mantissa, then the biases' difference. Exact for
// all finite codes, subnormal ones included; the pool has no NaN codes.
template <int kFirst, int kSecond>
struct CodePair<F16, KvCodes::kE4m3, kFirst, kSecond> {
  static ASSAY_DEVICE uint32_t Of(uint32_t four) {
    const uint32_t high = Bytes(four, 0, 0x0404u | (kFirst << 4) | (kSecond << 12));
    return Mul2<F16>((high & 0x80008000u) | ((high & 0x7f007f00u) >> 1), 0x5c005c00u);  // 2^8
  }
};
template <int kFirst, int kSecond>
struct CodePair<Bf16, KvCodes::kE4m3, kFirst, kSecond> {
  static ASSAY_DEVICE uint32_t Of(uint32_t four) {
    const uint32_t high = Bytes(four, 0, 0x0404u | (kFirst << 4) | (kSecond << 12));
    return Mul2<Bf16>((high & 0x80008000u) | ((high & 0x7f007f00u) >> 4), 0x7b807b80u);  // 2^120
  }
};

// Where 16-byte unit `unit` of row `row` lies, in units, among rows of kUnits units: eight
// successive rows have the same unit in eight different groups of banks.
template <int kUnits>
ASSAY_DEVICE int SwizzledUnit(int row, int unit) {
  constexpr int kSwap = kUnits % 8 == 0 ? 8 : kUnits % 4 == 0 ? 4 : kUnits % 2 == 0 ? 2 : 1;
  return row * kUnits + (unit ^ (row / (8 / kSwap) % kSwap));
}

constexpr float kLog2E = 1.44269504f;
// Below every score, and finite: a row that has seen nothing computes 2^0 = 1, not NaN.
constexpr float kNoScore = -1e30f;
ASSAY_DEVICE float MinusInfinity() { return FloatOf(0xff800000u); }

// Over the four lanes that hold one row of a fragment.
ASSAY_DEVICE float QuadMax(float v) {
  v = fmaxf(v, ShuffleXor(v, 1));
  return fmaxf(v, ShuffleXor(v, 2));
}
ASSAY_DEVICE float QuadSum(float v) {
  v += ShuffleXor(v, 1);
  return v + ShuffleXor(v, 2);
}

}  // namespace assay::ASSAY_SIMT
