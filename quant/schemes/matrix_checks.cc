#include "quant/schemes/matrix_checks.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "quant/schemes/schemes.h"

namespace assay {

absl::Status CheckMatrixShape(std::string_view scheme, const Shape& w) {
  if (w.rank == 2 && w[0] >= 1 && w[1] >= 1) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      std::string(scheme), " needs a matrix [n, k] with n, k >= 1: shape=", ToString(w)));
}

int64_t FirstNonFinite(std::span<const float> values) {
  // All exponent bits set means NaN or infinity; the first loop vectorises, the second is rare.
  constexpr uint32_t kExponent = 0x7f800000u;
  constexpr size_t kBlock = 256;
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const size_t end = std::min(values.size(), begin + kBlock);
    uint32_t bad = 0;
    for (size_t i = begin; i < end; ++i) {
      bad |= (std::bit_cast<uint32_t>(values[i]) & kExponent) == kExponent;
    }
    if (bad == 0) continue;
    for (size_t i = begin; i < end; ++i) {
      if (!std::isfinite(values[i])) return static_cast<int64_t>(i);
    }
  }
  return -1;
}

absl::Status CheckEncodable(std::string_view scheme, TensorView w) {
  if (w.dtype != DType::kF32) {
    return absl::InvalidArgumentError(absl::StrCat(
        std::string(scheme), " encodes f32 weights: dtype=", std::string(Name(w.dtype))));
  }
  RETURN_IF_ERROR(CheckMatrixShape(scheme, w.shape));
  const int64_t bad = FirstNonFinite({w.as<float>(), static_cast<size_t>(w.shape.elements())});
  if (bad < 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(scheme), " cannot store NaN or infinity: row=", bad / w.shape[1],
                   " column=", bad % w.shape[1], " value=", w.as<float>()[bad]));
}

absl::Status CheckShrink(std::string_view scheme, const FitOptions& options, int64_t groups) {
  if (options.shrink.empty()) return absl::OkStatus();
  if (options.shrink.size() != static_cast<size_t>(groups)) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(scheme), " has ", groups,
                                                   " groups: shrink=", options.shrink.size()));
  }
  for (const float part : options.shrink) {
    if (part > 0 && part <= 1) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(scheme), " keeps a part in (0, 1] of a range: shrink=", part));
  }
  return absl::OkStatus();
}

absl::Status CheckNoShrink(std::string_view scheme, const FitOptions& options) {
  if (options.shrink.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(scheme), " has no range of its own that could be clipped"));
}

absl::Status CheckNoOptions(std::span<const std::string> options) {
  if (options.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("unknown option \"", options.front(), "\""));
}

absl::Status CheckDecodable(const QuantizedTensor& q, const StoredLayout& layout, RowRange range,
                            size_t out_size) {
  const std::string scheme(q.scheme->name());
  RETURN_IF_ERROR(CheckMatrixShape(scheme, q.shape));
  const int64_t n = q.shape[0];
  if (q.codes.dtype() != layout.codes_type || q.codes.shape() != q.shape || q.codes.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(scheme), " needs codes ", std::string(Name(layout.codes_type)),
                     ToString(q.shape), ": codes=", std::string(Name(q.codes.dtype())),
                     ToString(q.codes.shape())));
  }
  if (layout.has_row_scales &&
      (q.scales.dtype() != DType::kF32 || q.scales.empty() || q.scales.shape() != Shape{n})) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(scheme), " needs scales f32", ToString(Shape{n}),
                     ": scales=", std::string(Name(q.scales.dtype())), ToString(q.scales.shape())));
  }
  return CheckRowRange(q.shape, range, out_size);
}

absl::Status CheckRowRange(const Shape& w, RowRange range, size_t out_size) {
  const int64_t n = w[0], k = w[1];
  if (range.row < 0 || range.rows < 0 || range.row > n - range.rows ||
      out_size != static_cast<size_t>(range.rows * k)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rows to decode lie outside the weight, or the output has another size: row=", range.row,
        " rows=", range.rows, " of=", n, " out=", out_size, " expected=", range.rows * k));
  }
  return absl::OkStatus();
}

absl::Status CheckIntegerRows(const QuantizedTensor& q, RowRange range, const IntegerRows& out) {
  RETURN_IF_ERROR(CheckRowRange(q.shape, range, out.codes.size()));
  const int64_t k = q.shape[1], group = q.scheme->group(q.shape);
  const auto rows = static_cast<size_t>(range.rows);
  const size_t groups = rows * static_cast<size_t>((k + group - 1) / group);
  if (out.row_scales.size() == rows && out.group_scales.size() == groups) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "room for the scales of ", rows, " rows and ", groups, " groups is needed: row_scales=",
      out.row_scales.size(), " group_scales=", out.group_scales.size()));
}

}  // namespace assay
