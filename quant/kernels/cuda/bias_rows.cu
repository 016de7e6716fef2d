#include "quant/kernels/cuda/bias_rows.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 256;

ASSAY_KERNEL(kThreads) BiasRowsKernel(BiasRowsArgs args) {
  PdlWait();
  float* const y = args.y + static_cast<size_t>(BlockX()) * args.n;
  for (int i = ThreadIndex(); i < args.n; i += kThreads)
    y[i] = args.accumulate ? y[i] + args.bias[i] : args.bias[i];
  PdlTrigger();
}

}  // namespace

int BiasRows(const BiasRowsArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return 0;
  return Launch({.x = args.rows, .threads = kThreads}, context, BiasRowsKernel, args);
}

}  // namespace assay::ASSAY_SIMT
