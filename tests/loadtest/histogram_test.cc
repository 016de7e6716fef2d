#include "loadtest/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace assay::load {
namespace {

// From 1 us to some minutes, evenly in the logarithm: every size of bucket.
std::vector<int64_t> Values(size_t count, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<int64_t> out;
  for (size_t i = 0; i < count; ++i) {
    const double share = static_cast<double>(engine() >> 11) * 0x1p-53;
    out.push_back(static_cast<int64_t>(std::exp(share * std::log(5e8))));
  }
  return out;
}

// The order statistic that ValueAt names.
int64_t Exact(std::vector<int64_t> values, double quantile) {
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(std::ceil(quantile * static_cast<double>(values.size())));
  return values[std::max<size_t>(rank, 1) - 1];
}

TEST(HistogramTest, PercentilesAreWithinABucketOfTheExactOnes) {
  const std::vector<int64_t> values = Values(20000, 1);
  Histogram histogram;
  for (const int64_t value : values) histogram.Record(value);
  for (const double q : {0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0}) {
    const int64_t exact = Exact(values, q);
    EXPECT_GE(histogram.ValueAt(q), exact) << q;
    // A bucket is at most 1/1024 of its least value wide: 1024 of them per doubling.
    EXPECT_LE(static_cast<double>(histogram.ValueAt(q)),
              static_cast<double>(exact) * (1 + 1.0 / 1024))
        << q;
  }
  EXPECT_EQ(histogram.max(), Exact(values, 1));
  EXPECT_EQ(histogram.count(), 20000);
}

TEST(HistogramTest, ADifferentRankIsOutsideOfTheBound) {
  // The bound above can fail: the neighbours one percent away are farther than a bucket.
  const std::vector<int64_t> values = Values(20000, 1);
  EXPECT_GT(static_cast<double>(Exact(values, 0.51)),
            static_cast<double>(Exact(values, 0.5)) * (1 + 1.0 / 1024));
}

TEST(HistogramTest, SmallValuesAreExact) {
  Histogram histogram;
  for (int64_t value = 0; value < 2048; ++value) histogram.Record(value);
  EXPECT_EQ(histogram.ValueAt(0.5), 1023);  // the 1024th of 0, 1, ..., 2047
  EXPECT_DOUBLE_EQ(histogram.mean(), 1023.5);
}

TEST(HistogramTest, MergingIsRecordingBoth) {
  Histogram both, one, other;
  for (const int64_t value : Values(500, 2)) {
    both.Record(value);
    one.Record(value);
  }
  for (const int64_t value : Values(700, 3)) {
    both.Record(value);
    other.Record(value);
  }
  one.Merge(other);
  EXPECT_EQ(one.Buckets(), both.Buckets());
  EXPECT_EQ(one.count(), 1200);
  EXPECT_EQ(one.max(), both.max());
  EXPECT_DOUBLE_EQ(one.mean(), both.mean());
}

TEST(HistogramTest, BucketsAscendAndHoldEveryValue) {
  Histogram histogram;
  for (const int64_t value : Values(3000, 4)) histogram.Record(value);
  int64_t sum = 0, last = -1;
  for (const auto& [end, count] : histogram.Buckets()) {
    EXPECT_GT(end, last);
    last = end;
    sum += count;
  }
  EXPECT_EQ(sum, 3000);
}

TEST(HistogramTest, WhatIsOutOfRangeIsCountedAtTheEnds) {
  Histogram histogram;
  histogram.Record(-5);
  histogram.Record(Histogram::kMost * 2);
  EXPECT_EQ(histogram.ValueAt(0), 0);
  EXPECT_EQ(histogram.max(), Histogram::kMost);
  EXPECT_EQ(histogram.count(), 2);
}

TEST(HistogramTest, CountsFromAValueOn) {
  Histogram histogram;
  for (const int64_t value : {10, 20, 30}) histogram.Record(value);
  EXPECT_EQ(histogram.CountFrom(20), 2);
  EXPECT_EQ(histogram.CountFrom(31), 0);
  EXPECT_EQ(histogram.CountFrom(Histogram::kMost), 0);
}

TEST(HistogramTest, AnEmptyOneHasNoPercentiles) {
  EXPECT_EQ(Histogram().ValueAt(0.99), 0);
  EXPECT_EQ(Histogram().mean(), 0);
  EXPECT_TRUE(Histogram().Buckets().empty());
}

}  // namespace
}  // namespace assay::load
