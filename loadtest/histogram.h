// Latencies in microseconds with three significant digits, from 1 us to over an hour in at most 200
// KB. The layout is HdrHistogram's (github.com/HdrHistogram, Gil Tene) for 3 digits: 2048 exact
// values, then 1024 buckets per doubling. Debian has no C or C++ library of it. Not thread-safe:
// one thread, or under the owner's lock.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace assay::load {

class Histogram {
 public:
  // Below 0 counts as 0, above kMost as kMost.
  void Record(int64_t microseconds);
  // What `other` saw, as if it had been recorded here. Percentiles are never averaged.
  void Merge(const Histogram& other);

  int64_t count() const { return count_; }
  double mean() const;
  int64_t max() const { return max_; }
  // The smallest bucket's upper end with at least quantile * count() values at or below it, at most
  // max(): at most 1/1024 above the exact order statistic. 0 when there is none. `quantile` in [0,
  // 1].
  int64_t ValueAt(double quantile) const;
  // How many values are at or above so many microseconds, to the bucket.
  int64_t CountFrom(int64_t microseconds) const;
  // (upper end, how many), buckets that are not empty, ascending.
  std::vector<std::pair<int64_t, int64_t>> Buckets() const;

  static constexpr int64_t kMost = int64_t{1} << 33;  // 2.4 hours

 private:
  std::vector<int64_t> counts_;  // [index of bucket], as long as the largest value needs
  int64_t count_ = 0, max_ = 0;
  double sum_ = 0;
};

}  // namespace assay::load
