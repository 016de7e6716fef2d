// y[m, n] = x[m, k] W[n, k]^T + b[n], whatever the scheme: the only way the engine multiplies by a
// weight.
//
// A kernel is one implementation of (scheme, activation mode) on one device. It repacks the
// canonical weight once, at load, and runs for every m. The list in quant/kernel_list.cc is ordered
// fastest first, "reference" last; each refuses with a reason. All kernels here are
// batch-invariant: row i of y depends on row i of x alone, bit for bit, whatever m is.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/arena.h"
#include "quant/scheme.h"

namespace assay {

struct LinearProblem {
  Shape shape;  // [n, k]
  const QuantScheme* scheme = nullptr;
  ActivationMode activation = ActivationMode::kA16;
  DeviceKind device = DeviceKind::kCpu;
};

// A weight in a kernel's own layout. Immutable; freed with the last QuantizedLinear that holds it.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  virtual size_t bytes() const = 0;  // resident
};

struct LinearArgs {
  TensorView x;             // [m, k] f32
  TensorView bias;          // [n] f32, or empty
  MutableView y;            // [m, n] f32
  bool accumulate = false;  // y += ... instead of y = ... (residual connections)
};

// Stateless, const, thread-safe.
class LinearKernel {
 public:
  virtual ~LinearKernel() = default;
  virtual std::string_view name() const = 0;  // "avx2_int8", as logged, reported and benchmarked
  virtual absl::Status Supports(
      const LinearProblem& p) const = 0;  // Unimplemented names the reason
  virtual absl::StatusOr<std::unique_ptr<const PackedWeight>> Pack(
      const QuantizedTensor& w, ActivationMode activation) const = 0;
  // Upper bound of the scratch that Run takes from the arena.
  virtual size_t scratch_bytes(const LinearProblem& p, int64_t m) const = 0;
  // REQUIRES: shapes as above (checked once per model by QuantizedLinear, not here). Never
  // allocates outside the arena.
  virtual void Run(const PackedWeight& w, const LinearArgs& args,
                   ComputeContext& context) const = 0;
  // Row `row` of the weight as f32 [k]: embedding tables are read through the same packed copy.
  virtual void DecodeRow(const PackedWeight& w, int64_t row, std::span<float> out) const = 0;
};
std::span<const LinearKernel* const> AllLinearKernels();

struct LinearOptions {
  ActivationMode activation = ActivationMode::kA16;
  std::string kernel;  // pins one by name; empty = the first that supports the problem
};

class QuantizedLinear {
 public:
  // `bias` is [n] f32 or empty. NotFound: no kernel of the pinned name; Unimplemented: no kernel
  // supports it, with every refusal; whatever Pack returns. `w` may be dropped afterwards.
  static absl::StatusOr<QuantizedLinear> Create(const QuantizedTensor& w, Tensor bias,
                                                const LinearOptions& options);

  void Forward(TensorView x, MutableView y, ComputeContext& context,
               bool accumulate = false) const {
    kernel_->Run(*weight_, {x, bias_.empty() ? TensorView{} : bias_.view(), y, accumulate},
                 context);
  }
  void DecodeRow(int64_t row, std::span<float> out) const {
    kernel_->DecodeRow(*weight_, row, out);
  }
  size_t scratch_bytes(int64_t m) const { return kernel_->scratch_bytes(problem_, m); }

  const LinearProblem& problem() const { return problem_; }
  std::string_view kernel() const { return kernel_->name(); }
  size_t bytes() const { return weight_->bytes() + bias_.bytes(); }
  // One line per kernel that was asked before the chosen one: "onednn_int8: CPU has no VNNI".
  const std::vector<std::string>& refusals() const { return refusals_; }

 private:
  QuantizedLinear() = default;
  LinearProblem problem_;
  const LinearKernel* kernel_ = nullptr;
  std::unique_ptr<const PackedWeight> weight_;
  Tensor bias_;
  std::vector<std::string> refusals_;
};

}  // namespace assay
