// What models do on a device besides linear layers, of one world: the driver's or the emulator's.
#pragma once
#include "engine/ops/cuda/decode_attention.h"
#include "engine/ops/cuda/encoder.h"
#include "engine/ops/cuda/encoder_attention.h"
#include "engine/ops/cuda/norm.h"
#include "engine/ops/cuda/prefill_attention.h"
#include "engine/ops/cuda/rope.h"
#include "engine/ops/cuda/top_candidates.h"

namespace assay {

struct CudaOpsKernels {
  decltype(&cuda::Norm) norm;
  decltype(&cuda::Activate) activate;
  decltype(&cuda::TopCandidates) top_candidates;
  decltype(&cuda::RopeAppend) rope_append;
  decltype(&cuda::DecodeAttention) decode_attention;
  decltype(&cuda::PrefillAttention) prefill_attention;
  decltype(&cuda::Embed) embed;
  decltype(&cuda::EncoderAttention) encoder_attention;
  decltype(&cuda::Pool) pool;
  decltype(&cuda::Dense) dense;
};
#define ASSAY_CUDA_OPS_KERNELS(world)                                                         \
  {                                                                                           \
    .norm = world::Norm, .activate = world::Activate, .top_candidates = world::TopCandidates, \
    .rope_append = world::RopeAppend, .decode_attention = world::DecodeAttention,             \
    .prefill_attention = world::PrefillAttention, .embed = world::Embed,                      \
    .encoder_attention = world::EncoderAttention, .pool = world::Pool, .dense = world::Dense, \
  }

// nullptr: built without a CUDA toolkit.
const CudaOpsKernels* DriverOpsKernels();
const CudaOpsKernels& EmulatedOpsKernels();  // of tests

}  // namespace assay
