#include "engine/ops/cuda/decode_kernel.h"

namespace assay::ASSAY_SIMT {

int DecodeAttentionF16(const DecodeAttentionArgs& args, const LaunchContext& context) {
  return LaunchDecode<F16>(args, context);
}

}  // namespace assay::ASSAY_SIMT
