// What every scheme checks about the matrices that it is given. Thread-safe.
#pragma once
#include <span>

#include "quant/scheme.h"

namespace assay {

// FailedPrecondition unless `w` is [n, k] with n, k >= 1.
absl::Status CheckMatrixShape(std::string_view scheme, const Shape& w);

// What Encode asks of its input: a non-empty f32 matrix of finite numbers. InvalidArgument names
// the first row that holds NaN or infinity; FailedPrecondition as above.
absl::Status CheckEncodable(std::string_view scheme, TensorView w);

// What Fit asks of its options: `shrink` is empty or has `groups` values in (0, 1]; or is empty.
// InvalidArgument.
absl::Status CheckShrink(std::string_view scheme, const FitOptions& options, int64_t groups);
absl::Status CheckNoShrink(std::string_view scheme, const FitOptions& options);

// The first element of `values` that is NaN or infinite; -1 if none.
int64_t FirstNonFinite(std::span<const float> values);

// What DecodeRows asks: `codes` [n, k] of type `codes_type`, `scales` f32 [n] or absent,
// 0 <= row, row + rows <= n, out of rows * k elements. InvalidArgument.
struct StoredLayout {
  DType codes_type;
  bool has_row_scales;
};
struct RowRange {
  int64_t row, rows;
};
// 0 <= row, row + rows <= n, out of rows * k elements. InvalidArgument.
absl::Status CheckRowRange(const Shape& w, RowRange range, size_t out_size);
// The same, and the sizes that ReadIntegers asks of `out`. InvalidArgument.
absl::Status CheckIntegerRows(const QuantizedTensor& q, RowRange range, const IntegerRows& out);
absl::Status CheckDecodable(const QuantizedTensor& q, const StoredLayout& layout, RowRange range,
                            size_t out_size);

}  // namespace assay
