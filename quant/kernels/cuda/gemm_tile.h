// The tiled product of two matrices whose rows are contiguous along k, a [m, k] b [n, k]^T, of
// 16-bit numbers or bytes: what gemm16 and gemm_s8 share. Both are the same to shared memory and
// ldmatrix: a step of mma takes 32 bytes of k, and the fragments of bytes lie in registers as those
// of half as many 16-bit numbers.
//
// A block computes kSide x kSide of y. Stages of 128 or 64 bytes of k arrive by cp.async, rows
// padded by 16 bytes so that ldmatrix meets every bank once. Warps take 32 (rows) x 32 (columns) of
// a side of 64, 64 x 32 of 128.
//
// Sums: each element by one warp, over k in ascending order: a row's results do not depend on m,
// nor on kSide.
#pragma once
#include "base/cuda/simt_math.h"
#include "quant/kernels/cuda/stored_weight.h"

namespace assay::ASSAY_SIMT {

// Matrices as bytes; k_bytes is a multiple of 16, rows are 16 bytes aligned.
struct TileOperands {
  const unsigned char* a = nullptr;  // [m], rows a_stride bytes apart
  const unsigned char* b = nullptr;  // [n], rows b_stride bytes apart
  int m = 0, n = 0, k_bytes = 0;
  size_t a_stride = 0, b_stride = 0;
  int m0 = 0, n0 = 0;  // first row and column of y that the block has
};

struct TileF16 {
  using Sum = float;
  ASSAY_DEVICE static void Multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Mma<F16>(d, a, b);
  }
};
struct TileBf16 {
  using Sum = float;
  ASSAY_DEVICE static void Multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Mma<Bf16>(d, a, b);
  }
};
struct TileS8 {
  using Sum = int;
  ASSAY_DEVICE static void Multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MmaS8(d, a, b);
  }
};

template <class Op, int kSideOfTile>
struct GemmTile {
  using Sum = typename Op::Sum;
  static constexpr int kSide = kSideOfTile;
  static constexpr int kStageK = kSide == 64 ? 128 : 64, kStride = kStageK + 16,
                       kStep = 32;  // bytes
  static constexpr int kWarpRows = kSide / 2, kWarpColumns = 32;
  static constexpr int kThreads = kWarp * 2 * (kSide / kWarpColumns);
  static constexpr int kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;
  static constexpr int kStageBytes = 2 * kSide * kStride;
  static constexpr int kStages = 3;  // 54 KB, 60 KB: sm_75 has 64
  static constexpr int kBytes = kStages * kStageBytes;
  using Sums = Sum[kRowTiles][kColumnTiles][4];

  // Where this warp's part of y starts.
  ASSAY_DEVICE static int WarpRow() { return ThreadIndex() / kWarp % 2 * kWarpRows; }
  ASSAY_DEVICE static int WarpColumn() { return ThreadIndex() / kWarp / 2 * kWarpColumns; }

  // kSide rows of a matrix, kStageK bytes of k from `k` on; zeros beyond its rows and k.
  struct Rows {
    const unsigned char* from;
    size_t stride;
    int first, count;
  };
  ASSAY_DEVICE static void CopyRows(const Rows& rows, int k, int k_bytes, unsigned char* to) {
    constexpr int kChunks = kStageK / 16;
    ASSAY_UNROLL
    for (int i = 0; i < kSide * kChunks; i += kThreads) {
      const int at = i + ThreadIndex(), row = at / kChunks, chunk = at % kChunks * 16;
      const bool valid = rows.first + row < rows.count && k + chunk < k_bytes;
      const size_t from = valid ? (rows.first + row) * rows.stride + k + chunk : 0;
      CopyAsync16(to + row * kStride + chunk, rows.from + from, valid);
    }
  }
  ASSAY_DEVICE static void CopyStage(const TileOperands& in, int stage, unsigned char* memory) {
    unsigned char* const to = memory + stage % kStages * kStageBytes;
    CopyRows({in.a, in.a_stride, in.m0, in.m}, stage * kStageK, in.k_bytes, to);
    CopyRows({in.b, in.b_stride, in.n0, in.n}, stage * kStageK, in.k_bytes, to + kSide * kStride);
  }

