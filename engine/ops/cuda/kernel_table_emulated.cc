#include "engine/ops/cuda/kernel_table.h"

namespace assay {

const CudaOpsKernels& EmulatedOpsKernels() {
  static constexpr CudaOpsKernels kernels = ASSAY_CUDA_OPS_KERNELS(emulated);
  return kernels;
}

}  // namespace assay
