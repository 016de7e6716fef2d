#include "base/cuda/runtime.h"

namespace assay {

const CudaRuntime* DriverCuda() { return nullptr; }

}  // namespace assay
