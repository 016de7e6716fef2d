// What one warp of decode attention does: queries of one KV head against pages of 16 positions,
// softmax streamed over the pages (Milakov and Gimelshein 2018; Dao et al. 2022).
//
// Fragments (base/cuda/simt_math.h), lane l, g = l / 4, t = l % 4. Pages of 16-bit rows come in as
// usual. Rows of 8-bit codes are loaded as if each two were one number: of the keys a lane so gets
// elements 4t .. 4t + 3 of 16, which become the products' elements 2t, 2t + 1, 2t + 8, 2t + 9, and
// queries are loaded in that order; of the values it gets columns 2g and 2g + 1, so that tile 2j
// of the outputs has the even columns of 16 and tile 2j + 1 the odd ones.
//
// Scales of keys multiply scores. Scales of values multiply weights, relative to the largest scale
// seen so far, as weights are 16-bit and small scales would lose their digits.
#pragma once
#include "engine/ops/cuda/decode_attention.h"
#include "engine/ops/cuda/kv_codes.h"

namespace assay::ASSAY_SIMT {

template <typename T, KvCodes kFormat, int kWidth>
struct DecodeShape {
  static constexpr bool kCoded = kFormat != KvCodes::kHalf;
  static constexpr int kWarps = kWidth > 128 ? 2 : 4;
  static constexpr int kSteps = kWidth / 16;                                // products along a row
  static constexpr int kUnits = kWidth * (kCoded ? 1 : 2) / 16;             // of 16 bytes, of a row
  static constexpr int kRowUnits = 2 * kKvBlockTokens * kUnits;             // keys, then values
  static constexpr int kPageUnits = kRowUnits + (kCoded ? 8 : 0);           // and their scales
  static constexpr int kFitting = (52 << 10) / (16 * kPageUnits * kWarps);  // shared memory
  static constexpr int kStages = kFitting < 2 ? 2 : kFitting > 4 ? 4 : kFitting;
  static constexpr bool kQueriesInRegisters = kWidth <= 128;
  static constexpr int kCopiesAtOnce = kWidth > 128 ? 1 : 4;  // without cp.async: in registers
  static constexpr int kQueryUnits = kQueriesInRegisters ? 0 : kSteps * kWarp;
  static constexpr size_t kSharedBytes = 16 * (size_t{kStages} * kWarps * kPageUnits + kQueryUnits);
};

// Positions that a block looks at.
struct DecodeRange {
  int first = 0, last = 0;            // positions that the row sees
  int first_page = 0, last_page = 0;  // of this split
};

template <typename T, KvCodes kFormat, int kWidth>
class DecodeWarp {
 public:
  using Shape = DecodeShape<T, kFormat, kWidth>;
  static constexpr bool kCoded = Shape::kCoded;

  ASSAY_DEVICE DecodeWarp(const DecodeAttentionArgs& args, const DecodeRange& range)
      : range_(range), scale_(args.scale * kLog2E) {
    ASSAY_UNROLL
    for (int n = 0; n < kWidth / 8; ++n) o_[n][0] = o_[n][1] = o_[n][2] = o_[n][3] = 0;
    max_[0] = max_[1] = kNoScore;
    sum_[0] = sum_[1] = 0;
  }

  // Fragment `step` of the queries [group][head_dim] that share the KV head.
  static ASSAY_DEVICE Quad QueryFragment(const DecodeAttentionArgs& args, const uint16_t* q,
                                         int step) {
    const int g = ThreadIndex() % kWarp / 4, t = ThreadIndex() % 4;
    const int group = args.heads / args.kv.kv_heads, head_dim = args.kv.head_dim;
    const auto pair = [&](int row, int at) -> uint32_t {
      if (row >= group || at >= head_dim) return 0;
      return *reinterpret_cast<const uint32_t*>(q + row * head_dim + at);
    };
    const int low = 16 * step + (kCoded ? 4 * t : 2 * t), high = low + (kCoded ? 2 : 8);
    return {pair(g, low), pair(g + 8, low), pair(g, high), pair(g + 8, high)};
  }

