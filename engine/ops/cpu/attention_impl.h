// Attention of one tile of query vectors over its keys, over an eight-lane vector type V: softmax
// streamed over tiles of kKeyTile keys (Milakov and Gimelshein 2018; Dao et al. 2022).
//
// Order of sums, the same for every shape of tile: a score adds over head_dim in eight lanes, then
// over the lanes; an output adds p v over the keys one by one, ascending; both with MulAdd. Keys
// that a row may not see have weight exactly 0, and a tile of only such keys leaves the row's state
// as it was, so rows of different reach can share a tile.
//
// Where rows are read in 16 bit by near queries (RecentRows), a chunk of keys that some queries of
// the tile read so and others as codes is scored both ways, each row takes its own, and its values
// are added in up to three passes (first positions, codes, window), whose weights are 0 where a row
// reads the other form. The passes follow the keys of every single row upwards, so its sum is the
// same whichever rows share its tile.
#pragma once
#include "engine/ops/cpu/kernels_impl.h"

namespace assay {

template <class V>
class AttentionKernel {
 public:
  static void Run(const AttentionTile& tile) {
    AttentionKernel kernel(tile);
    kernel.LoadQueries();
    int first = 0, last = tile.num_keys;  // keys that any row of the tile sees
    if (tile.causal) {
      last = tile.first_position + tile.rows;
      if (tile.window > 0) first = tile.first_position + 1 - tile.window;
      if (first < 0) first = 0;
    }
    for (int key = first / kKeyTile * kKeyTile; key < last; key += kKeyTile) {
      const int end = key + kKeyTile < last ? key + kKeyTile : last;
      kernel.Step(key, key > first ? key : first, end);
    }
    kernel.StoreOutputs();
  }

 private:
  using Element = ElementKernels<V>;

  explicit AttentionKernel(const AttentionTile& tile)
      : t_(tile), vectors_(tile.rows * tile.heads), width_((tile.head_dim + 7) / 8 * 8) {}

  // Rows of K or V of one chunk as f32 or f16, `stride` elements apart.
  struct Chunk {
    const void* data;
    int64_t stride;
    bool half;
  };

  void LoadQueries() {
    for (int r = 0; r < t_.rows; ++r) {
      for (int h = 0; h < t_.heads; ++h) {
        const float* from = t_.q + r * t_.q_stride + h * t_.head_dim;
        float* to = q_ + (r * t_.heads + h) * width_;
        for (int i = 0; i < t_.head_dim; ++i) to[i] = from[i] * t_.scale;
        if (t_.source.key_scale != nullptr) {
          for (int i = 0; i < t_.head_dim; ++i) to[i] *= t_.source.key_scale[i];
        }
        for (int i = t_.head_dim; i < width_; ++i) to[i] = 0;
      }
    }
    if (t_.source.int8_scores) {
      for (int m = 0; m < vectors_; ++m)
        EncodeKvI8(q_ + m * width_, t_.head_dim, codes_ + m * QueryCodeBytes());
    }
    for (int i = 0; i < vectors_ * width_; ++i) o_[i] = 0;
    for (int m = 0; m < vectors_; ++m) {
      max_[m] = -1e30f;  // finite, so that a fully masked step computes e^0 = 1, not NaN
      V::Zero().Store(sum_ + m * 8);
    }
  }

  // Keys [first, last) of the tile that begins at `key`.
  void Step(int key, int first, int last) {
    const int begin = first / kKeyChunk * kKeyChunk;
    for (int at = begin; at < last; at += kKeyChunk) ScoreChunk(at, last, s_ + (at - key));
    const int end = (last + kKeyChunk - 1) / kKeyChunk * kKeyChunk;
    for (int m = 0; m < vectors_; ++m) Softmax(m, key, begin - key, end - key);
    for (int at = begin; at < last; at += kKeyChunk) {
      const int from = first > at ? first - at : 0;
      const int to = last - at < kKeyChunk ? last - at : kKeyChunk;
      AddChunk(at, from, to, s_ + (at - key));
    }
  }

  // How the queries of the tile read the 16 keys from `at` on.
  bool ReadsHalves(int at) const {
    const RecentRows& recent = t_.source.recent;
    return at < recent.sinks ||
           (recent.window > 0 && at + kKeyChunk - 1 > t_.first_position - recent.window);
  }
  bool ReadsCodes(int at) const {
    const RecentRows& recent = t_.source.recent;
    return at + kKeyChunk > recent.sinks && at <= t_.first_position + t_.rows - 1 - recent.window;
  }

