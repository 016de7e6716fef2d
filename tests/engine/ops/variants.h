// Every set of CPU kernels as a test parameter, with a context to run it in.
#pragma once
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/cpu_info.h"
#include "base/thread_pool.h"
#include "engine/ops/cpu/cpu_ops.h"

namespace assay {

class OpsVariant : public testing::TestWithParam<const OpKernels*> {
 protected:
  void SetUp() override {
    const CpuInfo& cpu = HostCpu();
    if (GetParam() == &kAvx2Kernels && !(cpu.avx2 && cpu.fma && cpu.f16c)) {
      GTEST_SKIP() << "NOT TESTED HERE: this processor has no AVX2, FMA and F16C";
    }
  }
  const CpuOps ops{*GetParam()};
  ThreadPool pool{{.num_threads = 3}};
  Arena arena;
  ComputeContext context{pool, arena};
};

#define ASSAY_OPS_VARIANTS(suite)                                                         \
  INSTANTIATE_TEST_SUITE_P(Isa, suite, testing::Values(&kBaselineKernels, &kAvx2Kernels), \
                           [](const auto& info) { return std::string(info.param->name); })

inline MutableView ViewOf(std::vector<float>& values, Shape shape) {
  return {reinterpret_cast<std::byte*>(values.data()), shape, DType::kF32, nullptr};
}
inline TensorView ViewOf(const std::vector<float>& values, Shape shape) {
  return {reinterpret_cast<const std::byte*>(values.data()), shape, DType::kF32, nullptr};
}

}  // namespace assay
