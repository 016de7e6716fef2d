#include "quant/kernels/cuda/pad.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 256;

ASSAY_KERNEL(kThreads) PadKernel(PadArgs a) {
  PdlWait();
  const auto row = static_cast<size_t>(BlockX());
  const auto* const from = static_cast<const uint8_t*>(a.from) + row * a.width;
  auto* const to = static_cast<uint8_t*>(a.to) + row * a.padded;
  for (int i = ThreadIndex(); i < a.padded; i += kThreads)
    to[i] = i < a.width ? from[i] : static_cast<uint8_t>(0);
  PdlTrigger();
}

}  // namespace

int Pad(const PadArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return 0;
  return Launch({.x = args.rows, .threads = kThreads}, context, PadKernel, args);
}

}  // namespace assay::ASSAY_SIMT