  // Scores of keys [at, last), of up to one chunk.
  void ScoreChunk(int at, int last, float* scores) {
    if (!ReadsHalves(at)) return ScoreStored(at, last, scores);
    GatherHalves(at, last, /*keys=*/true);
    Scores(chunk_, width_, scores);
    if (!ReadsCodes(at)) return;
    for (int m = 0; m < vectors_; ++m)
      __builtin_memcpy(both_ + m * kKeyChunk, scores + m * kKeyTile, kKeyChunk * sizeof(float));
    ScoreStored(at, last, scores);
    for (int m = 0; m < vectors_; ++m) {
      for (int j = 0; j < kKeyChunk; ++j) {
        if (t_.source.recent.Has(at + j, t_.first_position + m / t_.heads))
          scores[m * kKeyTile + j] = both_[m * kKeyChunk + j];
      }
    }
  }
  void ScoreStored(int at, int last, float* scores) {
    if (t_.source.int8_scores) return IntegerScores(at, scores);
    const Chunk chunk = Locate(t_.source.keys, t_.source.key_stride, at, last);
    chunk.half ? Scores(static_cast<const uint16_t*>(chunk.data), chunk.stride, scores)
               : Scores(static_cast<const float*>(chunk.data), chunk.stride, scores);
  }

  // Adds the values of keys [at + from, at + to) with these weights.
  void AddChunk(int at, int from, int to, float* weights) {
    if (!ReadsHalves(at)) return AddStored(at, from, to, weights);
    const bool codes = ReadsCodes(at);
    if (codes) {
      for (int m = 0; m < vectors_; ++m)
        __builtin_memcpy(both_ + m * kKeyChunk, weights + m * kKeyTile, kKeyChunk * sizeof(float));
      if (at < t_.source.recent.sinks) {
        Keep(Part::kSinks, at, weights);
        AddHalves(at, from, to, weights);
      }
      Keep(Part::kCodes, at, weights);
      AddStored(at, from, to, weights);
      Keep(Part::kWindow, at, weights);
    }
    AddHalves(at, from, to, weights);
  }
  void AddStored(int at, int from, int to, const float* weights) {
    const Chunk chunk = Locate(t_.source.values, t_.source.value_stride, at, at + to);
    chunk.half ? Outputs(static_cast<const uint16_t*>(chunk.data), chunk.stride, weights, from, to)
               : Outputs(static_cast<const float*>(chunk.data), chunk.stride, weights, from, to);
  }
  void AddHalves(int at, int from, int to, const float* weights) {
    GatherHalves(at, at + to, /*keys=*/false);
    Outputs(chunk_, width_, weights, from, to);
  }
  // Takes from both_ the weights of one of the three kinds of keys, 0 elsewhere.
  enum class Part { kSinks, kCodes, kWindow };
  void Keep(Part part, int at, float* weights) const {
    const RecentRows& recent = t_.source.recent;
    for (int m = 0; m < vectors_; ++m) {
      const int position = t_.first_position + m / t_.heads;
      for (int j = 0; j < kKeyChunk; ++j) {
        const Part mine = at + j < recent.sinks          ? Part::kSinks
                          : recent.Has(at + j, position) ? Part::kWindow
                                                         : Part::kCodes;
        weights[m * kKeyTile + j] = mine == part ? both_[m * kKeyChunk + j] : 0;
      }
    }
  }

  // Copies the keys or values [at, last) that any row of the tile reads in f16 to chunk_, as f32;
  // zeros in place of the others.
  void GatherHalves(int at, int last, bool keys) {
    const RecentRows& recent = t_.source.recent;
    const uint16_t* slot = keys ? recent.slot_keys : recent.slot_values;
    const float* batch = keys ? recent.keys : recent.values;
    for (int j = at; j < last && j < at + kKeyChunk; ++j) {
      float* to = chunk_ + (j - at) * width_;
      if (!recent.Has(j, t_.first_position)) {
        for (int i = 0; i < width_; ++i) to[i] = 0;
      } else if (j < recent.first_position) {
        const int row = j < recent.sinks ? j : recent.sinks + j % recent.window;
        Unpack(slot + int64_t{row} * t_.head_dim, to);
      } else {
        RoundToHalf(batch + (j - recent.first_position) * recent.stride, keys, to);
      }
    }
  }
  // A row of the batch as the slot would give it back: CpuOps::StoreRecent.
  void RoundToHalf(const float* row, bool key, float* to) const {
    const float* mean = t_.source.recent.key_mean;
    for (int i = 0; i < width_; ++i) to[i] = i < t_.head_dim ? row[i] : 0;
    if (key && mean != nullptr) {
      for (int i = 0; i < t_.head_dim; ++i)
        to[i] = (to[i] - mean[i]) * t_.source.recent.key_inverse_scale[i];
    }
    alignas(32) uint16_t half[8];
    for (int i = 0; i < width_; i += 8) {
      V::Load(to + i).Store(half);
      V::Load(half).Store(to + i);
    }
  }

