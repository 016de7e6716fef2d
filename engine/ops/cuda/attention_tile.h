// Attention of up to 64 query rows of one head over the keys of their sequence, FlashAttention-2
// style (Dao 2023): 16 rows to a warp, keys in tiles that begin at multiples of kTokens, so that a
// row's sums are the same whichever rows share its block.
//
// Shared memory holds the queries, one tile of keys and one of values, [rows][kUnits] of 16 bytes
// each (SwizzledUnit); values are on their way while scores are computed, the next keys while
// outputs are. A Source copies keys (0) or values (1) of positions [from, from + kTokens) there, as
// T, zeros outside of [first, last).
#pragma once
#include "engine/ops/cuda/kv_codes.h"

namespace assay::ASSAY_SIMT {

template <int kWidth>
struct TileShape {
  // Warps that share 16 rows: each has scores of its own and a part of the outputs' columns.
  static constexpr int kSharing = kWidth > 128 ? 2 : 1;
  static constexpr int kRowGroups = kQueryTileRows / 16;
  static constexpr int kThreads = kRowGroups * kSharing * kWarp;
  static constexpr int kTokens = kWidth <= 128 ? 64 : 32;
  static constexpr int kUnits = kWidth / 8, kSteps = kWidth / 16;
  static constexpr int kQueryUnits = kQueryTileRows * kUnits, kTokenUnits = kTokens * kUnits;
  static constexpr size_t kSharedBytes = 16 * (kQueryUnits + 2 * kTokenUnits);
  static constexpr bool kQueriesInRegisters = kWidth <= 96;
  static constexpr int kOutputSteps = kSteps / kSharing;  // of 16 columns, of a warp
};

// The rows of a block: q and y are those of its first row and its head.
struct TileRows {
  const uint16_t* q = nullptr;
  uint16_t* y = nullptr;
  int64_t q_stride = 0, y_stride = 0;  // elements, even
  bool vector = false;                 // q can be read 16 bytes at once
  int rows = 0, head_dim = 0;
  int start = 0;            // position of row 0
  int first = 0, last = 0;  // positions that any row sees
  int window = 0;           // positions a row can look back, itself included; 0 = all
  bool causal = true;
  float scale = 0;
};

// 16 bytes of a row of head_dim elements, zeros behind its end.
ASSAY_DEVICE Quad LoadUnit(const uint16_t* row, int unit, int head_dim, bool vector) {
  if (8 * unit >= head_dim) return {0, 0, 0, 0};
  if (vector) return Load16(row + 8 * unit);
  const auto pair = [&](int at) -> uint32_t {
    return at < head_dim ? *reinterpret_cast<const uint32_t*>(row + at) : 0;
  };
  return {pair(8 * unit), pair(8 * unit + 2), pair(8 * unit + 4), pair(8 * unit + 6)};
}

// Rows of T side by side in a matrix (encoders): position p of the sequence in row p.
struct StridedSource {
  const uint16_t *k, *v;  // of the sequence's first row and the head
  int64_t stride[2];      // of each: elements, even
  int head_dim;
  bool vector;

  template <typename T, int kWidth>
  ASSAY_DEVICE void Load(Quad* to, int k_or_v, int from, int, int last) const {
    constexpr int kUnits = TileShape<kWidth>::kUnits;
    ASSAY_UNROLL_BY(1)
    for (int i = ThreadIndex(); i < TileShape<kWidth>::kTokenUnits; i += ThreadsOfBlock()) {
      const int token = i / kUnits, unit = i % kUnits;
      const uint16_t* const row =
          (k_or_v == 0 ? k + (from + token) * stride[0] : v + (from + token) * stride[1]);
      Quad* const place = to + SwizzledUnit<kUnits>(token, unit);
      const bool valid = from + token < last && 8 * unit < head_dim;
      if (vector) {
        CopyAsync16(place, row + 8 * unit, valid);
      } else {
        Store16(place, valid ? LoadUnit(row, unit, head_dim, false) : Quad{0, 0, 0, 0});
      }
    }
  }
};

// The paged pool; codes of 8 bits become scale * code on the way in.
template <KvCodes kFormat>
struct PagedSource {
  KvLayer kv;
  const int32_t* table;
  int head;

