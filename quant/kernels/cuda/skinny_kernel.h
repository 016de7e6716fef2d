// The skinny product, once for all formats of weights (skinny_format.h).
//
// A block computes up to 64 rows times 64 columns of y over a part of k. It has 8 warps: two halves
// of the columns (32: four tiles of 8) times four that share k: unit u of 32 inputs is warp u %
// 4's. Stages of k arrive by cp.async as they lie in memory: x row-major, codes row-major.
//
// Of a unit, lane l (g = l / 4, t = l % 4) takes the inputs 8 t .. 8 t + 7: of the weight's row g
// (4 or 8 bytes of shared memory), and of x's rows g and g + 8 (16 bytes each). These are two steps
// of mma.m16n8k16, whose inputs 2t, 2t + 1, 2t + 8, 2t + 9 are, in step s, the lane's 4 s .. 4 s +
// 3: a dot product knows no order of k, as long as both sides agree. All four lanes of a row stay
// in the unit, hence in one group of weights, whose scale is applied to the unit's sums.
//
// Rows in shared memory are padded so that neither access meets its neighbours' banks: codes lie
// 16 (4 bits) or 32 bytes (8 bits) beyond a multiple of 128, x 64.
//
// Sums: within a unit the tensor core's; then units in ascending order per warp, warps (0 + 2) +
// (1 + 3), parts of k in ascending order by the block that finishes last.
#pragma once
#include "base/cuda/simt_math.h"
#include "quant/kernels/cuda/skinny.h"
#include "quant/kernels/cuda/skinny_format.h"

