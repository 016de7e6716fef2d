#include "loadtest/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace assay::load {
namespace {

constexpr int kHalfBits = 10;
constexpr int64_t kHalf = int64_t{1} << kHalfBits;  // buckets per doubling

size_t IndexOf(int64_t value) {
  if (value < 2 * kHalf) return static_cast<size_t>(value);
  const int shift = std::bit_width(static_cast<uint64_t>(value)) - 1 - kHalfBits;
  return static_cast<size_t>(shift * kHalf + (value >> shift));
}

// The largest value of a bucket.
int64_t UpperEnd(size_t index) {
  const auto i = static_cast<int64_t>(index);
  if (i < 2 * kHalf) return i;
  const int64_t shift = i / kHalf - 1, step = i - shift * kHalf;
  return ((step + 1) << shift) - 1;
}

}  // namespace

void Histogram::Record(int64_t microseconds) {
  const int64_t value = std::clamp<int64_t>(microseconds, 0, kMost);
  const size_t index = IndexOf(value);
  if (index >= counts_.size()) counts_.resize(index + 1);
  ++counts_[index];
  ++count_;
  max_ = std::max(max_, value);
  sum_ += static_cast<double>(value);
}

void Histogram::Merge(const Histogram& other) {
  if (other.counts_.size() > counts_.size()) counts_.resize(other.counts_.size());
  for (size_t i = 0; i < other.counts_.size(); ++i) counts_[i] += other.counts_[i];
  count_ += other.count_;
  max_ = std::max(max_, other.max_);
  sum_ += other.sum_;
}

double Histogram::mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

int64_t Histogram::ValueAt(double quantile) const {
  const auto rank =
      std::max<int64_t>(1, static_cast<int64_t>(std::ceil(quantile * static_cast<double>(count_))));
  int64_t seen = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    seen += counts_[i];
    if (seen >= rank) return std::min(UpperEnd(i), max_);
  }
  return max_;
}

int64_t Histogram::CountFrom(int64_t microseconds) const {
  int64_t found = 0;
  for (size_t i = IndexOf(std::clamp<int64_t>(microseconds, 0, kMost)); i < counts_.size(); ++i) {
    found += counts_[i];
  }
  return found;
}

std::vector<std::pair<int64_t, int64_t>> Histogram::Buckets() const {
  std::vector<std::pair<int64_t, int64_t>> out;
  for (size_t i = 0; i < counts_.size(); ++i) {
    if (counts_[i] > 0) out.emplace_back(UpperEnd(i), counts_[i]);
  }
  return out;
}

}  // namespace assay::load
