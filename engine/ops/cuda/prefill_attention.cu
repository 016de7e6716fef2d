#include "engine/ops/cuda/prefill_attention.h"

namespace assay::ASSAY_SIMT {

const char* PrefillAttentionRefuses(const PrefillAttentionArgs& args) {
  if (const char* const reason = KvLayerRefuses(args.kv)) return reason;
  if (args.heads < 1 || args.heads % args.kv.kv_heads != 0)
    return "heads must be a multiple of kv_heads";
  if (args.sliding_window < 0) return "sliding_window must not be negative";
  return nullptr;
}

int PrefillAttention(const PrefillAttentionArgs& args, const LaunchContext& context) {
  if (args.num_tiles == 0) return 0;
  return args.type == Half::kF16 ? PrefillAttentionF16(args, context)
                                 : PrefillAttentionBf16(args, context);
}

}  // namespace assay::ASSAY_SIMT