namespace assay::ASSAY_SIMT {

inline constexpr int kSkinnyThreads = 256;

template <class Format, int kRowTiles>
struct SkinnyTile {
  static constexpr int kUnit = 32, kKWarps = 4, kColumnTiles = 4;  // per warp: 4 x 8 columns
  static constexpr int kRows = 16 * kRowTiles;
  static constexpr int kWarpUnits = Format::kBits == 4 && kRowTiles == 1 ? 2 : 1;  // per stage
  static constexpr int kUnits = kKWarps * kWarpUnits, kStageK = kUnits * kUnit;
  static constexpr int kCodeStride = kStageK * Format::kBits / 8 + 4 * Format::kBits;  // bytes
  static constexpr int kXStride = kStageK * 2 + 64;
  static constexpr int kCodeBytes = kSkinnyColumns * kCodeStride;
  static constexpr int kStageBytes = kCodeBytes + kRows * kXStride;
  // Of two stages: scales [2][kUnits][64] f32, then zero points u8.
  static constexpr int kScales = Format::kGrouped ? 2 * kUnits * kSkinnyColumns : 0;
  static constexpr int kScaleBytes = 5 * kScales;
  static constexpr int kMostBytes = (64 << 10) - 4 * Format::kTable - 64;  // as much has sm_75
  static constexpr int kFit = (kMostBytes - kScaleBytes) / kStageBytes;
  static constexpr int kStages = kFit < 4 ? kFit : 4;
  static constexpr int kReduceBytes = 2 * 2 * kWarp * 16 * kRowTiles * 4;
  static constexpr int kBytes = kStages * kStageBytes + kScaleBytes;
  static_assert(kStages >= 2 && kReduceBytes <= kBytes && kSkinnySpan % kStageK == 0);
};

// What is the same for all threads, found before the launch.
struct SkinnyWork {
  SkinnyArgs args;
  int groups;       // of a row
  int group_shift;  // k >> group_shift is the group of input k
  int split_k;      // inputs of a block
};

inline SkinnyWork WorkOf(const SkinnyArgs& args) {
  SkinnyWork work = {args, GroupsOf(args.w), 31, 0};
  if (work.groups > 1)
    for (work.group_shift = 5; 1 << work.group_shift < args.w.group;) ++work.group_shift;
  work.split_k = SkinnySpansPerSplit(args.w.n, args.w.k) * kSkinnySpan;
  return work;
}

// Of a thread, and where its block keeps things.
struct SkinnyPlace {
  int g, t, k_warp, column_warp;
  int n0, m0;             // first column and row of the block
  int k_begin, stages;    // of the block
  unsigned char* memory;  // shared: stages, scales
  const uint32_t* table;  // shared: of the format
};

template <class Tile>
ASSAY_DEVICE SkinnyPlace PlaceOf(const SkinnyWork& work, unsigned char* memory,
                                 const uint32_t* table) {
  const int lane = ThreadIndex() % kWarp, warp = ThreadIndex() / kWarp;
  const int k_begin = BlockY() * work.split_k, left = work.args.w.k - k_begin;
  return {lane / 4,
          lane % 4,
          warp / 2,
          warp % 2,
          BlockX() * kSkinnyColumns,
          BlockZ() * Tile::kRows,
          k_begin,
          DivideUp(left < work.split_k ? left : work.split_k, Tile::kStageK),
          memory,
          table};
}

// Stage `index` of the block's codes into `to`; zeros beyond n and k. Offsets within the block's
// rows are of 32 bits: its start is the same for all threads and costs them no registers.
template <class Format, class Tile>
ASSAY_DEVICE void CopyCodes(const SkinnyArgs& args, const SkinnyPlace& place, int index,
                            unsigned char* to) {
  constexpr int kPerChunk = 128 / Format::kBits, kChunks = Tile::kStageK / kPerChunk;
  const uint32_t row_bytes = static_cast<uint32_t>(args.w.k) / 8 * Format::kBits;
  const auto* const codes = static_cast<const unsigned char*>(args.w.codes) +
                            static_cast<size_t>(BlockX()) * kSkinnyColumns * row_bytes;
  const int chunk = ThreadIndex() % kChunks, k_begin = place.k_begin + index * Tile::kStageK;
  const int k = k_begin + chunk * kPerChunk;
  ASSAY_UNROLL
  for (int i = 0; i < kSkinnyColumns; i += kSkinnyThreads / kChunks) {
    const int row = i + ThreadIndex() / kChunks;
    const bool valid = place.n0 + row < args.w.n && k < args.w.k;
    const uint32_t from = row * row_bytes + static_cast<uint32_t>(k) / 8 * Format::kBits;
    CopyAsync16(to + row * Tile::kCodeStride + chunk * 16, codes + (valid ? from : 0), valid);
  }
}

// The same of x, but rows beyond m stay as they are: they make sums that nobody stores.
template <class Tile>
ASSAY_DEVICE void CopyX(const SkinnyArgs& args, const SkinnyPlace& place, int index,
                        unsigned char* to) {
  constexpr int kChunks = Tile::kStageK / 8;
  const auto stride = static_cast<uint32_t>(args.x_stride);
  const auto* const x =
      static_cast<const uint16_t*>(args.x) + static_cast<size_t>(BlockZ()) * Tile::kRows * stride;
  const int chunk = ThreadIndex() % kChunks;
  const int k = place.k_begin + index * Tile::kStageK + chunk * 8;
  const int left = args.m - place.m0, rows = left < Tile::kRows ? left : Tile::kRows;
  for (int row = ThreadIndex() / kChunks; row < rows; row += kSkinnyThreads / kChunks) {
    const bool valid = k < args.w.k;
    const uint32_t from = row * stride + static_cast<uint32_t>(k);
    CopyAsync16(to + row * Tile::kXStride + chunk * 16, x + (valid ? from : 0), valid);
  }
}

// The scale and zero point of a column for some units of a stage, on their way from memory.
template <class Tile>
struct SkinnyScales {
  float scale[Tile::kWarpUnits];
  int zero[Tile::kWarpUnits];
};

template <class Format, class Tile>
ASSAY_DEVICE void FetchScales(const SkinnyWork& work, const SkinnyPlace& place, int stage,
                              SkinnyScales<Tile>& out) {
  if constexpr (!Format::kGrouped) return;
  const StoredWeight& w = work.args.w;
  const int n = place.n0 + ThreadIndex() % kSkinnyColumns;
  ASSAY_UNROLL
  for (int u = 0; u < Tile::kWarpUnits; ++u) {
    const int unit = u * Tile::kKWarps + ThreadIndex() / kSkinnyColumns;
    const int k = place.k_begin + stage * Tile::kStageK + unit * Tile::kUnit;
    const bool valid = n < w.n && k < w.k;
    const GroupAt at = {n, k >> work.group_shift, work.groups};
    out.scale[u] = valid ? Format::Scale(w, at) : 0.0f;
    out.zero[u] = valid ? Format::Zero(w, at) : 0;
  }
}

// Where the scales of a stage's unit are kept, [64 columns].
template <class Tile>
ASSAY_DEVICE float* ScalesAt(unsigned char* memory, int stage, int unit) {
  float* const scales = reinterpret_cast<float*>(memory + Tile::kStages * Tile::kStageBytes);
  return scales + (stage % 2 * Tile::kUnits + unit) * kSkinnyColumns;
}
template <class Tile>
ASSAY_DEVICE uint8_t* ZerosAt(unsigned char* memory, int stage, int unit) {
  uint8_t* const zeros = memory + Tile::kStages * Tile::kStageBytes + 4 * Tile::kScales;
  return zeros + (stage % 2 * Tile::kUnits + unit) * kSkinnyColumns;
}

template <class Format, class Tile>
ASSAY_DEVICE void KeepScales(unsigned char* memory, int stage, const SkinnyScales<Tile>& from) {
  if constexpr (!Format::kGrouped) return;
  const int column = ThreadIndex() % kSkinnyColumns;
  ASSAY_UNROLL
  for (int u = 0; u < Tile::kWarpUnits; ++u) {
    const int unit = u * Tile::kKWarps + ThreadIndex() / kSkinnyColumns;
    ScalesAt<Tile>(memory, stage, unit)[column] = from.scale[u];
    ZerosAt<Tile>(memory, stage, unit)[column] = static_cast<uint8_t>(from.zero[u]);
  }
}

// The two A fragments that a lane's 8 inputs of rows g and g + 8 make, `x`: row g at the lane's
// inputs.
template <class Format, class Tile>
ASSAY_DEVICE void LoadXFragments(const unsigned char* x, uint32_t (&a)[2][4]) {
  const Quad rows[2] = {Load16(x), Load16(x + 8 * Tile::kXStride)};
  ASSAY_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Quad v = rows[i];
    if constexpr (Format::kFourApart) {
      a[0][i] = Bytes(v.x, v.z, 0x5410);
      a[0][i + 2] = Bytes(v.x, v.z, 0x7632);
      a[1][i] = Bytes(v.y, v.w, 0x5410);
      a[1][i + 2] = Bytes(v.y, v.w, 0x7632);
    } else {
      a[0][i] = v.x;
      a[0][i + 2] = v.y;
      a[1][i] = v.z;
      a[1][i + 2] = v.w;
    }
  }
}

