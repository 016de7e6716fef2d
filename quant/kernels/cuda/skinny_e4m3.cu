#include "quant/kernels/cuda/skinny_kernel.h"

namespace assay::ASSAY_SIMT {

int SkinnyE4M3(const SkinnyArgs& args, const LaunchContext& context) {
  return args.w.scale_rows == 128 && GroupsOf(args.w) > 1
             ? SkinnyByType<E4M3Format<true>>(args, context)
             : SkinnyByType<E4M3Format<false>>(args, context);
}

}  // namespace assay::ASSAY_SIMT
