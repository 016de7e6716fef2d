#include "quant/schemes/weight_layout.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

absl::StatusOr<Tensor> Zeroed(const TensorSpec& spec) {
  if (!spec.present()) return Tensor();
  ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(CpuDevice(), spec.shape, spec.dtype));
  std::memset(tensor.data<std::byte>(), 0, tensor.bytes());
  return tensor;
}

struct Part {
  std::string_view name;
  const Tensor& tensor;
  const TensorSpec& spec;
};

absl::Status CheckPart(const QuantizedTensor& q, const Part& part) {
  if (!part.spec.present()) {
    if (part.tensor.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(q.scheme->name()), " has no ", std::string(part.name), ": ",
                     std::string(Name(part.tensor.dtype())), ToString(part.tensor.shape())));
  }
  if (!part.tensor.empty() && part.tensor.dtype() == part.spec.dtype &&
      part.tensor.shape() == part.spec.shape) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(q.scheme->name()), " of a weight ", ToString(q.shape), " needs ",
                   std::string(part.name), " ", std::string(Name(part.spec.dtype)),
                   ToString(part.spec.shape), ": ", std::string(part.name), "=",
                   std::string(Name(part.tensor.dtype())), ToString(part.tensor.shape())));
}

}  // namespace

size_t WeightLayout::bytes() const {
  size_t total = codes.bytes() + scales.bytes() + zeros.bytes();
  for (const Extra& e : extra) total += e.spec.bytes();
  return total;
}

absl::Status AllocateGrid(const WeightLayout& layout, QuantizedTensor& grid) {
  ASSIGN_OR_RETURN(grid.scales, Zeroed(layout.scales));
  ASSIGN_OR_RETURN(grid.zeros, Zeroed(layout.zeros));
  for (const WeightLayout::Extra& e : layout.extra) {
    if (!e.spec.present()) continue;
    ASSIGN_OR_RETURN(grid.extra[std::string(e.name)], Zeroed(e.spec));
  }
  return absl::OkStatus();
}

absl::Status AllocateCodes(const WeightLayout& layout, QuantizedTensor& q) {
  ASSIGN_OR_RETURN(q.codes, Tensor::Create(CpuDevice(), layout.codes.shape, layout.codes.dtype));
  return absl::OkStatus();
}

absl::Status CheckLayout(const QuantizedTensor& q, const WeightLayout& layout, bool codes) {
  if (codes) RETURN_IF_ERROR(CheckPart(q, {"codes", q.codes, layout.codes}));
  RETURN_IF_ERROR(CheckPart(q, {"scales", q.scales, layout.scales}));
  RETURN_IF_ERROR(CheckPart(q, {"zeros", q.zeros, layout.zeros}));
  for (const WeightLayout::Extra& e : layout.extra) {
    if (!e.spec.present()) continue;
    static const Tensor& absent = *new Tensor;
    const auto it = q.extra.find(e.name);
    RETURN_IF_ERROR(CheckPart(q, {e.name, it == q.extra.end() ? absent : it->second, e.spec}));
  }
  return absl::OkStatus();
}

}  // namespace assay
