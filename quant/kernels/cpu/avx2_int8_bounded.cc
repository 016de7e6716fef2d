#include "quant/kernels/cpu/avx2_int8_bounded.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace assay {
namespace {

constexpr int kBound = 128;
constexpr double kMaxFraction = 0.08;
constexpr int64_t kMaxExactSum = int64_t{1} << 24;  // of sum |x e| in f32
constexpr std::array<std::array<int, 4>, 2> kBoundGroups = {{{0, 1, 4, 5}, {2, 3, 6, 7}}};

struct Entry {
  int64_t i;
  int value;
};

// Takes from the largest weights of one sign until they sum to kBound.
void Reduce(std::array<int, 4> w, int sign, const std::array<int64_t, 4>& at,
            std::vector<Entry>& entries) {
  int sum = 0;
  for (const int v : w) sum += std::max(0, sign * v);
  while (sum > kBound) {
    size_t largest = 0;
    for (size_t t = 1; t < 4; ++t) {
      if (sign * w[t] > sign * w[largest]) largest = t;
    }
    const int taken = std::min(sum - kBound, sign * w[largest]);
    entries.push_back({at[largest], sign * taken});
    w[largest] -= sign * taken;
    sum -= taken;
  }
}

// The excess of one channel.
void ExcessOf(const int8_t* codes, int64_t k, std::vector<Entry>& entries) {
  for (int64_t j = 0; j < k; j += kInt8PanelGroup) {
    for (const std::array<int, 4>& group : kBoundGroups) {
      std::array<int, 4> w{};
      std::array<int64_t, 4> at{};
      for (size_t t = 0; t < 4; ++t) {
        at[t] = j + group[t];
        if (at[t] < k) w[t] = codes[at[t]];
      }
      Reduce(w, 1, at, entries);
      Reduce(w, -1, at, entries);
    }
  }
}

template <typename T>
absl::StatusOr<Tensor> TensorFrom(const std::vector<T>& values, DType dtype) {
  // One element at least: an empty tensor has no data.
  const auto count = static_cast<int64_t>(std::max<size_t>(1, values.size()));
  ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(CpuDevice(), {count}, dtype));
  std::copy(values.begin(), values.end(), tensor.data<T>());
  return tensor;
}

}  // namespace

absl::StatusOr<std::optional<Int8Excess>> Int8Excess::Find(const int8_t* codes,
                                                           const Shape& shape) {
  const int64_t n = shape[0], k = shape[1];
  const int64_t channels = (n + kInt8PanelColumns - 1) / kInt8PanelColumns * kInt8PanelColumns;
  if (k > 65536) return std::nullopt;  // 16-bit indices
  const auto limit = static_cast<size_t>(kMaxFraction * static_cast<double>(n * k)) + 64;
  std::vector<int32_t> first(1), offsets;
  std::vector<uint16_t> index;
  std::vector<int8_t> value;
  std::vector<Entry> entries;
  for (int64_t c = 0; c < channels; ++c) {
    entries.clear();
    int64_t sum = 0, excess = 0;
    if (c < n) {
      ExcessOf(codes + c * k, k, entries);
      for (int64_t i = 0; i < k; ++i) sum += codes[c * k + i];
    }
    for (const Entry& entry : entries) {
      index.push_back(static_cast<uint16_t>(entry.i));
      value.push_back(static_cast<int8_t>(entry.value));
      sum -= entry.value;
      excess += std::abs(entry.value);
    }
    if (index.size() > limit || excess * 127 > kMaxExactSum) return std::nullopt;
    first.push_back(static_cast<int32_t>(index.size()));
    offsets.push_back(static_cast<int32_t>(-128 * sum));
  }
  Int8Excess result;
  ASSIGN_OR_RETURN(result.first, TensorFrom(first, DType::kI32));
  ASSIGN_OR_RETURN(result.index, TensorFrom(index, DType::kI16));
  ASSIGN_OR_RETURN(result.value, TensorFrom(value, DType::kI8));
  ASSIGN_OR_RETURN(result.offsets, TensorFrom(offsets, DType::kI32));
  return result;
}

}  // namespace assay
