// The inner loops of the product with bounded weights (avx2_int8_bounded.h), compiled for AVX2 and
// FMA. Enter only where HostCpu() has both. This header includes nothing that instantiates inline
// code in the AVX2 translation unit. Pure.
#pragma once
#include <cstdint>

#include "quant/kernels/cpu/panel_int8_micro.h"

namespace assay {

inline constexpr int64_t kBoundedRows = 64;  // rows of one chunk of transposed activations

// One chunk of up to kBoundedRows rows of x, and where its results go.
struct Int8BoundedJob {
  Int8PanelJob panel;  // m <= kBoundedRows
  const uint8_t* x;    // [m, 8 groups] code + 128
  // Codes as bf16 [8 groups, kBoundedRows]; of 16 rows, word r of 32 bit holds row r in its low
  // half and row r + 8 in its high half. Beyond row m any value.
  const uint16_t* x_columns;
};
struct Int8ExcessView {
  const int32_t* first;
  const uint16_t* index;
  const int8_t* value;
  const int32_t* offsets;
};

// Panel `panel` without its excess, in the order of vpmaddubsw. The 128 bytes of 8 inputs:
//
//   byte 0         32            64            96            128
//        | c 0..7   | c 0..7      | c 8..15     | c 8..15     |
//        | k 0..3   | k 4..7      | k 0..3      | k 4..7      |
//        each 32 bytes: 4 codes of the first channel, 4 of the second, ...
//
// `bounded` is s8 scratch [groups * 128], 32-byte aligned.
void Avx2BoundPanel(const Int8PanelJob& job, const Int8ExcessView& excess, int64_t panel,
                    int8_t* bounded);
// y of one chunk and one panel. `sums` is scratch s32 [2 * kBoundedRows * 16].
void Avx2BoundedPanel(const Int8BoundedJob& job, const Int8ExcessView& excess, int64_t panel,
                      const int8_t* bounded, int32_t* sums);
// Rows [row, row + 16) of x into x_columns; row is a multiple of 16 and rows beyond m are not read.
void Avx2TransposeCodes(const Int8BoundedJob& job, int64_t row, uint16_t* x_columns);

}  // namespace assay
