// Looks at the weights themselves: does what will be served decode to what the checkpoint says?
#pragma once
#include <string>

#include "quant/linear.h"

namespace assay {

class ThreadPool;

struct WeightCheck {
  double sqnr_db = 0;  // of the served weight against the checkpoint's
  std::string defect;  // empty, or what is wrong and in which row
};
// `original`: the layer in f32; `served`: in any scheme, through its packed weight. A row is a
// defect when its largest error exceeds four times that of rounding the original afresh in the same
// scheme (two steps instead of half a step): then the stored codes or scales are not those of this
// checkpoint. Both have one shape. Uses all threads of the pool.
absl::StatusOr<WeightCheck> CheckServedWeight(const QuantizedLinear& original,
                                              const QuantizedLinear& served, ThreadPool& pool);

}  // namespace assay
