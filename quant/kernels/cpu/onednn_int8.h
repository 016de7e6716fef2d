// Kernel "onednn_int8": int8_channel weights times a8_token activations through oneDNN's u8 x s8 ->
// s32 matmul, where the CPU multiplies so without saturation (AVX512-VNNI, AVX-VNNI, AMX). The
// integer dot products are exact and the f32 epilogue is that of "reference": bit for bit the same
// results. Built without oneDNN it refuses every problem (onednn_absent.cc).
#pragma once
#include <memory>

#include "quant/linear.h"

namespace assay {

struct OnednnInt8Options {
  // For tests on CPUs without VNNI only: runs anyway. oneDNN then adds pairs of products in 16 bit
  // and saturates, so the results are right only for weight codes in [-63, 63].
  bool skip_isa_check = false;
};
std::unique_ptr<LinearKernel> MakeOnednnInt8Kernel(const OnednnInt8Options& options);

// Whether this binary was built with oneDNN.
bool HasOnednn();

}  // namespace assay
