#include "base/tensor.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace assay {

std::string_view Name(DType t) {
  switch (t) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBf16:
      return "bf16";
    case DType::kF8E4M3:
      return "f8_e4m3";
    case DType::kF8E5M2:
      return "f8_e5m2";
    case DType::kI8:
      return "i8";
    case DType::kU8:
      return "u8";
    case DType::kI16:
      return "i16";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kU4:
      return "u4";
    case DType::kBool:
      return "bool";
  }
  return "unknown";
}

std::string ToString(const Shape& shape) {
  return absl::StrCat(
      "[", absl::StrJoin(std::span(shape.dim).first(static_cast<size_t>(shape.rank)), ","), "]");
}

absl::StatusOr<Tensor> Tensor::Create(Device& device, Shape shape, DType dtype) {
  ASSIGN_OR_RETURN(Buffer buffer, device.Allocate(BytesOf(shape.elements(), dtype)));
  return Tensor(std::move(buffer), shape, dtype);
}

}  // namespace assay
