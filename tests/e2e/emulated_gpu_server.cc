// assay-server on two emulated GPUs (base/cuda/emulator.h); at SIGUSR1 every kernel of a linear
// layer fails as after an illegal address. For tests/e2e/gpu_test.py.
#include <atomic>
#include <csignal>

#include "tests/e2e/serve_with_hooks.h"

namespace assay {
namespace {

constexpr int kIllegalAddress = 700;
std::atomic<bool> lost{false};

int SkinnyOrLost(const SkinnyArgs& args, const LaunchContext& context) {
  return lost.load() ? kIllegalAddress : EmulatedLinearKernels().skinny(args, context);
}

int Gemm16OrLost(const Gemm16Args& args, const LaunchContext& context) {
  return lost.load() ? kIllegalAddress : EmulatedLinearKernels().gemm16(args, context);
}

int Run(int argc, char** argv) {
  std::signal(SIGUSR1, [](int) { lost.store(true); });
  CudaLinearKernels kernels = EmulatedLinearKernels();
  kernels.skinny = &SkinnyOrLost;
  kernels.gemm16 = &Gemm16OrLost;
  const CudaWorld world = {EmulatedCuda(2), kernels, EmulatedOpsKernels()};
  AdmissionHooks hooks;
  hooks.cuda = &world;
  hooks.evaluation = EvaluationSize{.documents = 1, .window = 16};  // some hundred tokens a second
  return ServeWithHooks(argc, argv, hooks);
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) { return assay::Run(argc, argv); }
