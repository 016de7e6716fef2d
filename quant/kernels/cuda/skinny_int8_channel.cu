#include "quant/kernels/cuda/skinny_kernel.h"

namespace assay::ASSAY_SIMT {

int SkinnyInt8Channel(const SkinnyArgs& args, const LaunchContext& context) {
  return SkinnyByType<Int8ChannelFormat>(args, context);
}

}  // namespace assay::ASSAY_SIMT
