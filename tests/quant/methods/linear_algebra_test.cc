// Solvers against their definitions: products with their factors give the input back.
#include "quant/methods/linear_algebra.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

template <typename T>
std::vector<T> Random(int64_t count, uint64_t seed) {
  const std::vector<float> values = RandomNormal(count, seed);
  return {values.begin(), values.end()};
}

// c += alpha a b in the plainest way, in f64.
template <typename T>
std::vector<double> PlainProduct(const ProductJob<T>& job) {
  std::vector<double> c(job.m * job.n);
  for (int64_t i = 0; i < job.m; ++i) {
    for (int64_t j = 0; j < job.n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < job.p; ++p)
        sum += static_cast<double>(job.a.data[i * job.a.row + p * job.a.column]) *
               job.b.data[p * job.b.row + j * job.b.column];
      c[i * job.n + j] = job.c[i * job.c_row + j] + job.alpha * sum;
    }
  }
  return c;
}

template <typename T>
class ProductTest : public testing::Test {};
using Elements = testing::Types<float, double>;
TYPED_TEST_SUITE(ProductTest, Elements);

TYPED_TEST(ProductTest, EqualsThePlainSumForAwkwardSizesAndStrides) {
  using T = TypeParam;
  ThreadPool pool({.num_threads = 3});
  for (const auto& [m, n, p] : {std::array<int64_t, 3>{1, 1, 1},
                                {7, 17, 5},
                                {97, 129, 257},
                                {6, 16, 300},
                                {0, 3, 3},
                                {5, 5, 0},
                                {200, 65, 33}}) {
    const std::vector<T> a = Random<T>(std::max<int64_t>(1, m * p), 1);
    const std::vector<T> b = Random<T>(std::max<int64_t>(1, p * n), 2);
    for (const bool transposed : {false, true}) {
      std::vector<T> c = Random<T>(std::max<int64_t>(1, m * (n + 3)), 3);
      ProductJob<T> job{.m = m,
                        .n = n,
                        .p = p,
                        .a = {a.data(), p, 1},
                        .b = {b.data(), n, 1},
                        .c = c.data(),
                        .c_row = n + 3,
                        .alpha = -2};
      if (transposed) {
        job.a = {a.data(), 1, m};
        job.b = {b.data(), 1, p};
      }
      const std::vector<double> expected = PlainProduct(job);
      AddProduct(job, &pool);
      // p products of magnitude below 25, each rounded once or twice: 2 p eps 25.
      const double tolerance = 50 * (p + 1) * std::numeric_limits<T>::epsilon();
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j)
          ASSERT_NEAR(c[i * (n + 3) + j], expected[i * n + j], tolerance) << i << "," << j;
      }
    }
  }
}

TYPED_TEST(ProductTest, IsTheSameForAnyNumberOfThreads) {
  using T = TypeParam;
  const std::vector<T> x = Random<T>(300 * 150, 4);
  const auto gram = [&](ThreadPool* pool) {
    std::vector<T> c(150 * 150);
    AddProduct(ProductJob<T>{.m = 150,
                             .n = 150,
                             .p = 300,
                             .a = {x.data(), 1, 150},
                             .b = {x.data(), 150, 1},
                             .c = c.data(),
                             .c_row = 150,
                             .upper_only = true},
               pool);
    return c;
  };
  ThreadPool pool({.num_threads = 4});
  EXPECT_EQ(gram(nullptr), gram(&pool));
}

// X^T X + I of more rows than columns: well conditioned.
std::vector<double> PositiveDefinite(int64_t n) {
  const std::vector<double> x = Random<double>(2 * n * n, 5);
  std::vector<double> a(n * n);
  AddProduct(ProductJob<double>{.m = n,
                                .n = n,
                                .p = 2 * n,
                                .a = {x.data(), 1, n},
                                .b = {x.data(), n, 1},
                                .c = a.data(),
                                .c_row = n},
             nullptr);
  for (int64_t i = 0; i < n; ++i) a[i * n + i] += 1;
  return a;
}