  // Begins to copy a page, block `block` of the pool, to `to` [kPageUnits]. All lanes.
  static ASSAY_DEVICE void Load(const KvLayer& kv, int head, int block, int page,
                                const DecodeRange& range, Quad* to) {
    const int lane = ThreadIndex() % kWarp;
    const int units = KvWidth(kv.head_dim) * (kCoded ? 1 : 2) / 16;  // of a row of the pool
    const int64_t row = KvFirstRow(kv.kv_heads, block, head, 0);
    const auto* const from = static_cast<const unsigned char*>(kv.codes) + row * units * 16;
    ASSAY_UNROLL_BY(Shape::kCopiesAtOnce)
    for (int i = lane; i < Shape::kRowUnits; i += kWarp) {
      const int r = i / Shape::kUnits, unit = i % Shape::kUnits;
      const int position = page * kKvBlockTokens + r % kKvBlockTokens;
      // Zeros, not what an earlier owner left: 0 times NaN would be NaN.
      const bool valid = unit < units && position >= range.first && position < range.last;
      CopyAsync16(to + SwizzledUnit<Shape::kUnits>(r, unit), from + (r * units + unit) * 16, valid);
    }
    if constexpr (kCoded) {
      if (lane < 8) CopyAsync16(to + Shape::kRowUnits + lane, kv.scales + row + 4 * lane, true);
    }
  }

