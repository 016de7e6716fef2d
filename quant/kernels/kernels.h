// The linear kernels by name, for the list and for tests. Stateless, thread-safe.
#pragma once
#include "quant/linear.h"

namespace assay {

const LinearKernel& OnednnInt8Kernel();  // "onednn_int8": cpu/onednn_int8.cc or onednn_absent.cc
const LinearKernel& Avx512Int8Kernel();  // "avx512_int8": cpu/panel_int8.cc
const LinearKernel& Avx2Int8Kernel();    // "avx2_int8": cpu/panel_int8.cc
const LinearKernel& Avx512F32Kernel();   // "avx512_f32": cpu/panel_f32.cc
const LinearKernel& Avx2F32Kernel();     // "avx2_f32": cpu/panel_f32.cc
const LinearKernel& DecodedF32Kernel();  // "decoded_f32": reference/decoded.cc
const LinearKernel& ReferenceKernel();   // "reference": reference/reference.cc

}  // namespace assay
