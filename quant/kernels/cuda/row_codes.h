// One row to codes of 8 bit with a scale of its own, inside of kernels: bit for bit what
// quant/activation.h defines for a8_token and fp8_token. The thread that has an element encodes it;
// the largest magnitude comes from a reduction over BitsOf(|x|), where infinity and NaN rank last.
#pragma once
#include "base/cuda/simt_math.h"

namespace assay::ASSAY_SIMT {

enum class RowCode { kS8, kE4M3 };

struct RowScale {
  float scale;    // x ~ scale * code; NaN: the row has NaN or infinity; 0: nothing to see
  float inverse;  // what x is multiplied by; 0 in both of these cases
};

ASSAY_DEVICE RowScale ScaleOfRow(uint32_t largest_magnitude_bits, RowCode code) {
  const float most = code == RowCode::kS8 ? 127.0f : 448.0f;
  if (largest_magnitude_bits >= 0x7f800000u) return {FloatOf(0x7fc00000u), 0.0f};
  const float absmax = FloatOf(largest_magnitude_bits);
  if (absmax < 0x1p-119f) return {0.0f, 0.0f};
  return {absmax / most, most / absmax};
}

ASSAY_DEVICE uint8_t CodeOf(float x, RowScale row, RowCode code) {
  if (row.inverse == 0.0f) return 0;
  if (code == RowCode::kE4M3) return E4M3Of(x * row.inverse);
  return static_cast<uint8_t>(static_cast<int8_t>(static_cast<int>(Round(x * row.inverse))));
}

ASSAY_DEVICE uint32_t MagnitudeBits(float x) { return BitsOf(x) & 0x7fffffffu; }

// The largest over the block, for every thread. `partial`: 32 words of shared memory.
ASSAY_DEVICE uint32_t BlockLargest(uint32_t bits, uint32_t* partial) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const uint32_t other = ShuffleXor(bits, mask);
    bits = other > bits ? other : bits;
  }
  if (ThreadIndex() % kWarp == 0) partial[ThreadIndex() / kWarp] = bits;
  SyncThreads();
  for (int i = 0; i < ThreadsOfBlock() / kWarp; ++i) bits = partial[i] > bits ? partial[i] : bits;
  SyncThreads();
  return bits;
}

}  // namespace assay::ASSAY_SIMT
