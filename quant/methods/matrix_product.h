// C += alpha A B for the statistics and solvers of the methods: f32 and f64, any strides, so that a
// transpose costs nothing. Not the engine's matrix product (quant/linear.h).
//
// Deterministic: each element of C is summed in one order, whatever the number of threads. Uses
// AVX2 and FMA where the host has them. Allocates its packing buffers (at most 330 KB per thread).
// Thread rule: that of the pool; C must not overlap A or B.
#pragma once
#include <cstdint>

#include "base/thread_pool.h"

namespace assay {

// Element (i, j) lies at data[i * row + j * column].
template <typename T>
struct Strided {
  const T* data = nullptr;
  int64_t row = 0, column = 1;
};
template <typename T>
Strided<T> Transposed(Strided<T> m) {
  return {m.data, m.column, m.row};
}

template <typename T>
struct ProductJob {
  int64_t m = 0, n = 0, p = 0;
  Strided<T> a;  // [m, p]
  Strided<T> b;  // [p, n]
  T* c = nullptr;
  int64_t c_row = 0;  // c [m, n], rows this far apart
  T alpha = 1;
  // C is symmetric: only blocks that touch the diagonal or lie above it are computed.
  bool upper_only = false;
};

// `pool` may be null: the calling thread alone.
void AddProduct(const ProductJob<float>& job, ThreadPool* pool);
void AddProduct(const ProductJob<double>& job, ThreadPool* pool);

// fn(begin, end) over [0, n) in the pool, or at once without one.
void ParallelRange(ThreadPool* pool, int64_t n, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> fn);

}  // namespace assay
