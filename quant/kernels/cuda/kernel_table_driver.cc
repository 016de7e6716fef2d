#include "quant/kernels/cuda/kernel_table.h"

namespace assay {

const CudaLinearKernels* DriverLinearKernels() {
  static constexpr CudaLinearKernels kernels = ASSAY_CUDA_LINEAR_KERNELS(cuda);
  return &kernels;
}

}  // namespace assay