  // Scores of the chunk of i8 rows that begins at key `at`: (scale of q * scale of k) * the exact
  // sum of the products of their codes.
  void IntegerScores(int at, float* scores) const {
    const std::byte* keys =
        t_.source.keys + t_.source.blocks[at / kKeyChunk] * t_.source.block_stride;
    const auto scale_of = [](const std::byte* row) {
      float scale;
      __builtin_memcpy(&scale, row, sizeof(scale));
      return scale;
    };
    const int64_t stride = t_.source.key_stride;
    for (int j = 0; j < kKeyChunk; j += 4) {
      const std::byte* key = keys + j * stride;
      for (int m = 0; m < vectors_; ++m) {
        const std::byte* query = codes_ + m * QueryCodeBytes();
        int32_t sums[4];
        V::DotCodes4(reinterpret_cast<const int8_t*>(query + sizeof(float)),
                     reinterpret_cast<const int8_t*>(key + sizeof(float)), stride, t_.head_dim,
                     sums);
        for (int c = 0; c < 4; ++c)
          scores[m * kKeyTile + j + c] =
              scale_of(query) * scale_of(key + c * stride) * static_cast<float>(sums[c]);
      }
    }
  }
  // Scale and codes of one query, as kv_row.h draws i8.
  int QueryCodeBytes() const { return width_ + 8; }

  // The rows of the chunk that begins at key `at`, in place where they can be read in whole
  // vectors, else copied to chunk_ as f32 (also when so many queries share them that converting
  // once is cheaper). Rows from `last` on are not touched.
  Chunk Locate(const std::byte* base, int64_t stride, int at, int last) {
    const KeySource& source = t_.source;
    const std::byte* data = source.blocks != nullptr
                                ? base + source.blocks[at / kKeyChunk] * source.block_stride
                                : base + at * stride;
    // A block of the pool always has memory for all its rows; a matrix ends with its last row.
    const bool whole = source.blocks != nullptr || last - at >= kKeyChunk;
    const bool half = source.dtype == DType::kF16;
    const bool direct = source.dtype == DType::kF32 || (half && vectors_ <= kDirectVectors);
    if (whole && direct && width_ == t_.head_dim) return {data, stride / (half ? 2 : 4), half};
    const int rows = last - at < kKeyChunk ? last - at : kKeyChunk;
    for (int r = 0; r < rows; ++r) UnpackRow(data + r * stride, chunk_ + r * width_);
    return {chunk_, width_, false};
  }
  void UnpackRow(const std::byte* row, float* to) const {
    switch (t_.source.dtype) {
      case DType::kF16:
        return Unpack(reinterpret_cast<const uint16_t*>(row), to);
      case DType::kI8:
        DecodeKvI8(row, t_.head_dim, to);
        break;
      case DType::kU4:
        DecodeKvU4(row, t_.head_dim, to);
        break;
      default:
        return Unpack(reinterpret_cast<const float*>(row), to);
    }
    for (int i = t_.head_dim; i < width_; ++i) to[i] = 0;
  }
  template <class T>
  void Unpack(const T* from, float* to) const {
    int i = 0;
    for (; i + 8 <= t_.head_dim; i += 8) V::Load(from + i).Store(to + i);
    if (i == t_.head_dim) return;
    alignas(32) T rest[8] = {};
    for (int j = 0; i + j < t_.head_dim; ++j) rest[j] = from[i + j];
    V::Load(rest).Store(to + i);
  }

