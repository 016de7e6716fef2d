#include "quant/kernels/cuda/skinny_kernel.h"

namespace assay::ASSAY_SIMT {

int SkinnyInt8Group(const SkinnyArgs& args, const LaunchContext& context) {
  return args.w.zeros == nullptr ? SkinnyByType<Int8GroupFormat<false>>(args, context)
                                 : SkinnyByType<Int8GroupFormat<true>>(args, context);
}

}  // namespace assay::ASSAY_SIMT
