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

absl::StatusOr<const LinearKernel*> Choose(const LinearProblem& problem, std::string_view pinned,
                                           std::vector<std::string>& refusals) {
  bool found = pinned.empty();
  for (const LinearKernel* kernel : AllLinearKernels()) {
    if (!pinned.empty() && kernel->name() != pinned) continue;
    found = true;
    const absl::Status supports = kernel->Supports(problem);
    if (supports.ok()) return kernel;
    refusals.push_back(absl::StrCat(std::string(kernel->name()), ": ", supports.message()));
  }
  if (found) {
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
  ASSIGN_OR_RETURN(linear.kernel_, Choose(linear.problem_, options.kernel, linear.refusals_));
  ASSIGN_OR_RETURN(linear.weight_, linear.kernel_->Pack(w, options.activation));
  linear.bias_ = std::move(bias);
  return linear;
}

}  // namespace assay
