#include "engine/ops/cuda/kernel_table.h"

namespace assay {

const CudaOpsKernels* DriverOpsKernels() {
  static constexpr CudaOpsKernels kernels = ASSAY_CUDA_OPS_KERNELS(cuda);
  return &kernels;
}

}  // namespace assay