  // 32 bytes of k, `at` bytes into a stage.
  ASSAY_DEVICE static void MultiplyStep(const unsigned char* stage, int at, Sums& sums) {
    const int lane = ThreadIndex() % kWarp, row = lane % 8, matrix = lane / 8;
    const unsigned char* const a = stage + WarpRow() * kStride + at;
    const unsigned char* const b = stage + (kSide + WarpColumn()) * kStride + at;
    uint32_t x[kRowTiles][4], y[kColumnTiles][2];
    // Matrices: rows 0-7, rows 8-15, then both 16 bytes further: the order of A's registers.
    ASSAY_UNROLL
    for (int i = 0; i < kRowTiles; ++i)
      LoadMatrix4(x[i], a + (i * 16 + matrix % 2 * 8 + row) * kStride + matrix / 2 * 16);
    // Of two tiles of 8 columns: both halves of k of the first, then of the second.
    ASSAY_UNROLL
    for (int j = 0; j < kColumnTiles; j += 2) {
      uint32_t both[4];
      LoadMatrix4(both, b + (j * 8 + matrix / 2 * 8 + row) * kStride + matrix % 2 * 16);
      ASSAY_UNROLL
      for (int i = 0; i < 4; ++i) y[j + i / 2][i % 2] = both[i];
    }
    ASSAY_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      ASSAY_UNROLL
      for (int j = 0; j < kColumnTiles; ++j) Op::Multiply(sums[i][j], x[i], y[j]);
    }
  }

  ASSAY_DEVICE static void Multiply(const TileOperands& in, unsigned char* memory, Sums& sums) {
    const int stages = DivideUp(in.k_bytes, kStageK);
    PdlWait();
    ASSAY_UNROLL
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < stages) CopyStage(in, s, memory);
      CopyAsyncCommit();
    }
    for (int s = 0; s < stages; ++s) {
      CopyAsyncWait<kStages - 2>();
      SyncThreads();
      if (s + kStages - 1 < stages) CopyStage(in, s + kStages - 1, memory);
      CopyAsyncCommit();
      const unsigned char* const stage = memory + s % kStages * kStageBytes;
      ASSAY_UNROLL
      for (int at = 0; at < kStageK; at += kStep) MultiplyStep(stage, at, sums);
    }
    CopyAsyncWait<0>();
    PdlTrigger();
  }

  // store(row, column, sum) for what this thread has of the block's part, inside of [m, n] or not.
  template <class Store>
  ASSAY_DEVICE static void ForEach(const TileOperands& in, const Sums& sums, const Store& store) {
    const int lane = ThreadIndex() % kWarp, g = lane / 4, t = lane % 4;
    ASSAY_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      ASSAY_UNROLL
      for (int j = 0; j < kColumnTiles; ++j) {
        ASSAY_UNROLL
        for (int c = 0; c < 4; ++c) {
          store(in.m0 + WarpRow() + i * 16 + g + c / 2 * 8,
                in.n0 + WarpColumn() + j * 8 + 2 * t + c % 2, sums[i][j][c]);
        }
      }
    }
  }
};

// The side whose tiles keep a GPU busy: 128 where there are enough of them.
constexpr int GemmSide(int m, int n) {
  constexpr int kBlocks = 132;
  const auto tiles = [](int count) { return (count + 127) / 128; };
  return tiles(m) * tiles(n) >= kBlocks ? 128 : 64;
}

// Tiles of rows in x: blocks that run together share columns of b, the larger matrix.
inline LaunchGrid GemmGrid(int m, int n, int side) {
  return {.x = DivideUp(m, side), .y = DivideUp(n, side)};
}

}  // namespace assay::ASSAY_SIMT
