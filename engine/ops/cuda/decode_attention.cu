#include "engine/ops/cuda/decode_attention.h"

namespace assay::ASSAY_SIMT {

const char* DecodeAttentionRefuses(const DecodeAttentionArgs& args) {
  if (const char* const reason = KvLayerRefuses(args.kv)) return reason;
  if (args.heads < 1 || args.heads % args.kv.kv_heads != 0)
    return "heads must be a multiple of kv_heads";
  if (args.heads / args.kv.kv_heads > 16) return "at most 16 query heads share a KV head";
  if (args.splits < 1 || args.splits > kMaxDecodeSplits) return "splits must be 1 to 64";
  if (args.sliding_window < 0) return "sliding_window must not be negative";
  return nullptr;
}

int DecodeAttention(const DecodeAttentionArgs& args, const LaunchContext& context) {
  if (args.batch.rows == 0) return 0;
  return args.type == Half::kF16 ? DecodeAttentionF16(args, context)
                                 : DecodeAttentionBf16(args, context);
}

}  // namespace assay::ASSAY_SIMT
