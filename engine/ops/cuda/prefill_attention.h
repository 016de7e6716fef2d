// Causal attention of prompts over the paged KV pool, which holds their rows already: ragged, any
// number of rows per sequence, chunked or not. A block is one tile of rows and one query head. A
// row's result depends on its sequence alone, bit for bit, not on how it is cut into tiles.
//
// Queries, weights and what 8-bit codes stand for (scale * code) enter products as T; sums are f32.
#pragma once
#include "engine/ops/cuda/kv_layout.h"

namespace assay {

struct PrefillAttentionArgs {
  Half type = Half::kF16;
  const void* q = nullptr;  // [rows][heads][head_dim], T, rotated
  int heads = 0;
  float scale = 0;
  int sliding_window = 0;  // positions a row can look back, itself included; 0 = all
  // [num_tiles], device memory. Those with the longest way back first keep the end short.
  const QueryTile* tiles = nullptr;
  int num_tiles = 0;
  // [sequences][max_blocks]; only entries that cover what rows see are valid.
  const int32_t* block_tables = nullptr;
  int max_blocks = 0;
  KvLayer kv;
  void* y = nullptr;  // [rows][heads][head_dim], T; rows of no tile are left alone
};

ASSAY_LAUNCHER(const char* PrefillAttentionRefuses(const PrefillAttentionArgs& args))
ASSAY_LAUNCHER(int PrefillAttention(const PrefillAttentionArgs& args, const LaunchContext& context))

// Of PrefillAttention, by T.
ASSAY_LAUNCHER(int PrefillAttentionF16(const PrefillAttentionArgs& args,
                                       const LaunchContext& context))
ASSAY_LAUNCHER(int PrefillAttentionBf16(const PrefillAttentionArgs& args,
                                        const LaunchContext& context))

}  // namespace assay