  template <typename T, int kWidth>
  ASSAY_DEVICE void Load(Quad* to, int k_or_v, int from, int first, int last) const {
    constexpr int kPages = TileShape<kWidth>::kTokens / kKvBlockTokens;
    const int lane = ThreadIndex() % kWarp, page = from / kKvBlockTokens + lane;
    const bool used =
        lane < kPages && page >= first / kKvBlockTokens && page * kKvBlockTokens < last;
    const int mine = used ? table[page] : 0;
    ASSAY_UNROLL_BY(1)
    for (int i = 0; i < kPages; ++i) {
      const int at = i * kKvBlockTokens, position = from + at;
      LoadPage<T, kWidth>(to, at, KvFirstRow(kv.kv_heads, Shuffle(mine, i), head, k_or_v),
                          first - position, last - position);
    }
  }

 private:
  // Tokens [first, last) of a page, the rows from `row` on of the pool, to token `at` of the tile.
  template <typename T, int kWidth>
  ASSAY_DEVICE void LoadPage(Quad* to, int at, int64_t row, int first, int last) const {
    // A unit of the pool is one of shared memory, or, of codes, two.
    constexpr int kUnits = TileShape<kWidth>::kUnits;
    constexpr int kPoolUnits = kFormat == KvCodes::kHalf ? kUnits : kUnits / 2;
    const int units = KvWidth(kv.head_dim) * KvCodeBytes(kFormat) / 16;
    const auto* const page = static_cast<const unsigned char*>(kv.codes) + row * units * 16;
    for (int i = ThreadIndex(); i < kKvBlockTokens * kPoolUnits; i += TileShape<kWidth>::kThreads) {
      const int token = i / kPoolUnits, unit = i % kPoolUnits;
      const bool valid = token >= first && token < last && unit < units;
      const auto* const codes = page + (token * units + unit) * 16;
      if constexpr (kFormat == KvCodes::kHalf) {
        CopyAsync16(to + SwizzledUnit<kUnits>(at + token, unit), codes, valid);
      } else {
        const Quad zero = {0, 0, 0, 0};
        const Quad sixteen = valid ? Load16(codes) : zero;
        const float scale = valid ? kv.scales[row + token] : 0;
        Store16(to + SwizzledUnit<kUnits>(at + token, 2 * unit),
                Decoded<T>(sixteen.x, sixteen.y, scale));
        Store16(to + SwizzledUnit<kUnits>(at + token, 2 * unit + 1),
                Decoded<T>(sixteen.z, sixteen.w, scale));
      }
    }
  }

  template <typename T>
  static ASSAY_DEVICE uint32_t Times(uint32_t pair, float scale) {
    const Two two = Unpack2<T>(pair);
    return Pack2<T>(two.low * scale, two.high * scale);
  }
  template <typename T>
  static ASSAY_DEVICE Quad Decoded(uint32_t low, uint32_t high, float scale) {
    return {Times<T>(CodePair<T, kFormat, 0, 1>::Of(low), scale),
            Times<T>(CodePair<T, kFormat, 2, 3>::Of(low), scale),
            Times<T>(CodePair<T, kFormat, 0, 1>::Of(high), scale),
            Times<T>(CodePair<T, kFormat, 2, 3>::Of(high), scale)};
  }
};

// 16 rows of a tile.
template <typename T, int kWidth>
class TileWarp {
 public:
  using Shape = TileShape<kWidth>;
  static constexpr int kTokens = Shape::kTokens, kTiles = 2 * Shape::kOutputSteps;

  // queries: [64][kUnits], complete.
  ASSAY_DEVICE TileWarp(const TileRows& rows, const Quad* queries)
      : rows_(rows), queries_(queries), scale_(rows.scale * kLog2E) {
    ASSAY_UNROLL
    for (int n = 0; n < kTiles; ++n) o_[n][0] = o_[n][1] = o_[n][2] = o_[n][3] = 0;
    max_[0] = max_[1] = kNoScore;
    sum_[0] = sum_[1] = 0;
    if constexpr (Shape::kQueriesInRegisters) {
      ASSAY_UNROLL
      for (int step = 0; step < Shape::kSteps; ++step) LoadQuery(step, fragments_[step]);
    }
  }