template <int kRowTiles>
using SkinnySums = float[kRowTiles][4][4];  // [row tile][column tile][fragment]

// A warp's unit of a stage.
template <class Format, typename T, int kRowTiles>
ASSAY_DEVICE void MultiplyUnit(const SkinnyPlace& place, int stage, int unit,
                               SkinnySums<kRowTiles>& sums) {
  using Tile = SkinnyTile<Format, kRowTiles>;
  const unsigned char* const from = place.memory + stage % Tile::kStages * Tile::kStageBytes;
  const int at = unit * Tile::kUnit + 8 * place.t, first = place.column_warp * 32;
  uint32_t a[kRowTiles][2][4];
  const unsigned char* const x = from + Tile::kCodeBytes + place.g * Tile::kXStride + at * 2;
  ASSAY_UNROLL
  for (int i = 0; i < kRowTiles; ++i)
    LoadXFragments<Format, Tile>(x + i * 16 * Tile::kXStride, a[i]);
  const unsigned char* const codes =
      from + (first + place.g) * Tile::kCodeStride + at * Format::kBits / 8;
  const float* const scales = ScalesAt<Tile>(place.memory, stage, unit) + first + 2 * place.t;
  const uint8_t* const zeros = ZerosAt<Tile>(place.memory, stage, unit) + first + place.g;
  ASSAY_UNROLL
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const unsigned char* const mine = codes + j * 8 * Tile::kCodeStride;
    Pair word = {0, 0};
    if constexpr (Format::kBits == 4) {
      word.x = *reinterpret_cast<const uint32_t*>(mine);
    } else {
      word = Load8(mine);
    }
    uint32_t b[4];
    Format::template Widen<T>(word, Format::kGrouped ? zeros[j * 8] : 0, place.table, b);
    const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
    float scale[2] = {0, 0};
    if constexpr (Format::kGrouped) {
      const Pair both = Load8(scales + j * 8);
      scale[0] = FloatOf(both.x);
      scale[1] = FloatOf(both.y);
    }
    ASSAY_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      if constexpr (Format::kGrouped) {
        float sum[4] = {0, 0, 0, 0};
        Mma<T>(sum, a[i][0], b0);
        Mma<T>(sum, a[i][1], b1);
        ASSAY_UNROLL
        for (int c = 0; c < 4; ++c) sums[i][j][c] = Fma(sum[c], scale[c % 2], sums[i][j][c]);
      } else {
        Mma<T>(sums[i][j], a[i][0], b0);
        Mma<T>(sums[i][j], a[i][1], b1);
      }
    }
  }
}

