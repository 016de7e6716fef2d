// A histogram over a range that grows while the bins keep their width: reference tools' calibrators
// (ModelOpt's HistogramCalibrator) in bounded memory.
//
// The first non-empty batch sets [low, low + 2048 width); values outside add bins of the same width
// on either side. Beyond 8192 bins, neighbours are merged and the width doubles. A value type; not
// thread-safe.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace assay {

class Histogram {
 public:
  static constexpr int64_t kBins = 2048;  // of the first batch
  static constexpr int64_t kMaxBins = 8192;

  Histogram() = default;
  Histogram(double low, double width, std::vector<double> counts)
      : low_(low), width_(width), counts_(std::move(counts)) {}

  // Finite values, all of which lie in [min, max]; |v| instead of v when `absolute`.
  struct Batch {
    std::span<const float> values;
    float min, max;
    bool absolute = false;
  };
  void Add(const Batch& batch);
  // Each bin of `other` is added at its centre: exact where the bins coincide, else within a bin.
  void Merge(const Histogram& other);

  bool empty() const { return counts_.empty(); }
  double low() const { return low_; }
  double width() const { return width_; }
  double high() const { return low_ + width_ * static_cast<double>(counts_.size()); }
  double edge(int64_t i) const { return low_ + width_ * static_cast<double>(i); }
  const std::vector<double>& counts() const { return counts_; }
  double total() const;
  // The value below which the fraction q in [0, 1] lies, linear inside a bin. REQUIRES: total() >
  // 0.
  double Quantile(double q) const;

 private:
  void Cover(double min, double max);
  int64_t BinOf(double value) const;

  double low_ = 0, width_ = 0;
  std::vector<double> counts_;
};

}  // namespace assay
