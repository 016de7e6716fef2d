// A linear kernel, run on one weight and one input, as its tests do.
#pragma once
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/thread_pool.h"
#include "quant/activation.h"
#include "quant/kernels/kernels.h"
#include "tests/support/random_tensor.h"
#include "tests/support/scheme_testing.h"
#include "tests/support/status_matchers.h"

namespace assay {

// One (kernel, scheme, activation mode).
struct Variant {
  const LinearKernel* kernel;
  const QuantScheme* scheme;
  ActivationMode activation;
};

inline std::string ToName(const Variant& v) {
  return absl::StrCat(std::string(v.kernel->name()), "_", TestName(v.scheme->name()), "_",
                      std::string(Name(v.activation)));
}

inline bool IsPanelInt8(const LinearKernel* kernel) {
  return kernel == &Avx2Int8Kernel() || kernel == &Avx512Int8Kernel();
}

struct Call {
  int64_t m = 1;
  bool bias = false, accumulate = false;
  int threads = 1;
  bool decode = false;  // the phase of all rows
};

// The weight with what the variant's mode needs beside it: a static range of +-2.5 or so, two
// outlier columns.
inline absl::StatusOr<QuantizedTensor> EncodeFor(const Variant& v, TensorView w) {
  ASSIGN_OR_RETURN(QuantizedTensor q, v.scheme->Encode(w));
  ActivationParams params = {.scale = 0.02f, .zero = 7};
  if (HasFp8Codes(v.activation)) params.scale = 1.0f / 64;
  if (w.shape[1] > 3) params.outliers = {1, static_cast<int32_t>(w.shape[1] - 1)};
  RETURN_IF_ERROR(WriteActivationParams(params, v.activation, q));
  return q;
}

class Fixture {
 public:
  explicit Fixture(int threads, size_t scratch)
      : pool_({.num_threads = threads}), arena_(*Arena::Create(CpuDevice(), scratch)) {}
  ComputeContext context() { return {pool_, arena_}; }

 private:
  ThreadPool pool_;
  Arena arena_;
};

inline QuantizedLinear Make(const Variant& v, const QuantizedTensor& w, bool bias) {
  Tensor b = bias ? RandomTensor({w.shape[0]}, 5) : Tensor();
  return *QuantizedLinear::Create(w, std::move(b), {v.activation, std::string(v.kernel->name())});
}

inline std::vector<float> Forward(const QuantizedLinear& linear, TensorView x, const Call& call) {
  // Exactly the scratch that the kernel asked for: a kernel that takes more crashes here.
  Fixture fixture(call.threads, linear.scratch_bytes(call.m));
  ComputeContext context = fixture.context();
  Tensor y = RandomTensor({call.m, linear.problem().shape[0]}, 6);
  const std::vector<uint8_t> phases(static_cast<size_t>(call.m), call.decode ? 1 : 0);
  context.decode_rows = phases.data();
  linear.Forward(x, y.mutable_view(), context, call.accumulate);
  return {y.data<float>(), y.data<float>() + y.shape().elements()};
}

}  // namespace assay
