#include "quant/linear.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/thread_pool.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

std::string Describe(const LinearProblem& p) {
  return absl::StrCat("scheme=", std::string(p.scheme->name()),
                      " activation=", std::string(Name(p.activation)),
                      " shape=", ToString(p.shape));
}

absl::Status CheckBias(const Tensor& bias, int64_t n) {
  if (bias.empty() || (bias.dtype() == DType::kF32 && bias.shape() == Shape{n})) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("bias must be f32 ", ToString(Shape{n}),
                                                 ": bias=", std::string(Name(bias.dtype())),
                                                 ToString(bias.shape())));
}

absl::Status NoKernel(const LinearProblem& problem, std::string_view pinned,
                      const std::vector<std::string>& refusals) {
  if (!refusals.empty()) {
    return absl::UnimplementedError(
        absl::StrCat("no kernel supports this linear layer: ", Describe(problem), "; ",
                     absl::StrJoin(refusals, "; ")));
  }
  const auto append_name = [](std::string* out, const LinearKernel* kernel) {
    absl::StrAppend(out, std::string(kernel->name()));
  };
  return absl::NotFoundError(
      absl::StrCat("no linear kernel of this name: ", std::string(pinned),
                   "; known: ", absl::StrJoin(AllLinearKernels(), ", ", append_name)));
}

// One factor of a low-rank branch as a linear of its own.
absl::StatusOr<std::unique_ptr<const QuantizedLinear>> MakeFactor(Tensor factor) {
  QuantizedTensor w;
  w.scheme = &Bf16Scheme();
  w.shape = factor.shape();
  w.codes = std::move(factor);
  ASSIGN_OR_RETURN(QuantizedLinear linear, QuantizedLinear::Create(w, Tensor(), {}));
  return std::make_unique<const QuantizedLinear>(std::move(linear));
}

}  // namespace

absl::StatusOr<QuantizedLinear> QuantizedLinear::Create(const QuantizedTensor& w, Tensor bias,
                                                        const LinearOptions& options) {
  if (w.scheme == nullptr) return absl::InvalidArgumentError("the weight has no scheme");
  // Decoding no rows checks that the tensors are those that the scheme draws.
  RETURN_IF_ERROR(w.scheme->DecodeRows(w, 0, 0, {}));
  RETURN_IF_ERROR(CheckBias(bias, w.shape[0]));

  QuantizedLinear linear;
  linear.problem_ = {w.shape, w.scheme, options.activation, DeviceKind::kCpu};
  ASSIGN_OR_RETURN(linear.parts_, MakeParts(w));
  ASSIGN_OR_RETURN(linear.keys_, ReadKeyParts(w));
  if (!linear.rotates_input()) {
    const absl::StatusOr<ActivationParams> params = ReadActivationParams(w, options.activation);
    if (params.ok()) linear.static_range_ = StaticRangeOf(options.activation, *params);
  }
  for (const LinearKernel* kernel : AllLinearKernels()) {
    if (!options.kernel.empty() && kernel->name() != options.kernel) continue;
    // A kernel may find out only when it packs that it cannot: onednn_int8 tries its numbers there.
    absl::Status refusal = kernel->Supports(linear.problem_);
    if (refusal.ok()) {
      auto packed = kernel->Pack(w, options.activation);
      if (packed.ok()) {
        linear.kernel_ = kernel;
        linear.weight_ = *std::move(packed);
        linear.bias_ = std::move(bias);
        return linear;
      }
      refusal = packed.status();
    }
    if (!absl::IsUnimplemented(refusal)) return refusal;
    linear.refusals_.push_back(absl::StrCat(std::string(kernel->name()), ": ", refusal.message()));
  }
  return NoKernel(linear.problem_, options.kernel, linear.refusals_);
}

absl::StatusOr<QuantizedLinear> QuantizedLinear::Of(const LinearProblem& problem,
                                                    const LinearKernel& kernel,
                                                    std::unique_ptr<const PackedWeight> weight,
                                                    Tensor bias) {
  RETURN_IF_ERROR(CheckBias(bias, problem.shape[0]));
  QuantizedLinear linear;
  linear.problem_ = problem;
  linear.kernel_ = &kernel;
  linear.weight_ = std::move(weight);
  linear.bias_ = std::move(bias);
  return linear;
}

