// Weights quantized on a GPU, for the host: bit for bit what QuantScheme::Encode makes.
//
//   int8_channel; fp8_e4m3, with scales by row, tensor and block; int4_group, its grids sym, full
//   and asym; int8_group; nf4 without double quantization
//
// Large weights go through in slices of rows, two in turns: while kernels are at work on one, the
// next goes up through the pinned ring.
#pragma once
#include "quant/kernels/cuda/cuda_linear.h"

namespace assay {

// Of device memory, for a slice and what is made of it; at most two are held.
inline constexpr size_t kEncodeSlotBytes = size_t{32} << 20;

// w [n, k] f32 in host memory; so is the result. Thread-safe. Unimplemented: no kernel for this
// scheme, or rows that no slot holds; InvalidArgument: no matrix of finite f32 numbers (what is
// wrong with it Encode says); ResourceExhausted; Internal: what the device says.
absl::StatusOr<QuantizedTensor> CudaEncode(const CudaBackend& backend, const QuantScheme& scheme,
                                           TensorView w, size_t slot_bytes = kEncodeSlotBytes);

}  // namespace assay