  // Whether any row of the warp sees a position from `from` on.
  ASSAY_DEVICE bool Sees(int from) const {
    const int first = FirstRow();
    return first < rows_.rows && (!rows_.causal || from <= rows_.start + first + 15);
  }

  // Weights of the keys in shared memory, positions from `from` on.
  ASSAY_DEVICE void Score(const Quad* keys, int from, float (&s)[kTokens / 8][4]) {
    ASSAY_UNROLL
    for (int n = 0; n < kTokens / 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
    ASSAY_UNROLL
    for (int step = 0; step < Shape::kSteps; ++step) {
      uint32_t loaded[4], r[4];
      if constexpr (!Shape::kQueriesInRegisters) LoadQuery(step, loaded);
      const auto& a =
          Shape::kQueriesInRegisters ? fragments_[Shape::kQueriesInRegisters ? step : 0] : loaded;
      ASSAY_UNROLL
      for (int n = 0; n < kTokens / 16; ++n) {
        const int lane = ThreadIndex() % kWarp, token = 16 * n + lane / 16 * 8 + lane % 8;
        LoadMatrix4(r, keys + SwizzledUnit<Shape::kUnits>(token, 2 * step + lane / 8 % 2));
        const uint32_t low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
        Mma<T>(s[2 * n], a, low);
        Mma<T>(s[2 * n + 1], a, high);
      }
    }
    Mask(from, s);
    Softmax(s);
  }

  ASSAY_DEVICE void AddValues(const Quad* values, const float (&p)[kTokens / 8][4]) {
    ASSAY_UNROLL
    for (int n = 0; n < kTokens / 16; ++n) {
      const uint32_t a[4] = {Pack2<T>(p[2 * n][0], p[2 * n][1]), Pack2<T>(p[2 * n][2], p[2 * n][3]),
                             Pack2<T>(p[2 * n + 1][0], p[2 * n + 1][1]),
                             Pack2<T>(p[2 * n + 1][2], p[2 * n + 1][3])};
      ASSAY_UNROLL
      for (int step = 0; step < Shape::kOutputSteps; ++step) {
        uint32_t r[4];
        const int lane = ThreadIndex() % kWarp, token = 16 * n + lane / 8 % 2 * 8 + lane % 8;
        const int unit = 2 * (FirstStep() + step) + lane / 16;
        LoadMatrix4Transposed(r, values + SwizzledUnit<Shape::kUnits>(token, unit));
        const uint32_t low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
        Mma<T>(o_[2 * step], a, low);
        Mma<T>(o_[2 * step + 1], a, high);
      }
    }
  }

  ASSAY_DEVICE void Store() const {
    const int g = ThreadIndex() % kWarp / 4, t = ThreadIndex() % 4;
    ASSAY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = FirstRow() + g + 8 * half;
      const float inverse = 1.0f / QuadSum(sum_[half]);
      if (row >= rows_.rows) continue;
      uint16_t* const y = rows_.y + row * rows_.y_stride;
      ASSAY_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        const int column = 16 * FirstStep() + 8 * n + 2 * t;
        if (column >= rows_.head_dim) continue;
        *reinterpret_cast<uint32_t*>(y + column) =
            Pack2<T>(o_[n][2 * half] * inverse, o_[n][2 * half + 1] * inverse);
      }
    }
  }

 private:
  static ASSAY_DEVICE int FirstRow() { return ThreadIndex() / kWarp % Shape::kRowGroups * 16; }
  static ASSAY_DEVICE int FirstStep() {
    return ThreadIndex() / kWarp / Shape::kRowGroups * Shape::kOutputSteps;
  }

  ASSAY_DEVICE void LoadQuery(int step, uint32_t (&a)[4]) const {
    const int lane = ThreadIndex() % kWarp, row = FirstRow() + lane / 8 % 2 * 8 + lane % 8;
    LoadMatrix4(a, queries_ + SwizzledUnit<Shape::kUnits>(row, 2 * step + lane / 16));
  }

