// A paged KV pool on a device (tests/support/cuda_world.h) whose pages are shuffled and whose
// unused bytes are NaN, with what attention over it should give, in f64.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/float16.h"
#include "base/float8.h"
#include "engine/ops/cuda/kv_layout.h"
#include "engine/ops/kv_row.h"
#include "tests/support/device_array.h"

namespace assay::ASSAY_WORLD {

inline uint16_t ToHalf(Half type, float v) {
  return type == Half::kF16 ? F32ToF16(v) : F32ToBf16(v);
}
inline float FromHalf(Half type, uint16_t v) {
  return type == Half::kF16 ? F16ToF32(v) : Bf16ToF32(v);
}
// Half of the distance between two neighbouring numbers in [1, 2).
inline double RoundingOf(Half type) { return type == Half::kF16 ? 0x1p-11 : 0x1p-8 / 2; }

inline std::vector<float> Normal(size_t count, uint32_t seed, float deviation = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> out(count);
  for (float& v : out) v = normal(random);
  return out;
}

struct KvShape {
  Half type = Half::kF16;
  KvCodes format = KvCodes::kHalf;
  int kv_heads = 1, head_dim = 64;
};

inline std::string NameOf(KvCodes format) {
  return format == KvCodes::kHalf ? "half" : format == KvCodes::kS8 ? "s8" : "e4m3";
}

// Sequences of the given lengths. Blocks of tables behind a sequence's length are far outside of
// the pool.
class PagedKv {
 public:
  PagedKv(const KvShape& shape, const std::vector<int>& lengths, uint32_t seed = 1)
      : shape_(shape),
        lengths_(lengths),
        max_blocks_(BlocksOf(*std::max_element(lengths.begin(), lengths.end())) + 1),
        num_blocks_(CountBlocks(lengths)),
        tables_(std::vector<int32_t>(lengths.size() * max_blocks_, int32_t{1} << 28)),
        codes_(KvCodesBytes(shape.format, num_blocks_, shape.kv_heads, shape.head_dim)),
        scales_(KvScalesBytes(shape.format, num_blocks_, shape.kv_heads) / sizeof(float)) {
    std::vector<int32_t> free(static_cast<size_t>(num_blocks_));
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin() + 1, free.end(), std::mt19937(seed));  // block 0 stays nobody's
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (int b = 0; b < BlocksOf(lengths[s]); ++b, free.pop_back())
        tables_[s * static_cast<size_t>(max_blocks_) + static_cast<size_t>(b)] = free.back();
    }
  }

  // Quantizes random keys and values of every position.
  void Fill(uint32_t seed, float value_deviation = 1) {
    for (size_t s = 0; s < lengths_.size(); ++s) {
      for (int h = 0; h < shape_.kv_heads; ++h) {
        for (int k_or_v = 0; k_or_v < 2; ++k_or_v) {
          const auto id = static_cast<uint32_t>((s * 64 + static_cast<size_t>(h)) * 2) +
                          static_cast<uint32_t>(k_or_v);
          const auto rows =
              Normal(static_cast<size_t>(lengths_[s]) * static_cast<size_t>(shape_.head_dim),
                     seed * 1000 + id, k_or_v == 1 ? value_deviation : 1);
          for (int p = 0; p < lengths_[s]; ++p) {
            Store({static_cast<int>(s), p, h, k_or_v},
                  rows.data() + static_cast<ptrdiff_t>(p) * shape_.head_dim);
          }
        }
      }
    }
  }

  struct Place {
    int sequence, position, head, k_or_v;
  };
  int64_t RowOf(const Place& at) const {
    const int block = tables_[static_cast<size_t>(at.sequence * max_blocks_ + at.position / 16)];
    return KvFirstRow(shape_.kv_heads, block, at.head, at.k_or_v) + at.position % 16;
  }
  void Store(const Place& at, const float* x) const {
    const int64_t row = RowOf(at);
    const int width = KvWidth(shape_.head_dim);
    std::byte* const to = codes_.data() + row * width * KvCodeBytes(shape_.format);
    std::memset(to, 0, static_cast<size_t>(width * KvCodeBytes(shape_.format)));
    if (shape_.format == KvCodes::kHalf) {
      for (int i = 0; i < shape_.head_dim; ++i)
        reinterpret_cast<uint16_t*>(to)[i] = ToHalf(shape_.type, x[i]);
    } else if (shape_.format == KvCodes::kS8) {
      std::vector<std::byte> encoded(static_cast<size_t>(shape_.head_dim) + 4);
      EncodeKvI8(x, shape_.head_dim, encoded.data());
      std::memcpy(&scales_[static_cast<size_t>(row)], encoded.data(), 4);
      std::memcpy(to, encoded.data() + 4, static_cast<size_t>(shape_.head_dim));
    } else {
      float absmax = 0;
      for (int i = 0; i < shape_.head_dim; ++i) absmax = std::max(absmax, std::fabs(x[i]));
      scales_[static_cast<size_t>(row)] = absmax / 448;
      for (int i = 0; i < shape_.head_dim; ++i) to[i] = std::byte{F32ToE4M3(x[i] * (448 / absmax))};
    }
  }
  // A row whose element i has the code i; without e4m3's NaN.
  void StoreEveryCode(const Place& at) const {
    const int64_t row = RowOf(at);
    scales_[static_cast<size_t>(row)] = 1;
    std::byte* const to = codes_.data() + row * KvWidth(shape_.head_dim);
    for (int i = 0; i < shape_.head_dim; ++i) {
      const bool nan = shape_.format == KvCodes::kE4m3 && (i & 0x7f) == 0x7f;
      to[i] = static_cast<std::byte>(nan ? 0 : i);
    }
  }
  // What is stored there, element i.
  double At(const Place& at, int i) const {
    const int64_t row = RowOf(at), index = row * KvWidth(shape_.head_dim) + i;
    if (shape_.format == KvCodes::kHalf)
      return FromHalf(shape_.type, reinterpret_cast<const uint16_t*>(codes_.data())[index]);
    const auto code = static_cast<uint8_t>(codes_.data()[index]);
    const double scale = scales_[static_cast<size_t>(row)];
    return scale * (shape_.format == KvCodes::kS8 ? static_cast<int8_t>(code) : E4M3ToF32(code));
  }

  // Those that hold nothing from `position` on are no longer the sequence's.
  void ForgetBlocksBefore(int sequence, int position) const {
    for (int b = 0; b < position / 16; ++b)
      tables_[static_cast<size_t>(sequence * max_blocks_ + b)] = int32_t{1} << 28;
  }

  KvLayer layer() const {
    return {.codes = codes_.data(),
            .scales = shape_.format == KvCodes::kHalf ? nullptr : scales_.data(),
            .format = shape_.format,
            .kv_heads = shape_.kv_heads,
            .head_dim = shape_.head_dim};
  }
  const KvShape& shape() const { return shape_; }
  int32_t* tables() const { return tables_.data(); }
  int max_blocks() const { return max_blocks_; }
  float scale_at(int64_t row) const { return scales_[static_cast<size_t>(row)]; }
  const std::byte* codes_at(int64_t row) const {
    return codes_.data() + row * KvWidth(shape_.head_dim) * KvCodeBytes(shape_.format);
  }

 private:
  static int BlocksOf(int length) { return (length + 15) / 16; }
  static int CountBlocks(const std::vector<int>& lengths) {
    int blocks = 3;  // that belong to nobody
    for (const int length : lengths) blocks += BlocksOf(length);
    return blocks;
  }

  const KvShape shape_;
  const std::vector<int> lengths_;
  const int max_blocks_, num_blocks_;
  DeviceArray<int32_t> tables_;
  DeviceArray<std::byte> codes_;
  DeviceArray<float> scales_;
};

