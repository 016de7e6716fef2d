#include "tests/bench/cuda/kernels_state.h"

namespace assay {

const CudaRuntime* BenchRuntime() { return DriverCuda(); }

}  // namespace assay
