// A weight [n, k] on the device, in the canonical layout of its scheme (quant/schemes/*: every file
// draws its bytes): artifacts, the CPU and all GPUs share it, nothing is repacked.
#pragma once
#include "base/cuda/simt.h"

namespace assay {

enum class Storage {
  kF32,        // codes f32 [n, k]
  kBf16,       // codes bf16 [n, k]
  kF16,        // codes f16 [n, k]: no scheme's, what others are rounded to on a device without bf16
  kInt4Group,  // int4_group: sym, full, signed_max (zeros null), asym (zeros u8, two a byte)
  kInt4Float,  // int4_group:float: zeros bf16 [n, groups]
  kInt8Channel,  // scales f32 [n]
  kInt8Group,    // sym: codes s8, zeros null; asym: codes u8, zeros u8 [n, groups]
  kE4M3,         // fp8_e4m3: scales f32 [n / scale_rows rounded up, groups]
  kNf4,          // scales f32 [n, groups]; double quantization has its scales expanded before
};

struct StoredWeight {
  Storage storage = Storage::kF32;
  int n = 0, k = 0;
  int group = 0;       // inputs that share a scale; >= k: the whole row does
  int scale_rows = 1;  // rows that share a scale; E4M3: 1 (channel), n (tensor) or 128 (block)
  const void* codes = nullptr;
  const void* scales = nullptr;
  const void* zeros = nullptr;
};

ASSAY_BOTH int DivideUp(int a, int b) { return (a + b - 1) / b; }

ASSAY_BOTH int GroupsOf(const StoredWeight& w) {
  return w.group <= 0 || w.group >= w.k ? 1 : DivideUp(w.k, w.group);
}

ASSAY_BOTH constexpr int StorageBits(Storage storage) {
  switch (storage) {
    case Storage::kF32:
      return 32;
    case Storage::kBf16:
    case Storage::kF16:
      return 16;
    case Storage::kInt4Group:
    case Storage::kInt4Float:
    case Storage::kNf4:
      return 4;
    case Storage::kInt8Channel:
    case Storage::kInt8Group:
    case Storage::kE4M3:
      return 8;
  }
  return 0;
}

// cudaErrorInvalidValue: what a launching function returns for what its Refuses names.
inline constexpr int kInvalidLaunch = 1;

// nf4's values by code, as in quant/schemes/nf4.cc.
ASSAY_DEVICE float Nf4Value(int code) {
  static const float values[16] = {-1.0f,
                                   -0.6961928009986877f,
                                   -0.5250730514526367f,
                                   -0.39491748809814453f,
                                   -0.28444138169288635f,
                                   -0.18477343022823334f,
                                   -0.09105003625154495f,
                                   0.0f,
                                   0.07958029955625534f,
                                   0.16093020141124725f,
                                   0.24611230194568634f,
                                   0.33791524171829224f,
                                   0.44070982933044434f,
                                   0.5626170039176941f,
                                   0.7229568362236023f,
                                   1.0f};
  return values[code];
}

}  // namespace assay
