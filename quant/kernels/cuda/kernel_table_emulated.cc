#include "quant/kernels/cuda/kernel_table.h"

namespace assay {

const CudaLinearKernels& EmulatedLinearKernels() {
  static constexpr CudaLinearKernels kernels = ASSAY_CUDA_LINEAR_KERNELS(emulated);
  return kernels;
}

}  // namespace assay