// max |U^T U A - I|, U upper.
double InverseDefect(const std::vector<double>& u, const std::vector<double>& a, int64_t n) {
  std::vector<double> inverse(n * n), product(n * n);
  AddProduct(ProductJob<double>{.m = n,
                                .n = n,
                                .p = n,
                                .a = {u.data(), 1, n},
                                .b = {u.data(), n, 1},
                                .c = inverse.data(),
                                .c_row = n},
             nullptr);
  AddProduct(ProductJob<double>{.m = n,
                                .n = n,
                                .p = n,
                                .a = {inverse.data(), n, 1},
                                .b = {a.data(), n, 1},
                                .c = product.data(),
                                .c_row = n},
             nullptr);
  double defect = 0;
  for (int64_t i = 0; i < n * n; ++i)
    defect = std::max(defect, std::fabs(product[i] - (i % (n + 1) == 0)));
  return defect;
}

TEST(LinearAlgebraTest, FactorsTheInverse) {
  ThreadPool pool({.num_threads = 2});
  for (const int64_t n : {1, 2, 63, 64, 65, 200}) {
    const std::vector<double> a = PositiveDefinite(n);
    ASSERT_OK_AND_ASSIGN(const std::vector<double> u, UpperFactorOfInverse(a, n, &pool));
    // The condition number of A is below 100: n * 100 * eps with room.
    EXPECT_LT(InverseDefect(u, a, n), 1e-10) << n;
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_GT(u[i * n + i], 0);
      for (int64_t j = 0; j < i; ++j) ASSERT_EQ(u[i * n + j], 0);
    }
  }
}

TEST(LinearAlgebraTest, TheDefectSeesAWrongFactor) {
  const std::vector<double> a = PositiveDefinite(65);
  ASSERT_OK_AND_ASSIGN(std::vector<double> u, UpperFactorOfInverse(a, 65, nullptr));
  u[64 * 65 + 64] *= 1.001;
  EXPECT_GT(InverseDefect(u, a, 65), 1e-5);
}

TEST(LinearAlgebraTest, RefusesAMatrixThatIsNotPositiveDefinite) {
  std::vector<double> a = PositiveDefinite(70);
  a[66 * 70 + 66] = -1;
  EXPECT_THAT(UpperCholesky(std::span<double>(a), 70, nullptr),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("at=66 of=70")));
}

TEST(LinearAlgebraTest, EigenvectorsReproduceTheMatrix) {
  constexpr int64_t kN = 23;
  const std::vector<double> a = PositiveDefinite(kN);
  const Eigen eigen = SymmetricEigen(a, kN);
  EXPECT_TRUE(std::is_sorted(eigen.values.rbegin(), eigen.values.rend()));
  for (int64_t i = 0; i < kN; ++i) {
    for (int64_t j = 0; j < kN; ++j) {
      double sum = 0, dot = 0;
      for (int64_t l = 0; l < kN; ++l) {
        sum += eigen.vectors[i * kN + l] * eigen.values[l] * eigen.vectors[j * kN + l];
        dot += eigen.vectors[l * kN + i] * eigen.vectors[l * kN + j];
      }
      EXPECT_NEAR(sum, a[i * kN + j], 1e-10);
      EXPECT_NEAR(dot, i == j, 1e-12);
    }
  }
}

TEST(LinearAlgebraTest, OrthonormalColumnsAndZerosForDependentOnes) {
  std::vector<double> a = Random<double>(30 * 4, 6);
  for (int64_t row = 0; row < 30; ++row) a[row * 4 + 2] = 3 * a[row * 4] - a[row * 4 + 1];
  Orthonormalize(std::span<double>(a), 30, 4);
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 4; ++j) {
      double dot = 0;
      for (int64_t row = 0; row < 30; ++row) dot += a[row * 4 + i] * a[row * 4 + j];
      EXPECT_NEAR(dot, i == j && i != 2, 1e-12) << i << "," << j;
    }
  }
}

}  // namespace
}  // namespace assay
