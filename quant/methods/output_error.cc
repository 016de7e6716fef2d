#include "quant/methods/output_error.h"

#include <algorithm>
#include <numeric>

#include "quant/methods/matrix_product.h"

namespace assay {

absl::StatusOr<OutputError> OutputError::Create(const InputStatistics& input) {
  if (input.tokens() == 0)
    return absl::FailedPreconditionError("output errors need calibration: tokens=0");
  OutputError error(input);
  if (!input.options().hessian) return error;
  error.moments_ = input.Hessian<float>();
  for (float& value : error.moments_) value /= 2;
  return error;
}

void OutputError::HalfGradient(std::span<const float> difference, std::span<float> out,
                               ThreadPool* pool) const {
  const int64_t k = input_->k(), n = static_cast<int64_t>(difference.size()) / k;
  std::fill(out.begin(), out.end(), 0.0f);
  if (!moments_.empty()) {
    AddProduct(ProductJob<float>{.m = n,
                                 .n = k,
                                 .p = k,
                                 .a = {difference.data(), k, 1},
                                 .b = {moments_.data(), k, 1},
                                 .c = out.data(),
                                 .c_row = k},
               pool);
    return;
  }
  const int64_t rows = input_->num_samples();
  if (rows == 0) {
    const double scale = 1 / static_cast<double>(input_->tokens());
    for (int64_t i = 0; i < n * k; ++i)
      out[i] = static_cast<float>(difference[i] * input_->sum_squares()[i % k] * scale);
    return;
  }
  const std::vector<float> y = OnSamples(difference, pool);
  AddProduct(ProductJob<float>{.m = n,
                               .n = k,
                               .p = rows,
                               .a = {y.data(), rows, 1},
                               .b = {input_->samples().data(), k, 1},
                               .c = out.data(),
                               .c_row = k,
                               .alpha = 1 / static_cast<float>(rows)},
             pool);
}

// Of sample rows [rows, k]: E X^T [n, rows], whose squares are what is summed.
std::vector<float> OutputError::OnSamples(std::span<const float> difference,
                                          ThreadPool* pool) const {
  const int64_t k = input_->k(), n = static_cast<int64_t>(difference.size()) / k;
  const int64_t rows = input_->num_samples();
  std::vector<float> y(n * rows);
  AddProduct(ProductJob<float>{.m = n,
                               .n = rows,
                               .p = k,
                               .a = {difference.data(), k, 1},
                               .b = {input_->samples().data(), 1, k},
                               .c = y.data(),
                               .c_row = rows},
             pool);
  return y;
}

std::vector<double> OutputError::Rows(std::span<const float> difference, ThreadPool* pool) const {
  const int64_t k = input_->k(), n = static_cast<int64_t>(difference.size()) / k;
  if (const int64_t rows = input_->num_samples(); moments_.empty() && rows > 0) {
    const std::vector<float> y = OnSamples(difference, pool);
    std::vector<double> errors(n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t t = 0; t < rows; ++t)
        errors[i] += static_cast<double>(y[i * rows + t]) * y[i * rows + t];
      errors[i] /= static_cast<double>(rows);
    }
    return errors;
  }
  std::vector<float> gradient(difference.size());
  HalfGradient(difference, gradient, pool);
  std::vector<double> errors(n);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t j = row * k; j < (row + 1) * k; ++j)
      errors[row] += static_cast<double>(difference[j]) * gradient[j];
  }
  return errors;
}

double OutputError::Sum(std::span<const float> difference, ThreadPool* pool) const {
  const std::vector<double> rows = Rows(difference, pool);
  return std::accumulate(rows.begin(), rows.end(), 0.0);
}

}  // namespace assay
