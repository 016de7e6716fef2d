#include "quant/kernels/cuda/skinny_kernel.h"

namespace assay::ASSAY_SIMT {

int SkinnyInt4(const SkinnyArgs& args, const LaunchContext& context) {
  return SkinnyByType<Int4Format>(args, context);
}

}  // namespace assay::ASSAY_SIMT
