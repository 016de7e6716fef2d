// The dense solvers that rounding methods and low-rank corrections need, in f64. Blocked,
// deterministic whatever the number of threads. Matrices are dense, row-major. `pool` may be null.
#pragma once
#include <span>
#include <vector>

#include "base/status.h"
#include "quant/methods/matrix_product.h"

namespace assay {

// A = U^T U with U upper triangular, in place: a [n, n] symmetric, of which the upper triangle is
// read and overwritten; the lower is left alone. FailedPrecondition: not positive definite; names
// the pivot.
absl::Status UpperCholesky(std::span<double> a, int64_t n, ThreadPool* pool);

// The upper triangular U with U^T U = H^-1, h [n, n] symmetric: what GPTQ calls the Cholesky factor
// of the inverse (arXiv:2210.17323, section 3.4), zeros below the diagonal. Never forms H^-1: with
// H = R R^T, R upper (Cholesky of H with rows and columns reversed), U = R^-1. FailedPrecondition:
// H is not positive definite.
absl::StatusOr<std::vector<double>> UpperFactorOfInverse(std::span<const double> h, int64_t n,
                                                         ThreadPool* pool);

// Eigenvalues, largest first, and eigenvectors (columns of `vectors` [n, n]) of a symmetric matrix
// of small n (cyclic Jacobi, O(n^3) per sweep).
struct Eigen {
  std::vector<double> values;   // [n]
  std::vector<double> vectors;  // [n, n], column i belongs to values[i]
};
Eigen SymmetricEigen(std::vector<double> a, int64_t n);

// Makes the columns of a [rows, columns] orthonormal (Gram-Schmidt, twice, in f64). Columns that
// depend on the ones before become zero.
void Orthonormalize(std::span<double> a, int64_t rows, int64_t columns);

}  // namespace assay