  // Scores of base 2; minus infinity where a row does not see a position.
  ASSAY_DEVICE void Mask(int from, float (&s)[kTokens / 8][4]) const {
    const int g = ThreadIndex() % kWarp / 4, t = ThreadIndex() % 4;
    const int first = rows_.start + FirstRow(), last = first + 15;  // positions of the warp's rows
    const bool all = from + kTokens <= (rows_.causal ? first + 1 : rows_.last) &&
                     (rows_.window == 0 || from > last - rows_.window);
    ASSAY_UNROLL
    for (int n = 0; n < kTokens / 8; ++n) {
      ASSAY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int key = from + 8 * n + 2 * t + i % 2, position = first + g + i / 2 * 8;
        const bool seen = all || (key < rows_.last && (!rows_.causal || key <= position) &&
                                  (rows_.window == 0 || key > position - rows_.window));
        s[n][i] = seen ? s[n][i] * scale_ : MinusInfinity();
      }
    }
  }

  ASSAY_DEVICE void Softmax(float (&s)[kTokens / 8][4]) {
    float keep[2];
    ASSAY_UNROLL
    for (int half = 0; half < 2; ++half) {
      float most = s[0][2 * half], sum = 0;
      ASSAY_UNROLL
      for (int n = 0; n < kTokens / 8; ++n)
        most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      const float now = fmaxf(max_[half], QuadMax(most));
      keep[half] = Exp2(max_[half] - now);
      max_[half] = now;
      ASSAY_UNROLL
      for (int n = 0; n < kTokens / 8; ++n) {
        ASSAY_UNROLL
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[n][i] = Exp2(s[n][i] - now);
          sum += s[n][i];
        }
      }
      sum_[half] = sum_[half] * keep[half] + sum;
    }
    if (Ballot(keep[0] != 1 || keep[1] != 1) == 0) return;
    ASSAY_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      ASSAY_UNROLL
      for (int i = 0; i < 4; ++i) o_[n][i] *= keep[i / 2];
    }
  }

  const TileRows rows_;
  const Quad* const queries_;
  const float scale_;
  uint32_t fragments_[Shape::kQueriesInRegisters ? Shape::kSteps : 1][4];
  float o_[kTiles][4];
  float max_[2], sum_[2];  // of rows g and g + 8; sum_: of this lane's columns
};

// All of a block, after PdlWait; `memory`: kSharedBytes.
template <typename T, int kWidth, typename Source>
ASSAY_DEVICE void RunTile(const TileRows& rows, const Source& source, unsigned char* memory) {
  using Shape = TileShape<kWidth>;
  constexpr int kTokens = Shape::kTokens;
  Quad* const queries = reinterpret_cast<Quad*>(memory);
  Quad* const keys = queries + Shape::kQueryUnits;
  Quad* const values = keys + Shape::kTokenUnits;
  for (int i = ThreadIndex(); i < Shape::kQueryUnits; i += Shape::kThreads) {
    const int row = i / Shape::kUnits, unit = i % Shape::kUnits;
    const Quad zero = {0, 0, 0, 0};
    Store16(queries + SwizzledUnit<Shape::kUnits>(row, unit),
            row < rows.rows
                ? LoadUnit(rows.q + row * rows.q_stride, unit, rows.head_dim, rows.vector)
                : zero);
  }
  const auto load = [&](Quad* to, int k_or_v, int from) {
    if (from < rows.last) source.template Load<T, kWidth>(to, k_or_v, from, rows.first, rows.last);
    CopyAsyncCommit();
  };
  const int begin = rows.first / kTokens * kTokens;
  load(keys, 0, begin);
  SyncThreads();
  TileWarp<T, kWidth> warp(rows, queries);
  for (int from = begin; from < rows.last; from += kTokens) {
    float s[kTokens / 8][4];
    const bool sees = warp.Sees(from);
    load(values, 1, from);
    CopyAsyncWait<1>();
    SyncThreads();  // the keys are there
    if (sees) warp.Score(keys, from, s);
    SyncThreads();  // and free
    load(keys, 0, from + kTokens);
    CopyAsyncWait<1>();
    SyncThreads();  // the values are there
    if (sees) warp.AddValues(values, s);
    SyncThreads();  // and free
  }
  CopyAsyncWait<0>();
  PdlTrigger();
  warp.Store();
}

// Whether rows that begin at `base`, `stride` elements apart, head_dim of them to a head, can be
// read 16 bytes at once.
inline bool IsVectorizable(const void* base, int64_t stride, int head_dim) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride % 8 == 0 && head_dim % 8 == 0;
}

}  // namespace assay::ASSAY_SIMT
