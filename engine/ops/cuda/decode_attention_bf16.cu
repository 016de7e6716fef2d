#include "engine/ops/cuda/decode_kernel.h"

namespace assay::ASSAY_SIMT {

int DecodeAttentionBf16(const DecodeAttentionArgs& args, const LaunchContext& context) {
  return LaunchDecode<Bf16>(args, context);
}

}  // namespace assay::ASSAY_SIMT
