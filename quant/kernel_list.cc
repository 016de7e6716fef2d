// Every linear kernel, fastest first, "reference" last. A new kernel: its file, a line here, a line
// in quant/kernels/kernels.h and in quant/CMakeLists.txt.
#include <array>

#include "quant/kernels/kernels.h"

namespace assay {

std::span<const LinearKernel* const> AllLinearKernels() {
  static const std::array<const LinearKernel*, 7> kernels = {
      &OnednnInt8Kernel(), &Avx512Int8Kernel(), &Avx2Int8Kernel(), &Avx512F32Kernel(),
      &Avx2F32Kernel(),    &DecodedF32Kernel(), &ReferenceKernel()};
  return kernels;
}

}  // namespace assay
