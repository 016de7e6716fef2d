#include "engine/ops/cuda/kernel_table.h"

namespace assay {

const CudaOpsKernels* DriverOpsKernels() { return nullptr; }

}  // namespace assay
