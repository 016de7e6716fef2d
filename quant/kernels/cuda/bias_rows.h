// The bias of a layer, where the product is a library's that has none in f32: written to the rows
// of y before the product is added.
#pragma once
#include "base/cuda/simt.h"

namespace assay {

struct BiasRowsArgs {
  const float* bias = nullptr;  // [n]
  float* y = nullptr;           // [rows, n], dense
  int rows = 0, n = 0;
  bool accumulate = false;  // y += instead of y =
};
ASSAY_LAUNCHER(int BiasRows(const BiasRowsArgs& args, const LaunchContext& context))

}  // namespace assay
