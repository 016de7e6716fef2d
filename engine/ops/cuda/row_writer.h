// How kernels of this folder hand on a row: in 16 bit, in f32, or in codes with a scale.
#pragma once
#include "engine/ops/cuda/norm.h"
#include "quant/kernels/cuda/row_codes.h"

namespace assay::ASSAY_SIMT {

struct RowTarget {
  RowForm form;
  Half half;
  void* out;      // [rows, width]
  float* scales;  // [rows]
  int width;
};

ASSAY_DEVICE bool WantsScale(RowForm form) {
  return form == RowForm::kS8 || form == RowForm::kE4M3;
}

// Four neighbours at column `at` (a multiple of 4).
ASSAY_DEVICE void WriteFour(const RowTarget& to, int row, int at, const float (&v)[4],
                            RowScale scale) {
  const size_t index = static_cast<size_t>(row) * to.width + at;
  if (to.form == RowForm::kFloat) {
    Store16(static_cast<float*>(to.out) + index,
            {BitsOf(v[0]), BitsOf(v[1]), BitsOf(v[2]), BitsOf(v[3])});
  } else if (to.form == RowForm::kHalf) {
    auto* const out = static_cast<uint16_t*>(to.out) + index;
    if (to.half == Half::kF16) {
      Store8(out, {Pack2<F16>(v[0], v[1]), Pack2<F16>(v[2], v[3])});
    } else {
      Store8(out, {Pack2<Bf16>(v[0], v[1]), Pack2<Bf16>(v[2], v[3])});
    }
  } else {
    const RowCode code = to.form == RowForm::kS8 ? RowCode::kS8 : RowCode::kE4M3;
    uint32_t codes = 0;
    for (int i = 0; i < 4; ++i)
      codes |= static_cast<uint32_t>(CodeOf(v[i], scale, code)) << (8 * i);
    *reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(to.out) + index) = codes;
  }
}

// The scale of the row whose largest magnitude over this thread's elements is `bits`; written by
// the first thread. A barrier of the block, where the form has scales.
ASSAY_DEVICE RowScale FindScale(const RowTarget& to, int row, uint32_t bits, uint32_t* partial) {
  if (!WantsScale(to.form)) return {1.0f, 1.0f};
  const RowCode code = to.form == RowForm::kS8 ? RowCode::kS8 : RowCode::kE4M3;
  const RowScale scale = ScaleOfRow(BlockLargest(bits, partial), code);
  if (ThreadIndex() == 0) to.scales[row] = scale.scale;
  return scale;
}

ASSAY_DEVICE void LoadFour(const float* from, float (&v)[4]) {
  const Quad q = Load16(from);
  v[0] = FloatOf(q.x);
  v[1] = FloatOf(q.y);
  v[2] = FloatOf(q.z);
  v[3] = FloatOf(q.w);
}

}  // namespace assay::ASSAY_SIMT