absl::StatusOr<std::unique_ptr<const QuantizedLinear::Parts>> QuantizedLinear::MakeParts(
    const QuantizedTensor& w) {
  auto parts = std::make_unique<Parts>();
  ASSIGN_OR_RETURN(parts->rotation, ReadInputRotation(w));
  ASSIGN_OR_RETURN(std::optional<LowRankBranch> branch, ReadLowRank(w));
  if (!parts->rotation.has_value() && !branch.has_value()) return nullptr;
  if (branch.has_value()) {
    ASSIGN_OR_RETURN(parts->low_rank_a, MakeFactor(std::move(branch->a)));
    ASSIGN_OR_RETURN(parts->low_rank_b, MakeFactor(std::move(branch->b)));
  }
  return std::unique_ptr<const Parts>(std::move(parts));
}

void QuantizedLinear::ForwardParts(const LinearArgs& args, ComputeContext& context) const {
  const Arena::Scope scope(context.scratch);
  const int64_t m = args.x.shape[0], k = args.x.shape[1];
  LinearArgs seen = args;
  if (parts_->rotation.has_value()) {
    auto* rotated = context.scratch.Allocate<float>(static_cast<size_t>(m * k));
    const float* x = args.x.as<float>();
    context.pool.ParallelFor(m, std::max<int64_t>(1, 12000 / k), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        parts_->rotation->Rotate(x + row * k, rotated + row * k);
    });
    seen.x.data = reinterpret_cast<const std::byte*>(rotated);
  }
  kernel_->Run(*weight_, seen, context);
  if (parts_->low_rank_a == nullptr) return;
  auto* inner = context.scratch.Allocate<float>(static_cast<size_t>(m * low_rank()));
  const MutableView between = {
      reinterpret_cast<std::byte*>(inner), {m, low_rank()}, DType::kF32, args.y.device};
  parts_->low_rank_a->Forward(seen.x, between, context);
  parts_->low_rank_b->Forward(between, args.y, context, /*accumulate=*/true);
}

void QuantizedLinear::DecodeRow(int64_t row, std::span<float> out) const {
  kernel_->DecodeRow(*weight_, row, out);
  if (parts_ == nullptr) return;
  if (parts_->low_rank_a != nullptr) {
    std::vector<float> weights(static_cast<size_t>(low_rank())), factor(out.size());
    parts_->low_rank_b->DecodeRow(row, weights);
    for (size_t r = 0; r < weights.size(); ++r) {
      parts_->low_rank_a->DecodeRow(static_cast<int64_t>(r), factor);
      for (size_t i = 0; i < out.size(); ++i) out[i] += weights[r] * factor[i];
    }
  }
  if (parts_->rotation.has_value()) parts_->rotation->RotateRowsBack(out);
}

size_t QuantizedLinear::scratch_bytes(int64_t m) const {
  size_t bytes = kernel_->scratch_bytes(problem_, m);
  if (parts_ == nullptr) return bytes;
  size_t own = 0;
  if (parts_->rotation.has_value())
    own += static_cast<size_t>(m * problem_.shape[1]) * sizeof(float) + 64;
  if (parts_->low_rank_a != nullptr) {
    own += static_cast<size_t>(m * low_rank()) * sizeof(float) + 64;
    bytes = std::max(
        {bytes, parts_->low_rank_a->scratch_bytes(m), parts_->low_rank_b->scratch_bytes(m)});
  }
  return bytes + own;
}

size_t QuantizedLinear::bytes() const {
  const size_t bytes = weight_->bytes() + bias_.bytes();
  if (low_rank() == 0) return bytes;
  return bytes + parts_->low_rank_a->bytes() + parts_->low_rank_b->bytes();
}

int64_t QuantizedLinear::low_rank() const {
  return parts_ == nullptr || parts_->low_rank_a == nullptr
             ? 0
             : parts_->low_rank_a->problem().shape[0];
}

}  // namespace assay
