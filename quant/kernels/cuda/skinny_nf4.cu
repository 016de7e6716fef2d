#include "quant/kernels/cuda/skinny_kernel.h"

namespace assay::ASSAY_SIMT {

int SkinnyNf4(const SkinnyArgs& args, const LaunchContext& context) {
  return SkinnyByType<Nf4Format>(args, context);
}

}  // namespace assay::ASSAY_SIMT
