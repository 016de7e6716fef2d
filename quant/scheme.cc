#include "quant/scheme.h"

#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr std::array<std::pair<ActivationMode, std::string_view>, 9> kActivationNames = {{
    {ActivationMode::kA16, "a16"},
    {ActivationMode::kA8Token, "a8_token"},
    {ActivationMode::kA8Tensor, "a8_tensor"},
    {ActivationMode::kA8Mix, "a8_mix"},
    {ActivationMode::kInt8Outlier, "int8_outlier"},
    {ActivationMode::kA4Token, "a4_token"},
    {ActivationMode::kFp8Token, "fp8_token"},
    {ActivationMode::kFp8Block, "fp8_block"},
    {ActivationMode::kFp8Tensor, "fp8_tensor"},
}};

}  // namespace

size_t QuantizedTensor::bytes() const {
  size_t total = codes.bytes() + scales.bytes() + zeros.bytes();
  for (const auto& [name, tensor] : extra) total += tensor.bytes();
  return total;
}

absl::StatusOr<QuantizedTensor> QuantScheme::Encode(TensorView w) const {
  ASSIGN_OR_RETURN(QuantizedTensor grid, Fit(w, {}));
  return EncodeOn(w, std::move(grid));
}

absl::Status QuantScheme::ReadIntegers(const QuantizedTensor&, int64_t, int64_t,
                                       const IntegerRows&) const {
  return absl::UnimplementedError(
      absl::StrCat(std::string(name()), " does not store integers times scales"));
}

std::string_view Name(ActivationMode mode) {
  for (const auto& [value, name] : kActivationNames) {
    if (value == mode) return name;
  }
  return "unknown";
}

std::optional<ActivationMode> FindActivationMode(std::string_view name) {
  for (const auto& [value, spelling] : kActivationNames) {
    if (spelling == name) return value;
  }
  return std::nullopt;
}

}  // namespace assay