struct Expected {
  std::vector<double> y;  // [head_dim]
  // Largest element of a value: weighted mean, and of all; largest sum of |products| of a score.
  double magnitude = 0, largest = 0, score = 0;
  int positions = 0;
};

// One query vector over positions [first, last): key(p, i) and value(p, i).
template <typename Key, typename Value>
Expected Attend(const std::vector<double>& q, double scale, int first, int last, const Key& key,
                const Value& value) {
  Expected out;
  out.y.assign(q.size(), 0);
  out.positions = last - first;
  std::vector<double> scores;
  for (int p = first; p < last; ++p) {
    double sum = 0, magnitude = 0;
    for (size_t i = 0; i < q.size(); ++i) {
      const double product = q[i] * key(p, static_cast<int>(i));
      sum += product;
      magnitude += std::fabs(product);
    }
    scores.push_back(sum * scale);
    out.score = std::max(out.score, magnitude * scale);
  }
  const double most = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (int p = first; p < last; ++p) {
    const double weight = std::exp(scores[static_cast<size_t>(p - first)] - most);
    double largest = 0;
    total += weight;
    for (size_t i = 0; i < q.size(); ++i) {
      const double v = value(p, static_cast<int>(i));
      out.y[i] += weight * v;
      largest = std::max(largest, std::fabs(v));
    }
    out.magnitude += weight * largest;
    out.largest = std::max(out.largest, largest);
  }
  for (double& v : out.y) v /= total;
  out.magnitude /= total;
  return out;
}

// How far a result may be off. Weights are rounded to T (relative to the largest, which is 1; below
// 2^-14 f16 has steps of 2^-24), the result is, and a score of n products is off by n + 4 roundings
// of f32, which is the relative error of its weight.
inline double ToleranceOf(const Expected& expected, Half type) {
  const double rounding = RoundingOf(type), n = static_cast<double>(expected.y.size());
  const double score = expected.score * (n + 4) * 0x1p-24;
  const double steps = type == Half::kF16 ? expected.positions * 0x1p-25 : 0;
  return (2 * rounding + 2 * score + 0x1p-20) * 1.01 * expected.magnitude +
         steps * expected.largest;
}
// By how many tolerances y [head_dim] is off; infinity for NaN.
inline double Misses(const uint16_t* y, const Expected& expected, Half type) {
  double worst = 0;
  for (size_t i = 0; i < expected.y.size(); ++i) {
    const double miss =
        std::fabs(FromHalf(type, y[i]) - expected.y[i]) / ToleranceOf(expected, type);
    worst = miss >= 0 ? std::max(worst, miss) : static_cast<double>(INFINITY);
  }
  return worst;
}

}  // namespace assay::ASSAY_WORLD
