#include "engine/ops/cuda/prefill_kernel.h"

namespace assay::ASSAY_SIMT {

int PrefillAttentionF16(const PrefillAttentionArgs& args, const LaunchContext& context) {
  return LaunchPrefill<F16>(args, context);
}

}  // namespace assay::ASSAY_SIMT
