#include "quant/kernels/cuda/kernel_table.h"

namespace assay {

const CudaLinearKernels* DriverLinearKernels() { return nullptr; }

}  // namespace assay