  // query(step): a fragment of the queries.
  template <typename Query>
  ASSAY_DEVICE void Step(const Quad* page_units, int page, const Query& query) {
    float s[2][4] = {};
    Score(page_units, query, s);
    const int t = ThreadIndex() % 4;
    const auto* const scales = reinterpret_cast<const float*>(page_units + Shape::kRowUnits);
    float value_scale[2][2];
    ASSAY_UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      ASSAY_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int token = 8 * tile + 2 * t + j, position = page * kKvBlockTokens + token;
        const bool seen = position >= range_.first && position < range_.last;
        const float scale = kCoded ? scale_ * scales[token] : scale_;
        value_scale[tile][j] = kCoded && seen ? scales[kKvBlockTokens + token] : 0;
        s[tile][j] = seen ? s[tile][j] * scale : MinusInfinity();
        s[tile][2 + j] = seen ? s[tile][2 + j] * scale : MinusInfinity();
      }
    }
    float keep[2];
    Softmax(s, keep);
    if constexpr (kCoded) ScaleValues(value_scale, s, keep);
    Rescale(keep);
    const uint32_t p[4] = {Pack2<T>(s[0][0], s[0][1]), Pack2<T>(s[0][2], s[0][3]),
                           Pack2<T>(s[1][0], s[1][1]), Pack2<T>(s[1][2], s[1][3])};
    AddValues(page_units + kKvBlockTokens * Shape::kUnits, p);
  }

  // Of rows g and g + 8, over all lanes.
  ASSAY_DEVICE float max(int half) const { return max_[half]; }
  ASSAY_DEVICE float sum(int half) const { return QuadSum(sum_[half]); }
  // f(half, column, value) for every output of this lane, each times factor[half].
  template <typename F>
  ASSAY_DEVICE void ForOutputs(const float (&factor)[2], const F& f) const {
    const int t = ThreadIndex() % 4;
    ASSAY_UNROLL
    for (int n = 0; n < kWidth / 8; ++n) {
      ASSAY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int column = kCoded ? n / 2 * 16 + 4 * t + i % 2 * 2 + n % 2 : n * 8 + 2 * t + i % 2;
        f(i / 2, column, o_[n][i] * (kCoded ? largest_ * factor[i / 2] : factor[i / 2]));
      }
    }
  }

 private:
  // The row of shared memory that this lane names to LoadMatrix4: matrices 0 and 1 are the first
  // two of (positions 0-7, 8-15) x (units u, u + 1), positions first where kPositionsFirst.
  template <bool kPositionsFirst>
  static ASSAY_DEVICE const Quad* MatrixRow(const Quad* rows, int unit) {
    const int lane = ThreadIndex() % kWarp, matrix = lane / 8;
    const int position = (kPositionsFirst ? matrix % 2 : matrix / 2) * 8 + lane % 8;
    const int at = unit + (kPositionsFirst ? matrix / 2 : matrix % 2);
    return rows + SwizzledUnit<Shape::kUnits>(position, Shape::kUnits == 1 ? 0 : at);
  }

  template <typename Query>
  ASSAY_DEVICE void Score(const Quad* keys, const Query& query, float (&s)[2][4]) {
    if constexpr (Shape::kQueriesInRegisters) {
      ASSAY_UNROLL
      for (int step = 0; step < Shape::kSteps; step += 2) ScoreTwoSteps(keys, query, step, s);
    } else {
      ASSAY_UNROLL_BY(2)
      for (int step = 0; step < Shape::kSteps; step += 2) ScoreTwoSteps(keys, query, step, s);
    }
  }
  template <typename Query>
  ASSAY_DEVICE void ScoreTwoSteps(const Quad* keys, const Query& query, int first,
                                  float (&s)[2][4]) {
    uint32_t r[4];
    ASSAY_UNROLL
    for (int i = 0; i < (Shape::kSteps < 2 ? Shape::kSteps : 2); ++i) {
      const Quad fragment = query(first + i);
      const uint32_t a[4] = {fragment.x, fragment.y, fragment.z, fragment.w};
      if constexpr (kCoded) {
        if (i == 0) LoadMatrix4(r, MatrixRow<true>(keys, first));
        ASSAY_UNROLL
        for (int tile = 0; tile < 2; ++tile) {
          const uint32_t four = r[2 * i + tile];
          const uint32_t b[2] = {CodePair<T, kFormat, 0, 1>::Of(four),
                                 CodePair<T, kFormat, 2, 3>::Of(four)};
          Mma<T>(s[tile], a, b);
        }
      } else {
        LoadMatrix4(r, MatrixRow<false>(keys, 2 * (first + i)));
        const uint32_t low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
        Mma<T>(s[0], a, low);
        Mma<T>(s[1], a, high);
      }
    }
  }

  // Scores become weights; keep: what the sums so far are multiplied by.
  ASSAY_DEVICE void Softmax(float (&s)[2][4], float (&keep)[2]) {
    ASSAY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int i = 2 * half;
      const float most = fmaxf(fmaxf(s[0][i], s[0][i + 1]), fmaxf(s[1][i], s[1][i + 1]));
      const float now = fmaxf(max_[half], QuadMax(most));
      keep[half] = Exp2(max_[half] - now);
      max_[half] = now;
      float sum = 0;
      ASSAY_UNROLL
      for (int tile = 0; tile < 2; ++tile) {
        ASSAY_UNROLL
        for (int j = 0; j < 2; ++j) {
          s[tile][i + j] = Exp2(s[tile][i + j] - now);
          sum += s[tile][i + j];
        }
      }
      sum_[half] = sum_[half] * keep[half] + sum;
    }
  }

  // Weights times scales of values, relative to the largest.
  ASSAY_DEVICE void ScaleValues(const float (&scale)[2][2], float (&p)[2][4], float (&keep)[2]) {
    const float most =
        QuadMax(fmaxf(fmaxf(scale[0][0], scale[0][1]), fmaxf(scale[1][0], scale[1][1])));
    const float now = fmaxf(largest_, most), inverse = 1.0f / now;
    const float shrink = now == largest_ ? 1 : largest_ * inverse;
    keep[0] *= shrink;
    keep[1] *= shrink;
    largest_ = now;
    ASSAY_UNROLL
    for (int i = 0; i < 4; ++i) {
      p[0][i] *= scale[0][i % 2] * inverse;
      p[1][i] *= scale[1][i % 2] * inverse;
    }
  }

  ASSAY_DEVICE void Rescale(const float (&keep)[2]) {
    if (Ballot(keep[0] != 1 || keep[1] != 1) == 0) return;
    ASSAY_UNROLL
    for (int n = 0; n < kWidth / 8; ++n) {
      ASSAY_UNROLL
      for (int i = 0; i < 4; ++i) o_[n][i] *= keep[i / 2];
    }
  }

  ASSAY_DEVICE void AddValues(const Quad* values, const uint32_t (&p)[4]) {
    uint32_t r[4];
    ASSAY_UNROLL
    for (int step = 0; step < Shape::kSteps; ++step) {
      if constexpr (kCoded) {
        if (step % 2 == 0) LoadMatrix4Transposed(r, MatrixRow<true>(values, step));
        const uint32_t low = r[step % 2 * 2], high = r[step % 2 * 2 + 1];
        const uint32_t even[2] = {CodePair<T, kFormat, 0, 2>::Of(low),
                                  CodePair<T, kFormat, 0, 2>::Of(high)};
        const uint32_t odd[2] = {CodePair<T, kFormat, 1, 3>::Of(low),
                                 CodePair<T, kFormat, 1, 3>::Of(high)};
        Mma<T>(o_[2 * step], p, even);
        Mma<T>(o_[2 * step + 1], p, odd);
      } else {
        LoadMatrix4Transposed(r, MatrixRow<true>(values, 2 * step));
        const uint32_t low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
        Mma<T>(o_[2 * step], p, low);
        Mma<T>(o_[2 * step + 1], p, high);
      }
    }
  }

  const DecodeRange range_;
  const float scale_;
  float o_[kWidth / 8][4];
  float max_[2], sum_[2];   // of rows g and g + 8; sum_: of this lane's columns
  float largest_ = 1e-30f;  // scale of values so far
};

}  // namespace assay::ASSAY_SIMT
