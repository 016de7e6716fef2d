// y[m, n] = x[m, k] W[n, k]^T + b[n], whatever the scheme: the only way the engine multiplies by a
// weight.
//
// A kernel is one implementation of (scheme, activation mode) on one device. It repacks the
// canonical weight once, at load, and runs for every m. The list in quant/kernel_list.cc is ordered
// fastest first, "reference" last; each refuses with a reason. What a weight has besides its codes
// (a rotation of x, a low-rank branch: quant/linear_parts.h) is computed around the kernel, in f32.
// All kernels here are
// batch-invariant: row i of y depends on row i of x alone, bit for bit, whatever m is.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/arena.h"
#include "quant/activation.h"
#include "quant/linear_parts.h"
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
  // supports it, with every refusal; whatever Pack and linear_parts.h return. `w` may be dropped
  // afterwards.
  static absl::StatusOr<QuantizedLinear> Create(const QuantizedTensor& w, Tensor bias,
                                                const LinearOptions& options);

  // A weight that is packed already, for a kernel that is in no list. `bias` as above.
  static absl::StatusOr<QuantizedLinear> Of(const LinearProblem& problem,
                                            const LinearKernel& kernel,
                                            std::unique_ptr<const PackedWeight> weight,
                                            Tensor bias);

  void Forward(TensorView x, MutableView y, ComputeContext& context,
               bool accumulate = false) const {
    const TensorView bias = bias_.empty() ? TensorView{} : bias_.view();
    if (parts_ != nullptr) return ForwardParts({x, bias, y, accumulate}, context);
    kernel_->Run(*weight_, {x, bias, y, accumulate}, context);
  }
  // Row `row` of W as it is without rotation, the low-rank part added.
  void DecodeRow(int64_t row, std::span<float> out) const;
  size_t scratch_bytes(int64_t m) const;

  const LinearProblem& problem() const { return problem_; }
  std::string_view kernel() const { return kernel_->name(); }
  const PackedWeight& weight() const { return *weight_; }  // the kernel's own
  size_t bytes() const;
  bool rotates_input() const { return rotation() != nullptr; }
  // Of the input, and of the weight before its codes were found; null: none.
  const HadamardRotation* rotation() const {
    return parts_ == nullptr || !parts_->rotation.has_value() ? nullptr : &*parts_->rotation;
  }
  int64_t low_rank() const;  // of the branch, 0 without one
  // How the keys that it gives are stored and multiplied; null: nothing is said.
  const KeyParts* keys() const { return keys_.has_value() ? &*keys_ : nullptr; }
  // Of the input as Forward is given it; nullopt: its scales are found from it, or it is rotated
  // before they apply.
  std::optional<StaticRange> static_range() const { return static_range_; }
  // One line per kernel that was asked before the chosen one: "onednn_int8: CPU has no VNNI".
  const std::vector<std::string>& refusals() const { return refusals_; }

 private:
  // All but the codes.
  struct Parts {
    std::optional<HadamardRotation> rotation;
    std::unique_ptr<const QuantizedLinear> low_rank_a, low_rank_b;  // both or neither
  };
  QuantizedLinear() = default;
  static absl::StatusOr<std::unique_ptr<const Parts>> MakeParts(const QuantizedTensor& w);
  void ForwardParts(const LinearArgs& args, ComputeContext& context) const;

  LinearProblem problem_;
  const LinearKernel* kernel_ = nullptr;
  std::unique_ptr<const PackedWeight> weight_;
  Tensor bias_;
  std::unique_ptr<const Parts> parts_;  // null: none
  std::optional<KeyParts> keys_;
  std::optional<StaticRange> static_range_;
  std::vector<std::string> refusals_;
};

}  // namespace assay