// All stages of the block. Scales: those of a stage are fetched while the stage before the one
// before is multiplied, and laid into shared memory one stage ahead.
template <class Format, typename T, int kRowTiles>
ASSAY_DEVICE void MultiplyStages(const SkinnyWork& work, const SkinnyPlace& place,
                                 SkinnySums<kRowTiles>& sums) {
  using Tile = SkinnyTile<Format, kRowTiles>;
  constexpr int kAhead = Tile::kStages - 1;
  const SkinnyArgs& args = work.args;
  unsigned char* const memory = place.memory;
  // Weights belong to nobody else: they are under way while the kernel before still computes x.
  for (int s = 0; s < kAhead && s < place.stages; ++s)
    CopyCodes<Format, Tile>(args, place, s, memory + s * Tile::kStageBytes);
  SkinnyScales<Tile> scales;
  FetchScales<Format, Tile>(work, place, 0, scales);
  KeepScales<Format, Tile>(memory, 0, scales);
  FetchScales<Format, Tile>(work, place, 1, scales);
  PdlWait();
  for (int s = 0; s < kAhead; ++s) {
    if (s < place.stages)
      CopyX<Tile>(args, place, s, memory + s * Tile::kStageBytes + Tile::kCodeBytes);
    CopyAsyncCommit();
  }
  for (int s = 0; s < place.stages; ++s) {
    CopyAsyncWait<kAhead - 1>();
    SyncThreads();
    const int coming = s + kAhead;
    if (coming < place.stages) {
      unsigned char* const to = memory + coming % Tile::kStages * Tile::kStageBytes;
      CopyCodes<Format, Tile>(args, place, coming, to);
      CopyX<Tile>(args, place, coming, to + Tile::kCodeBytes);
    }
    CopyAsyncCommit();
    KeepScales<Format, Tile>(memory, s + 1, scales);
    FetchScales<Format, Tile>(work, place, s + 2, scales);
    ASSAY_UNROLL
    for (int u = 0; u < Tile::kWarpUnits; ++u)
      MultiplyUnit<Format, T, kRowTiles>(place, s, u * Tile::kKWarps + place.k_warp, sums);
  }
  CopyAsyncWait<0>();  // empty groups; the memory is used for sums next
  PdlTrigger();
}

// Adds the sums of the warps that share k; warps with k_warp 0 have them.
template <int kRowTiles>
ASSAY_DEVICE void AddWarps(const SkinnyPlace& place, SkinnySums<kRowTiles>& sums) {
  float* const memory = reinterpret_cast<float*>(place.memory);
  constexpr int kEach = 16 * kRowTiles;
  const int lane = ThreadIndex() % kWarp;
  ASSAY_UNROLL
  for (int half = 2; half > 0; half /= 2) {
    SyncThreads();
    float* const slot =
        memory + (place.k_warp % half * 2 + place.column_warp) * kEach * kWarp + lane;
    if (place.k_warp >= half && place.k_warp < 2 * half) {
      ASSAY_UNROLL
      for (int i = 0; i < kEach; ++i) slot[i * kWarp] = sums[i / 16][i / 4 % 4][i % 4];
    }
    SyncThreads();
    if (place.k_warp < half) {
      ASSAY_UNROLL
      for (int i = 0; i < kEach; ++i) sums[i / 16][i / 4 % 4][i % 4] += slot[i * kWarp];
    }
  }
}

// Adds the sums of the blocks that share k. Whether this block has them: it came last.
template <int kRowTiles>
ASSAY_DEVICE bool AddBlocks(const SkinnyArgs& args, const SkinnyPlace& place, int* last,
                            SkinnySums<kRowTiles>& sums) {
  constexpr int kEach = 16 * kRowTiles;
  const int splits = GridY(), tile = BlockZ() * GridX() + BlockX();
  const size_t part = static_cast<size_t>(kEach) * 2 * kWarp;
  float* const mine = args.workspace + static_cast<size_t>(tile) * splits * part +
                      place.column_warp * kEach * kWarp + ThreadIndex() % kWarp;
  if (place.k_warp == 0) {
    float* const to = mine + BlockY() * part;
    ASSAY_UNROLL
    for (int i = 0; i < kEach; ++i) to[i * kWarp] = sums[i / 16][i / 4 % 4][i % 4];
  }
  FenceDevice();
  SyncThreads();
  if (ThreadIndex() == 0) {
    const int before = AtomicAdd(args.counters + tile, 1);
    *last = before == splits - 1 ? 1 : 0;
    if (*last != 0) args.counters[tile] = 0;
  }
  SyncThreads();
  if (*last == 0) return false;
  FenceDevice();
  if (place.k_warp != 0) return true;
  ASSAY_UNROLL
  for (int i = 0; i < kEach; ++i) {
    float sum = mine[i * kWarp];
    for (int s = 1; s < splits; ++s) sum += mine[s * part + i * kWarp];
    sums[i / 16][i / 4 % 4][i % 4] = sum;
  }
  return true;
}

