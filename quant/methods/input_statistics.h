// What calibration knows about the input x [tokens, k] of a linear layer (or of several that share
// it): all that rounding methods, transforms, activation ranges and sensitivity scores ask for.
//
// One pass: Update is called once per batch and keeps nothing of it but sample rows, so memory is
// bounded: 40 bytes per channel, 4 k^2 bytes for the Hessian, 4 k bytes per sample row, 64 KB per
// histogram. Deterministic: the same batches in the same order give the same bits for any pool.
// Thread rule: one caller at a time; const methods are thread-safe.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/tensor.h"
#include "base/thread_pool.h"
#include "quant/methods/histogram.h"

namespace assay {

struct InputStatisticsOptions {
  bool hessian = false;          // sum of x x^T, for GPTQ, AWQ and learned rounding
  bool cross = false;            // sum of (x_full - x) x^T, for GPTAQ; implies hessian
  bool histogram = false;        // of x and of |x|, for activation ranges
  int64_t sample_rows = 0;       // kept rows of x, drawn uniformly from all of them
  uint64_t seed = 0;             // of the draw
  double moving_average = 0.01;  // weight of a new batch in moving_min(), moving_max()
};

class InputStatistics {
 public:
  // InvalidArgument: k < 1, negative sample_rows, moving_average outside (0, 1].
  static absl::StatusOr<InputStatistics> Create(int64_t k, const InputStatisticsOptions& options);

  // x [m, k] f32, finite. With `cross`, x_full [m, k] is the same input as the unquantized model
  // has it. `pool` may be null. InvalidArgument: another shape or type; NaN or infinity (names row
  // and column); x_full missing, or given without `cross`. A refused batch leaves no trace.
  absl::Status Update(TensorView x, ThreadPool* pool) { return Update(x, {}, pool); }
  absl::Status Update(TensorView x, TensorView x_full, ThreadPool* pool);
  // Adds what `other` has seen, as if its batches had come after ours; sample rows are drawn from
  // both in proportion. InvalidArgument: another k or other options.
  absl::Status Merge(const InputStatistics& other);

  int64_t k() const { return k_; }
  int64_t tokens() const { return tokens_; }
  const InputStatisticsOptions& options() const { return options_; }
  size_t bytes() const;

  // Per channel [k].
  const std::vector<float>& absmax() const { return absmax_; }
  const std::vector<float>& min() const { return min_; }
  const std::vector<float>& max() const { return max_; }
  const std::vector<double>& sum_absolute() const { return sum_absolute_; }  // sum |x|
  const std::vector<double>& sum_squares() const { return sum_squares_; }    // sum x^2: imatrix

  // Of all elements. 0 before the first token.
  float tensor_min() const;
  float tensor_max() const;
  double moving_min() const { return moving_min_; }
  double moving_max() const { return moving_max_; }
  // The largest std over batches of x - (channel's min + channel's max): the denominator of
  // range_parm (reference/quantization 2.3: not halved there either).
  double shifted_std() const { return shifted_std_; }
  double kurtosis() const;                                   // E[(x - mean)^4] / var^2 - 3
  const Histogram& histogram() const { return histogram_; }  // of x
  const Histogram& absolute_histogram() const { return absolute_histogram_; }  // of |x|

  // 2 / tokens * sum x x^T [k, k], both triangles. REQUIRES: options().hessian.
  template <typename T>
  std::vector<T> Hessian() const;
  // 2 / tokens * sum (x_full - x) x^T [k, k]. REQUIRES: options().cross.
  std::vector<double> Cross() const;
  // [num_samples, k]
  std::span<const float> samples() const { return samples_; }
  int64_t num_samples() const { return static_cast<int64_t>(samples_.size()) / k_; }

 private:
  struct Moments {  // central, of `count` elements (Pebay 2008, equations 1.2 to 1.5)
    double count = 0, mean = 0, m2 = 0, m3 = 0, m4 = 0;
    void Merge(const Moments& other);
  };
  InputStatistics(int64_t k, const InputStatisticsOptions& options);
  absl::Status Check(TensorView x, TensorView x_full) const;
  void UpdateChannels(const float* x, int64_t m, ThreadPool* pool);
  void UpdateProducts(const float* x, const float* x_full, int64_t m, ThreadPool* pool);
  void UpdateSamples(const float* x, int64_t m);

  int64_t k_;
  InputStatisticsOptions options_;
  int64_t tokens_ = 0;
  std::vector<float> absmax_, min_, max_;
  std::vector<double> sum_absolute_, sum_squares_;
  double moving_min_ = 0, moving_max_ = 0, shifted_std_ = 0;
  Moments moments_;
  Histogram histogram_, absolute_histogram_;
  std::vector<float> products_;  // sum x x^T: upper triangle valid
  std::vector<float> cross_;     // sum (x_full - x) x^T
  std::vector<float> samples_;
};

}  // namespace assay
