#include "engine/ops/cuda/prefill_kernel.h"

namespace assay::ASSAY_SIMT {

int PrefillAttentionBf16(const PrefillAttentionArgs& args, const LaunchContext& context) {
  return LaunchPrefill<Bf16>(args, context);
}

}  // namespace assay::ASSAY_SIMT
