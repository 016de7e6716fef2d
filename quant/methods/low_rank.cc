#include "quant/methods/low_rank.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "quant/methods/linear_algebra.h"
#include "quant/schemes/matrix_checks.h"

namespace assay {
namespace {

constexpr int64_t kOversampling = 8;

// Entries in [-1, 1): any distribution without a preferred direction does.
std::vector<double> RandomMatrix(int64_t count, uint64_t seed) {
  std::vector<double> values(count);
  uint64_t state = seed;
  for (double& value : values) {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);  // SplitMix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    value = static_cast<double>(static_cast<int64_t>(z ^ (z >> 31))) * 0x1p-63;
  }
  return values;
}

// a b, dense.
struct Sizes {
  int64_t m, n, p;
};
std::vector<double> Product(const Sizes& sizes, Strided<double> a, Strided<double> b,
                            ThreadPool* pool) {
  std::vector<double> c(sizes.m * sizes.n);
  AddProduct(ProductJob<double>{.m = sizes.m,
                                .n = sizes.n,
                                .p = sizes.p,
                                .a = a,
                                .b = b,
                                .c = c.data(),
                                .c_row = sizes.n},
             pool);
  return c;
}

}  // namespace

absl::StatusOr<LowRank> FactorLowRank(TensorView view, const LowRankOptions& options) {
  RETURN_IF_ERROR(CheckEncodable("low rank", view));
  const int64_t n = view.shape[0], k = view.shape[1], r = options.rank;
  if (r < 1 || r > std::min(n, k)) {
    return absl::InvalidArgumentError(
        absl::StrCat("low rank needs a rank in [1, ", std::min(n, k), "]: rank=", r));
  }
  const int64_t l = std::min(r + kOversampling, std::min(n, k));
  ThreadPool* pool = options.pool;
  const std::vector<double> w(view.as<float>(), view.as<float>() + n * k);
  const Strided<double> by_row{w.data(), k, 1}, by_column{w.data(), 1, k};
  const std::vector<double> start = RandomMatrix(k * l, options.seed);
  std::vector<double> q = Product({n, l, k}, by_row, {start.data(), l, 1}, pool);  // [n, l]
  Orthonormalize(std::span<double>(q), n, l);
  for (int64_t i = 0; i < options.iterations; ++i) {
    std::vector<double> z = Product({k, l, n}, by_column, {q.data(), l, 1}, pool);  // [k, l]
    Orthonormalize(std::span<double>(z), k, l);
    q = Product({n, l, k}, by_row, {z.data(), l, 1}, pool);
    Orthonormalize(std::span<double>(q), n, l);
  }
  const std::vector<double> b = Product({l, k, n}, {q.data(), 1, l}, by_row, pool);  // Q^T W
  const Eigen eigen =
      SymmetricEigen(Product({l, l, k}, {b.data(), k, 1}, {b.data(), 1, k}, pool), l);
  const Strided<double> u{eigen.vectors.data(), l, 1};  // of B: its first r columns
  const std::vector<double> left = Product({n, r, l}, {q.data(), l, 1}, u, pool);
  const std::vector<double> right = Product({r, k, l}, Transposed(u), {b.data(), k, 1}, pool);
  LowRank found{r, {left.begin(), left.end()}, {right.begin(), right.end()}, {}};
  // From the factors as stored, so that L1 L2 + R gives W back.
  found.residual.assign(view.as<float>(), view.as<float>() + n * k);
  AddProduct(ProductJob<float>{.m = n,
                               .n = k,
                               .p = r,
                               .a = {found.left.data(), r, 1},
                               .b = {found.right.data(), k, 1},
                               .c = found.residual.data(),
                               .c_row = k,
                               .alpha = -1},
             pool);
  return found;
}

}  // namespace assay
