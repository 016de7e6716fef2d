#include "quant/linear.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

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

}  // namespace

absl::StatusOr<QuantizedLinear> QuantizedLinear::Create(const QuantizedTensor& w, Tensor bias,
                                                        const LinearOptions& options) {
  if (w.scheme == nullptr) return absl::InvalidArgumentError("the weight has no scheme");
  // Decoding no rows checks that the tensors are those that the scheme draws.
  RETURN_IF_ERROR(w.scheme->DecodeRows(w, 0, 0, {}));
  RETURN_IF_ERROR(CheckBias(bias, w.shape[0]));

  QuantizedLinear linear;
  linear.problem_ = {w.shape, w.scheme, options.activation, DeviceKind::kCpu};
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

}  // namespace assay
