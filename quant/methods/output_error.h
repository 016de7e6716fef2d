// What a change of a layer's weight does to its output: E [n, k] is W minus what stands for it.
//   mean over tokens of |E x|^2, row by row of the output
// From the Hessian where it was collected, else from sample rows, else from the diagonal (which
// takes channels for uncorrelated). Thread-safe.
#pragma once
#include <span>
#include <vector>

#include "quant/methods/input_statistics.h"

namespace assay {

class OutputError {
 public:
  // FailedPrecondition: no tokens. `input` must outlive this.
  static absl::StatusOr<OutputError> Create(const InputStatistics& input);

  // [n] for difference [n, k].
  std::vector<double> Rows(std::span<const float> difference, ThreadPool* pool) const;
  double Sum(std::span<const float> difference, ThreadPool* pool) const;
  // Half the derivative of the sum by the difference: E H' [n, k] into `out`, H' = mean of x x^T.
  void HalfGradient(std::span<const float> difference, std::span<float> out,
                    ThreadPool* pool) const;

 private:
  explicit OutputError(const InputStatistics& input) : input_(&input) {}
  std::vector<float> OnSamples(std::span<const float> difference, ThreadPool* pool) const;

  const InputStatistics* input_;
  std::vector<float> moments_;  // [k, k]: mean of x x^T, or empty
};

}  // namespace assay
