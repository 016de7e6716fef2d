// The range of a static activation scale, from statistics of the input: as the reference tools
// compute it (reference/quantization 1.1, 1.2). Thread-safe.
//
//   minmax              smallest and largest element
//   moving_average      of the batches' smallest and largest (torch.ao MovingAverageMinMaxObserver)
//   percentile=99.99    symmetric: that share of |x| (ModelOpt "percentile"; ORT uses 99.999)
//   mse                 symmetric: least squared error of the histogram of |x| (ModelOpt "mse")
//   entropy             symmetric: least KL divergence (TensorRT, ModelOpt "entropy")
//   histogram           asymmetric: tails shrunk greedily while the expected squared error falls
//                       (torch.ao HistogramObserver)
//   auto                histogram where range_parm <= 50, else minmax (msModelSlim act_method 3)
#pragma once
#include <span>
#include <string_view>

#include "quant/methods/input_statistics.h"

namespace assay {

struct ActivationRange {
  double min = 0, max = 0;  // min = -max for the symmetric methods
};

// Spelled as above; all but minmax, moving_average need options().histogram. InvalidArgument: an
// unknown method or a percentile outside (0, 100]; FailedPrecondition: no tokens or no histogram.
absl::StatusOr<ActivationRange> FindActivationRange(const InputStatistics& input,
                                                    std::string_view method);
std::span<const std::string_view> AllActivationRanges();
// InvalidArgument: the spelling is none of them.
absl::Status CheckActivationRange(std::string_view method);

// The largest |x| to represent with `bits` bits and a sign, from a histogram of |x| from 0 on.
double AbsmaxByPercentile(const Histogram& absolute, double percentile);
double AbsmaxByMse(const Histogram& absolute, int bits = 8);
double AbsmaxByEntropy(const Histogram& absolute, int bits = 8);
// From a histogram of x, for a grid of 2^bits points.
ActivationRange RangeByHistogram(const Histogram& histogram, int bits = 8);

}  // namespace assay