template <class Format, typename T>
ASSAY_DEVICE void StoreElement(const SkinnyArgs& args, int row, int column, float sum) {
  if (row >= args.m || column >= args.w.n) return;
  float value = Format::kGrouped ? sum : Format::Scale(args.w, {column, 0, 1}) * sum;
  if (args.bias != nullptr) value += args.bias[column];
  const size_t at = static_cast<size_t>(row) * args.y_stride + column;
  if (args.y_is_t) {
    static_cast<T*>(args.y)[at] = FromFloat<T>(value);
    return;
  }
  float* const y = static_cast<float*>(args.y) + at;
  *y = args.accumulate ? *y + value : value;
}

template <class Format, typename T, int kRowTiles>
ASSAY_KERNEL_FOR_BLOCKS(kSkinnyThreads, (kRowTiles == 1 ? 2 : 1))
SkinnyKernel(const SkinnyWork work) {
  const SkinnyArgs& args = work.args;
  using Tile = SkinnyTile<Format, kRowTiles>;
  ASSAY_DYNAMIC_SHARED(memory);
  ASSAY_SHARED(uint32_t, table, Format::kTable);
  ASSAY_SHARED(int, last, 1);
  const SkinnyPlace place = PlaceOf<Tile>(work, memory, table);
  Format::template FillTable<T>(table);  // seen after the first barrier of the stages
  SkinnySums<kRowTiles> sums = {};
  MultiplyStages<Format, T, kRowTiles>(work, place, sums);
  AddWarps<kRowTiles>(place, sums);
  if (GridY() > 1 && !AddBlocks<kRowTiles>(args, place, last, sums)) return;
  if (place.k_warp != 0) return;
  ASSAY_UNROLL
  for (int i = 0; i < kRowTiles * 16; ++i) {
    const int tile = i / 16, j = i / 4 % 4, c = i % 4;
    StoreElement<Format, T>(args, place.m0 + tile * 16 + place.g + c / 2 * 8,
                            place.n0 + place.column_warp * 32 + j * 8 + 2 * place.t + c % 2,
                            sums[tile][j][c]);
  }
}

template <class Format, typename T, int kRowTiles>
int LaunchSkinny(const SkinnyArgs& args, const LaunchContext& context) {
  using Tile = SkinnyTile<Format, kRowTiles>;
  const LaunchGrid grid = {.x = DivideUp(args.w.n, kSkinnyColumns),
                           .y = SkinnySplits(args.w.n, args.w.k),
                           .z = DivideUp(args.m, Tile::kRows),
                           .threads = kSkinnyThreads,
                           .shared_bytes = Tile::kBytes};
  return Launch(grid, context, SkinnyKernel<Format, T, kRowTiles>, WorkOf(args));
}

template <class Format, typename T>
int SkinnyByRows(const SkinnyArgs& args, const LaunchContext& context) {
  switch (SkinnyRows(args.m)) {
    case 16:
      return LaunchSkinny<Format, T, 1>(args, context);
    case 32:
      return LaunchSkinny<Format, T, 2>(args, context);
    case 48:
      return LaunchSkinny<Format, T, 3>(args, context);
    default:
      return LaunchSkinny<Format, T, 4>(args, context);
  }
}

template <class Format>
int SkinnyByType(const SkinnyArgs& args, const LaunchContext& context) {
  return args.t == Half::kF16 ? SkinnyByRows<Format, F16>(args, context)
                              : SkinnyByRows<Format, Bf16>(args, context);
}

// One file each: they take long to compile.
int SkinnyInt4(const SkinnyArgs& args, const LaunchContext& context);
int SkinnyInt8Channel(const SkinnyArgs& args, const LaunchContext& context);
int SkinnyInt8Group(const SkinnyArgs& args, const LaunchContext& context);
int SkinnyE4M3(const SkinnyArgs& args, const LaunchContext& context);
int SkinnyNf4(const SkinnyArgs& args, const LaunchContext& context);

}  // namespace assay::ASSAY_SIMT
