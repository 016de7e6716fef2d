// What models do on a device besides linear layers, of one world: the driver's or the emulator's.
#pragma once
#include "engine/ops/cuda/decode_attention.h"
#include "engine/ops/cuda/norm.h"
#include "engine/ops/cuda/prefill_attention.h"
#include "engine/ops/cuda/rope.h"
#include "engine/ops/cuda/tokens.h"

namespace assay {

struct CudaOpsKernels {
  decltype(&cuda::Norm) norm;
  decltype(&cuda::Activate) activate;
  decltype(&cuda::Embed) embed;
  decltype(&cuda::Greedy) greedy;
  decltype(&cuda::RopeAppend) rope_append;
  decltype(&cuda::DecodeAttention) decode_attention;
  decltype(&cuda::PrefillAttention) prefill_attention;
};
#define ASSAY_CUDA_OPS_KERNELS(world)                                                        \
  {                                                                                          \
    .norm = world::Norm, .activate = world::Activate, .embed = world::Embed,                 \
    .greedy = world::Greedy, .rope_append = world::RopeAppend,                               \
    .decode_attention = world::DecodeAttention, .prefill_attention = world::PrefillAttention \
  }

// nullptr: built without a CUDA toolkit.
const CudaOpsKernels* DriverOpsKernels();
const CudaOpsKernels& EmulatedOpsKernels();  // of tests

}  // namespace assay
