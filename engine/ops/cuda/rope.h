// Between the fused q|k|v projection and attention: per-head RMS norm where the model has it
// (Qwen3), rotation, and the append of keys and values to the KV pool in its format.
//
// Half i of a head is paired with i + head_dim / 2 (rotate_half). The angle is float(position) *
// inv_freq[i] in f32, as models are trained with; cos and sin are multiplied by attention_scale.
// Products and sums round one by one, as on the CPU (engine/ops/cpu). Padding rows are left alone.
#pragma once
#include "engine/ops/cuda/kv_layout.h"

namespace assay {

struct RopeAppendArgs {
  const void* qkv = nullptr;  // [rows][heads q, kv_heads k, kv_heads v][head_dim]: f32 or T
  bool qkv_is_f32 = true;
  Half type = Half::kF16;
  int heads = 0;                    // of queries
  const float* inv_freq = nullptr;  // [head_dim / 2]; nullptr: nothing is rotated
  float attention_scale = 1;
  const float *q_gain = nullptr, *k_gain = nullptr;  // [head_dim] each; both or none: no norm
  float eps = 0;
  DeviceBatch batch;
  KvLayer kv;
  void* q = nullptr;  // [rows][heads][head_dim], T
};

ASSAY_LAUNCHER(const char* RopeAppendRefuses(const RopeAppendArgs& args))
ASSAY_LAUNCHER(int RopeAppend(const RopeAppendArgs& args, const LaunchContext& context))

}  // namespace assay
