#include "quant/methods/clip_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/mutex.h"
#include "quant/methods/matrix_product.h"

namespace assay {
namespace {

constexpr int64_t kChunkRows = 64;

// Rows [first, first + rows) of the weight: groups are independent of each other, so chunks of rows
// are searched side by side.
class ChunkSearch {
 public:
  struct Problem {
    TensorView w;
    const QuantScheme* scheme;
    int64_t group, groups;  // groups per row
    const ClipSearch* search;
    std::vector<float> weights;  // [k], kSquares
    std::vector<float> hessian;  // [k, k], kOutput
  };
  ChunkSearch(const Problem& problem, int64_t first, int64_t rows)
      : p_(problem),
        k_(problem.w.shape[1]),
        rows_(rows),
        w_{problem.w.data + first * k_ * static_cast<int64_t>(sizeof(float)), Shape{rows, k_},
           DType::kF32, problem.w.device},
        best_(rows * problem.groups, 1.0f),
        least_(rows * problem.groups, std::numeric_limits<double>::infinity()),
        difference_(rows * k_) {}

  absl::StatusOr<std::vector<float>> Run() {
    const double grid = static_cast<double>(p_.search->grid);
    std::vector<float> shrink(best_.size());
    for (int64_t i = 0; static_cast<double>(i) < grid * p_.search->max_shrink || i == 0; ++i) {
      std::fill(shrink.begin(), shrink.end(),
                static_cast<float>(1 - static_cast<double>(i) / grid));
      RETURN_IF_ERROR(Try(shrink));
    }
    return std::move(best_);
  }

 private:
  absl::Status Try(const std::vector<float>& shrink) {
    ASSIGN_OR_RETURN(QuantizedTensor grid, p_.scheme->Fit(w_, {.shrink = shrink}));
    ASSIGN_OR_RETURN(const QuantizedTensor q, p_.scheme->EncodeOn(w_, std::move(grid)));
    RETURN_IF_ERROR(p_.scheme->DecodeRows(q, 0, rows_, std::span<float>(difference_)));
    const float* w = w_.as<float>();
    for (int64_t i = 0; i < rows_ * k_; ++i) difference_[i] = w[i] - difference_[i];
    for (int64_t g = 0; g < p_.groups; ++g) {
      const std::vector<double> errors = Errors(g);
      for (int64_t row = 0; row < rows_; ++row) {
        const int64_t at = row * p_.groups + g;
        if (!(errors[row] < least_[at])) continue;
        least_[at] = errors[row];
        best_[at] = shrink[at];
      }
    }
    return absl::OkStatus();
  }

  // Of group g, in each row.
  std::vector<double> Errors(int64_t g) const {
    const int64_t begin = g * p_.group, end = std::min(begin + p_.group, k_);
    if (p_.search->error == ClipSearch::Error::kOutput) return OutputErrors(begin, end);
    std::vector<double> errors(rows_);
    const auto norm = static_cast<float>(p_.search->norm);
    for (int64_t row = 0; row < rows_; ++row) {
      const float* d = difference_.data() + row * k_;
      double sum = 0;
      for (int64_t j = begin; j < end; ++j) {
        const float power = norm == 2 ? d[j] * d[j] : std::pow(std::fabs(d[j]), norm);
        sum += p_.weights.empty() ? power : power * static_cast<double>(p_.weights[j]);
      }
      errors[row] = sum;
    }
    return errors;
  }

  std::vector<double> OutputErrors(int64_t begin, int64_t end) const {
    const int64_t size = end - begin;
    std::vector<float> product(rows_ * size);
    AddProduct(ProductJob<float>{.m = rows_,
                                 .n = size,
                                 .p = size,
                                 .a = {difference_.data() + begin, k_, 1},
                                 .b = {p_.hessian.data() + begin * k_ + begin, k_, 1},
                                 .c = product.data(),
                                 .c_row = size},
               nullptr);
    std::vector<double> errors(rows_);
    for (int64_t row = 0; row < rows_; ++row) {
      const float* d = difference_.data() + row * k_ + begin;
      for (int64_t j = 0; j < size; ++j)
        errors[row] += static_cast<double>(d[j]) * product[row * size + j];
    }
    return errors;
  }

  const Problem& p_;
  const int64_t k_, rows_;
  const TensorView w_;
  std::vector<float> best_;
  std::vector<double> least_;
  std::vector<float> difference_;
};

}  // namespace

absl::StatusOr<std::vector<float>> SearchShrink(TensorView w, const QuantScheme& scheme,
                                                const InputStatistics* input,
                                                const ClipSearch& search) {
  using Error = ClipSearch::Error;
  const StatisticsNeed need = search.error == Error::kWeight    ? StatisticsNeed::kNothing
                              : search.error == Error::kSquares ? StatisticsNeed::kSquares
                                                                : StatisticsNeed::kHessian;
  RETURN_IF_ERROR(CheckStatistics("clip search", need, w.shape, input));
  RETURN_IF_ERROR(scheme.Accepts(w.shape));
  const int64_t n = w.shape[0], k = w.shape[1], group = scheme.group(w.shape);
  ChunkSearch::Problem problem{w, &scheme, group, (k + group - 1) / group, &search, {}, {}};
  if (search.error == Error::kSquares)
    problem.weights.assign(input->sum_squares().begin(), input->sum_squares().end());
  if (search.error == Error::kOutput) problem.hessian = input->Hessian<float>();
  std::vector<float> shrink(static_cast<size_t>(n * problem.groups));
  Mutex mutex;
  absl::Status status;
  ParallelRange(search.pool, (n + kChunkRows - 1) / kChunkRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kChunkRows, rows = std::min(kChunkRows, n - first);
      absl::StatusOr<std::vector<float>> found = ChunkSearch(problem, first, rows).Run();
      if (found.ok()) {
        std::copy(found->begin(), found->end(), shrink.begin() + first * problem.groups);
      } else {
        const MutexLock lock(mutex);
        status = found.status();
      }
    }
  });
  RETURN_IF_ERROR(status);
  return shrink;
}

}  // namespace assay
