// What the files of the C interface (kernels_abi.h) share.
#pragma once
#include <memory>
#include <string>

#include "engine/ops/cuda/kernel_table.h"
#include "quant/kernels/cuda/cuda_kernel.h"
#include "quant/kernels/cuda/cuda_linear.h"

namespace assay {
namespace world = ASSAY_WORLD;  // emulated or cuda

const CudaRuntime* BenchRuntime();  // of the world; nullptr: built without a toolkit

inline constexpr CudaLinearKernels kLinearKernels = ASSAY_CUDA_LINEAR_KERNELS(world);
inline constexpr CudaOpsKernels kOpsKernels = ASSAY_CUDA_OPS_KERNELS(world);

struct BenchState {
  std::unique_ptr<CudaDevice> device;
  std::unique_ptr<LtProducts> lt;  // null: no cuBLASLt here
  std::unique_ptr<CudaLinearKernel> kernel;
  CudaBackend Backend() const { return {*device, kLinearKernels, Half::kBf16, lt.get()}; }
};
BenchState& State();  // opened by assay_open

int Report(const absl::Status& status);             // 0, or -1 and keeps it for assay_error
int Report(int error, std::string_view op);         // of a launching function
int Refused(const char* why, std::string_view op);  // REQUIRES: not null
template <typename T>
T* ReportPointer(absl::StatusOr<std::unique_ptr<T>> made) {
  if (made.ok()) return made->release();
  Report(made.status());
  return nullptr;
}

// The weight as `scheme` stores it, made on the device of bf16 numbers there.
absl::StatusOr<std::unique_ptr<const CudaLinear>> QuantizedOnDevice(const LinearProblem& problem,
                                                                    const void* weight);
absl::StatusOr<LinearProblem> ProblemOf(std::string_view scheme, std::string_view activation, int n,
                                        int k);

}  // namespace assay
