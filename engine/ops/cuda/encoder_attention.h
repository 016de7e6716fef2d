// Bidirectional attention inside each sequence (encoders): queries, keys and values are columns of
// one wider matrix or matrices of their own. The inner code is that of prefill (attention_tile.h),
// without a pool. A row's result depends on its sequence alone, bit for bit.
#pragma once
#include "engine/ops/cuda/kv_layout.h"

namespace assay {

// Heads of row r begin at data + r * row_stride. Elements; even, 4-byte aligned.
struct HeadRows {
  const void* data = nullptr;
  int64_t row_stride = 0;
};

struct EncoderAttentionArgs {
  Half type = Half::kF16;
  HeadRows q;     // [rows][heads][head_dim], T
  HeadRows k, v;  // [rows][kv_heads][head_dim], T
  int heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 0;
  // [num_tiles], device memory; start_position: of the tile's first row in its sequence, whose
  // first row is therefore first_row - start_position.
  const QueryTile* tiles = nullptr;
  int num_tiles = 0;
  const int32_t* lengths = nullptr;  // [sequences], device memory: rows of each
  void* y = nullptr;                 // [rows][heads][head_dim], T; rows of no tile are left alone
};

ASSAY_LAUNCHER(const char* EncoderAttentionRefuses(const EncoderAttentionArgs& args))
ASSAY_LAUNCHER(int EncoderAttention(const EncoderAttentionArgs& args, const LaunchContext& context))

}  // namespace assay
