#include "quant/methods/linear_algebra.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr int64_t kBlock = 64;
constexpr int64_t kGrain = 64;  // columns that a thread takes at a time

// to[0, count) -= factor * from[0, count)
void Subtract(double* to, const double* from, double factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] -= factor * from[i];
}

// Cholesky of the diagonal block [first, last) of a.
absl::Status FactorDiagonal(std::span<double> a, int64_t n, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    double* row = a.data() + i * n;
    for (int64_t l = first; l < i; ++l)
      Subtract(row + i, a.data() + l * n + i, a[l * n + i], last - i);
    const double pivot = row[i];
    if (!(pivot > 0) || !std::isfinite(pivot)) {
      return absl::FailedPreconditionError(
          absl::StrCat("matrix is not positive definite: pivot=", pivot, " at=", i, " of=", n));
    }
    const double inverse = 1 / std::sqrt(pivot);
    for (int64_t j = i; j < last; ++j) row[j] *= inverse;
  }
  return absl::OkStatus();
}

// Rows [first, last) of x, columns [begin, end): x = U[first:last, first:last]^-T x.
struct Solve {
  const double* u;
  double* x;
  int64_t n, first, last;
};
void ForwardSolve(const Solve& s, int64_t begin, int64_t end) {
  for (int64_t i = s.first; i < s.last; ++i) {
    double* row = s.x + i * s.n + begin;
    for (int64_t l = s.first; l < i; ++l)
      Subtract(row, s.x + l * s.n + begin, s.u[l * s.n + i], end - begin);
    const double inverse = 1 / s.u[i * s.n + i];
    for (int64_t j = 0; j < end - begin; ++j) row[j] *= inverse;
  }
}

// L^-1 for L = U^T: [n, n] lower triangular, zeros above the diagonal.
std::vector<double> InverseOfTransposed(std::span<const double> u, int64_t n, ThreadPool* pool) {
  std::vector<double> inverse(static_cast<size_t>(n * n));
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(first + kBlock, n);
    AddProduct(ProductJob<double>{.m = last - first,
                                  .n = first,
                                  .p = first,
                                  .a = {u.data() + first, 1, n},
                                  .b = {inverse.data(), n, 1},
                                  .c = inverse.data() + first * n,
                                  .c_row = n,
                                  .alpha = -1},
               pool);
    for (int64_t i = first; i < last; ++i) inverse[i * n + i] = 1;
    const Solve solve{u.data(), inverse.data(), n, first, last};
    ParallelRange(pool, last, kGrain,
                  [&](int64_t begin, int64_t end) { ForwardSolve(solve, begin, end); });
  }
  return inverse;
}

double Dot(std::span<const double> a, int64_t columns, int64_t i, int64_t j) {
  double sum = 0;
  for (size_t row = 0; row < a.size(); row += columns) sum += a[row + i] * a[row + j];
  return sum;
}

// One rotation that zeroes a[p, q]; v collects the rotations.
struct Rotation {
  int64_t p, q;
  double cosine, sine;
};
void Rotate(double* a, double* v, int64_t n, const Rotation& r) {
  const auto turn = [&r](double& x, double& y) {
    const double old_x = x;
    x = r.cosine * old_x - r.sine * y;
    y = r.sine * old_x + r.cosine * y;
  };
  for (int64_t i = 0; i < n; ++i) turn(a[i * n + r.p], a[i * n + r.q]);
  for (int64_t i = 0; i < n; ++i) turn(a[r.p * n + i], a[r.q * n + i]);
  for (int64_t i = 0; i < n; ++i) turn(v[i * n + r.p], v[i * n + r.q]);
}

}  // namespace

absl::Status UpperCholesky(std::span<double> a, int64_t n, ThreadPool* pool) {
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(first + kBlock, n);
    RETURN_IF_ERROR(FactorDiagonal(a, n, first, last));
    const Solve solve{a.data(), a.data(), n, first, last};
    ParallelRange(pool, n - last, kGrain, [&](int64_t begin, int64_t end) {
      ForwardSolve(solve, last + begin, last + end);
    });
    const double* right = a.data() + first * n + last;  // U12 [last - first, n - last]
    AddProduct(ProductJob<double>{.m = n - last,
                                  .n = n - last,
                                  .p = last - first,
                                  .a = {right, 1, n},
                                  .b = {right, n, 1},
                                  .c = a.data() + last * n + last,
                                  .c_row = n,
                                  .alpha = -1,
                                  .upper_only = true},
               pool);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> UpperFactorOfInverse(std::span<const double> h, int64_t n,
                                                         ThreadPool* pool) {
  std::vector<double> reversed(h.rbegin(), h.rend());  // reverses rows and columns
  RETURN_IF_ERROR(UpperCholesky(std::span<double>(reversed), n, pool));
  std::vector<double> inverse = InverseOfTransposed(reversed, n, pool);
  std::reverse(inverse.begin(), inverse.end());
  return inverse;
}

Eigen SymmetricEigen(std::vector<double> a, int64_t n) {
  std::vector<double> v(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) v[i * n + i] = 1;
  double norm = 0;
  for (const double x : a) norm += x * x;
  constexpr int kMaxSweeps = 50;  // converges quadratically: 6 to 10 in practice
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    double off = 0;
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) off += a[p * n + q] * a[p * n + q];
    }
    if (off <= 1e-28 * norm) break;
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) {
        const double apq = a[p * n + q];
        if (apq == 0) continue;
        const double theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
        const double t = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::hypot(theta, 1.0));
        const double cosine = 1 / std::hypot(t, 1.0);
        Rotate(a.data(), v.data(), n, {p, q, cosine, t * cosine});
      }
    }
  }
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t x, int64_t y) { return a[x * n + x] > a[y * n + y]; });
  Eigen eigen{std::vector<double>(n), std::vector<double>(n * n)};
  for (int64_t i = 0; i < n; ++i) {
    eigen.values[i] = a[order[i] * n + order[i]];
    for (int64_t row = 0; row < n; ++row) eigen.vectors[row * n + i] = v[row * n + order[i]];
  }
  return eigen;
}

void Orthonormalize(std::span<double> a, int64_t rows, int64_t columns) {
  for (int64_t j = 0; j < columns; ++j) {
    const double before = std::sqrt(Dot(a, columns, j, j));
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t i = 0; i < j; ++i) {
        const double dot = Dot(a, columns, i, j);
        for (int64_t row = 0; row < rows; ++row) a[row * columns + j] -= dot * a[row * columns + i];
      }
    }
    const double norm = std::sqrt(Dot(a, columns, j, j));
    const double inverse = norm > 1e-12 * before ? 1 / norm : 0;
    for (int64_t row = 0; row < rows; ++row) a[row * columns + j] *= inverse;
  }
}

}  // namespace assay