  template <class T>
  void Scores(const T* keys, int64_t stride, float* scores) const {
    int m = 0;
    for (; m + 3 <= vectors_; m += 3) ScoreRows<3>(keys, stride, m, scores);
    if (m + 2 == vectors_) ScoreRows<2>(keys, stride, m, scores);
    if (m + 1 == vectors_) ScoreRows<1>(keys, stride, m, scores);
  }
  template <int kRows, class T>
  void ScoreRows(const T* keys, int64_t stride, int m, float* scores) const {
    const float* q = q_ + m * width_;
    for (int j = 0; j < kKeyChunk; j += 4) {
      const T* k = keys + j * stride;
      V sum[kRows][4];
      for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < 4; ++c) sum[r][c] = V::Zero();
      }
      for (int i = 0; i < width_; i += 8) {
        V x[kRows];
        for (int r = 0; r < kRows; ++r) x[r] = V::Load(q + r * width_ + i);
        for (int c = 0; c < 4; ++c) {
          const V y = V::Load(k + c * stride + i);
          for (int r = 0; r < kRows; ++r) sum[r][c] = V::MulAdd(x[r], y, sum[r][c]);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        V::Sum4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], scores + (m + r) * kKeyTile + j);
      }
    }
  }

  // Turns scores [begin, end) of vector m, for keys from `key` on, into weights e^(s - max), and
  // brings the vector's running maximum, sum and output up to date.
  void Softmax(int m, int key, int begin, int end) {
    float* s = s_ + m * kKeyTile;
    int low = 0, high = t_.num_keys;  // keys that this row sees
    if (t_.causal) {
      high = t_.first_position + m / t_.heads + 1;
      if (t_.window > 0) low = high - t_.window;
    }
    for (int j = begin; j < end && key + j < low; ++j) s[j] = -__builtin_inff();
    for (int j = end - 1; j >= begin && key + j >= high; --j) s[j] = -__builtin_inff();
    V top = V::Load(s + begin);
    for (int j = begin + 8; j < end; j += 8) top = V::Max(top, V::Load(s + j));
    const float highest = top.Maximum();
    V sum = V::Load(sum_ + m * 8);
    if (highest > max_[m]) {
      const V shrink = Element::Exp(V::Set(max_[m] - highest));
      max_[m] = highest;
      sum = sum * shrink;
      float* o = o_ + m * width_;
      for (int i = 0; i < width_; i += 8) (V::Load(o + i) * shrink).Store(o + i);
    }
    const V maximum = V::Set(max_[m]);
    for (int j = begin; j < end; j += 8) {
      const V p = Element::Exp(V::Load(s + j) - maximum);
      p.Store(s + j);
      sum = sum + p;
    }
    sum.Store(sum_ + m * 8);
  }

  template <class T>
  void Outputs(const T* values, int64_t stride, const float* weights, int from, int to) {
    int m = 0;
    for (; m + 3 <= vectors_; m += 3) OutputRows<3>(values, stride, weights, m, from, to);
    if (m + 2 == vectors_) OutputRows<2>(values, stride, weights, m, from, to);
    if (m + 1 == vectors_) OutputRows<1>(values, stride, weights, m, from, to);
  }
  template <int kRows, class T>
  void OutputRows(const T* values, int64_t stride, const float* weights, int m, int from, int to) {
    int i = 0;
    for (; i + 32 <= width_; i += 32) {
      OutputBlock<kRows, 4>(values + i, stride, weights, m, from, to, i);
    }
    for (; i < width_; i += 8) {
      OutputBlock<kRows, 1>(values + i, stride, weights, m, from, to, i);
    }
  }
  template <int kRows, int kWidth, class T>
  void OutputBlock(const T* values, int64_t stride, const float* weights, int m, int from, int to,
                   int i) {
    float* o = o_ + m * width_ + i;
    const float* p = weights + m * kKeyTile;
    V sum[kRows][kWidth];
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kWidth; ++c) sum[r][c] = V::Load(o + r * width_ + c * 8);
    }
    for (int j = from; j < to; ++j) {
      V weight[kRows];
      for (int r = 0; r < kRows; ++r) weight[r] = V::Set(p[r * kKeyTile + j]);
      for (int c = 0; c < kWidth; ++c) {
        const V v = V::Load(values + j * stride + c * 8);
        for (int r = 0; r < kRows; ++r) sum[r][c] = V::MulAdd(weight[r], v, sum[r][c]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kWidth; ++c) sum[r][c].Store(o + r * width_ + c * 8);
    }
  }

  void StoreOutputs() const {
    for (int m = 0; m < vectors_; ++m) {
      const float inverse = 1.0f / V::Load(sum_ + m * 8).Sum();
      const float* from = o_ + m * width_;
      float* to = t_.y + (m / t_.heads) * t_.y_stride + (m % t_.heads) * t_.head_dim;
      for (int i = 0; i < t_.head_dim; ++i) to[i] = from[i] * inverse;
    }
  }

  static constexpr int kDirectVectors = 6;  // up to two passes over a chunk: convert as it is read

  const AttentionTile& t_;
  const int vectors_;                                 // rows x heads
  const int width_;                                   // head_dim rounded up to 8; the rest is zero
  alignas(64) float q_[kMaxTileFloats];               // [vectors, width], scaled
  alignas(64) float o_[kMaxTileFloats];               // [vectors, width]
  alignas(64) float s_[kMaxTileVectors * kKeyTile];   // scores, then weights
  alignas(64) float chunk_[kKeyChunk * kMaxHeadDim];  // [kKeyChunk, width]
  alignas(64) float both_[kMaxTileVectors * kKeyChunk];  // of a chunk that is read both ways
  alignas(64) float sum_[kMaxTileVectors * 8];           // by lane
  float max_[kMaxTileVectors];
  alignas(
      64) std::byte codes_[kMaxTileFloats + 8 * kMaxTileVectors];  // [vectors, QueryCodeBytes()]
};

}  // namespace assay
