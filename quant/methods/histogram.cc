#include "quant/methods/histogram.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <numeric>

namespace assay {

int64_t Histogram::BinOf(double value) const {
  const auto bin = static_cast<int64_t>((value - low_) / width_);
  return std::clamp<int64_t>(bin, 0, static_cast<int64_t>(counts_.size()) - 1);
}

void Histogram::Cover(double min, double max) {
  if (empty()) {
    low_ = min;
    // A batch of equal values: bins so narrow that the next batch sets the width by merging.
    const double narrowest = std::max(1e-6 * std::fabs(max), static_cast<double>(FLT_MIN));
    width_ = std::max(max - min, narrowest) / static_cast<double>(kBins);
    counts_.assign(kBins, 0);
    return;
  }
  while (true) {
    const double below = std::max(0.0, std::ceil((low_ - min) / width_));
    const double above = std::max(0.0, std::ceil((max - high()) / width_));
    if (static_cast<double>(counts_.size()) + below + above <= static_cast<double>(kMaxBins)) {
      low_ -= below * width_;
      counts_.insert(counts_.begin(), static_cast<size_t>(below), 0.0);
      counts_.resize(counts_.size() + static_cast<size_t>(above));
      return;
    }
    counts_.resize((counts_.size() + 1) / 2 * 2);
    for (size_t i = 0; i < counts_.size() / 2; ++i)
      counts_[i] = counts_[2 * i] + counts_[2 * i + 1];
    counts_.resize(counts_.size() / 2);
    width_ *= 2;
  }
}

void Histogram::Add(const Batch& batch) {
  if (batch.values.empty()) return;
  const float absmax = std::max(std::fabs(batch.min), std::fabs(batch.max));
  if (batch.absolute) {
    Cover(0, absmax);
    for (const float v : batch.values) ++counts_[BinOf(std::fabs(v))];
  } else {
    Cover(batch.min, batch.max);
    for (const float v : batch.values) ++counts_[BinOf(v)];
  }
}

void Histogram::Merge(const Histogram& other) {
  if (other.empty()) return;
  if (empty()) {
    *this = other;
    return;
  }
  Cover(other.low_, other.high());
  for (size_t i = 0; i < other.counts_.size(); ++i)
    counts_[BinOf(other.edge(static_cast<int64_t>(i)) + other.width_ / 2)] += other.counts_[i];
}

double Histogram::total() const { return std::accumulate(counts_.begin(), counts_.end(), 0.0); }

double Histogram::Quantile(double q) const {
  const double wanted = q * total();
  double sum = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    if (counts_[i] > 0 && sum + counts_[i] >= wanted)
      return edge(static_cast<int64_t>(i)) + width_ * (wanted - sum) / counts_[i];
    sum += counts_[i];
  }
  return high();
}

}  // namespace assay
