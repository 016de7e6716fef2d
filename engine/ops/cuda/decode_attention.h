// Attention of decode steps: one query row per sequence over the paged KV pool. A block is (KV
// head, row, split): the query heads that share a KV head are the 16 rows of the tensor cores'
// products, a warp takes every kWarps-th page, and `splits` blocks share a row's positions in whole
// chunks of 64. What a block found goes to the workspace; the last one to arrive adds it up in the
// order of the splits.
//
// A row's result depends on its own sequence and on `splits`, bit for bit, and on nothing else of
// the batch. Queries and weights enter products as T, codes of 8 bits exactly; sums are f32.
//
// head_dim above 128 over a 16-bit pool takes 72 KB of shared memory, more than compute capability
// 7.5 has: the launch fails there.
#pragma once
#include "engine/ops/cuda/kv_layout.h"

namespace assay {

constexpr int kMaxDecodeSplits = 64;

struct DecodeAttentionArgs {
  Half type = Half::kF16;
  const void* q = nullptr;  // [rows][heads][head_dim], T, rotated
  int heads = 0;
  float scale = 0;
  int sliding_window = 0;  // positions a row can look back, itself included; 0 = all
  // Row r is at positions[r] of its sequence and sees what lies before it and itself.
  DeviceBatch batch;
  KvLayer kv;
  int splits = 1;              // blocks per row and KV head
  float* workspace = nullptr;  // DecodeWorkspaceBytes; unused where splits == 1
  int* arrived = nullptr;      // [rows][kv_heads], zeros before and after every launch; likewise
  void* y = nullptr;           // [rows][heads][head_dim], T; rows of padding are left alone
};

inline size_t DecodeWorkspaceBytes(int rows, int heads, int head_dim, int splits) {
  return splits == 1 ? 0 : sizeof(float) * rows * heads * splits * (head_dim + 2);
}

ASSAY_LAUNCHER(const char* DecodeAttentionRefuses(const DecodeAttentionArgs& args))
ASSAY_LAUNCHER(int DecodeAttention(const DecodeAttentionArgs& args, const LaunchContext& context))

// Of DecodeAttention, by T.
ASSAY_LAUNCHER(int DecodeAttentionF16(const DecodeAttentionArgs& args,
                                      const LaunchContext& context))
ASSAY_LAUNCHER(int DecodeAttentionBf16(const DecodeAttentionArgs& args,
                                       const LaunchContext& context))

}  // namespace assay
