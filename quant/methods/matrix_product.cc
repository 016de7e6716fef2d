// Tiles of C are tasks; a task packs its rows of A and columns of B, kDepth of p at a time, into
// panels that the inner block reads in order. 96 x 128 x 256 f32 (or 96 x 64 x 256 f64) stay in L2.
#include "quant/methods/matrix_product.h"

#include <algorithm>
#include <vector>

#include "base/cpu_info.h"
#include "quant/methods/matrix_product_avx2.h"

namespace assay {
namespace {

constexpr int64_t kTileRows = 16 * kProductRows;
constexpr int64_t kTileBytes = 512;  // of a row of C
constexpr int64_t kDepth = 256;

template <typename T>
constexpr int kColumns = sizeof(T) == 4 ? kProductColumnsF32 : kProductColumnsF64;
template <typename T>
constexpr int64_t kTileColumns = kTileBytes / static_cast<int64_t>(sizeof(T));

template <typename T>
using BlockFunction = void (*)(const T* a, const T* b, int64_t p, T* out);

template <typename T>
void ProductBlock(const T* a, const T* b, int64_t p, T* out) {
  T sums[kProductRows][kColumns<T>] = {};
  for (int64_t step = 0; step < p; ++step, a += kProductRows, b += kColumns<T>) {
    for (int i = 0; i < kProductRows; ++i) {
      for (int j = 0; j < kColumns<T>; ++j) sums[i][j] += a[i] * b[j];
    }
  }
  std::copy_n(&sums[0][0], kProductRows * kColumns<T>, out);
}

template <typename T>
BlockFunction<T> BestBlock() {
  if (HostCpu().avx2 && HostCpu().fma) return static_cast<BlockFunction<T>>(&ProductBlockAvx2);
  return &ProductBlock<T>;
}

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Panels of kWidth lines, each [depth, kWidth]; lines beyond the end are zero. Line l at depth d is
// m.data[l * line + d * deep].
template <typename T>
struct PackJob {
  const T* data;
  int64_t line, deep;
};
// The width is a constant: a copy of a few elements whose number is known is no call.
template <int kWidth, typename T>
void PackLines(const T* from, int64_t deep, int64_t depth, T* out) {
  for (int64_t d = 0; d < depth; ++d) std::copy_n(from + d * deep, kWidth, out + d * kWidth);
}
template <int kWidth, typename T>
void Pack(const PackJob<T>& job, Range lines, Range depth, T* out) {
  for (int64_t first = lines.begin; first < lines.end; first += kWidth) {
    const int64_t exist = std::min<int64_t>(kWidth, lines.end - first);
    if (exist < kWidth) std::fill_n(out, kWidth * depth.size(), T{0});
    const T* from = job.data + first * job.line + depth.begin * job.deep;
    if (job.line == 1 && exist == kWidth) {
      PackLines<kWidth>(from, job.deep, depth.size(), out);
    } else if (job.line == 1) {
      for (int64_t d = 0; d < depth.size(); ++d)
        std::copy_n(from + d * job.deep, exist, out + d * kWidth);
    } else {
      for (int64_t l = 0; l < exist; ++l) {
        for (int64_t d = 0; d < depth.size(); ++d)
          out[d * kWidth + l] = from[l * job.line + d * job.deep];
      }
    }
    out += kWidth * depth.size();
  }
}

template <typename T>
class Tiles {
 public:
  explicit Tiles(const ProductJob<T>& job)
      : job_(job),
        block_(BestBlock<T>()),
        tile_rows_((job.m + kTileRows - 1) / kTileRows),
        tile_columns_((job.n + kTileColumns<T> - 1) / kTileColumns<T>) {}

  int64_t size() const { return tile_rows_ * tile_columns_; }

  void Run(int64_t begin, int64_t end) const {
    std::vector<T> a(kTileRows * kDepth), b(kTileColumns<T> * kDepth);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile / tile_columns_ * kTileRows;
      const int64_t column = tile % tile_columns_ * kTileColumns<T>;
      const Range rows{row, std::min(row + kTileRows, job_.m)};
      const Range columns{column, std::min(column + kTileColumns<T>, job_.n)};
      if (job_.upper_only && columns.end <= rows.begin) continue;
      for (int64_t p = 0; p < job_.p; p += kDepth) {
        const Range depth{p, std::min(p + kDepth, job_.p)};
        Pack<kProductRows, T>({job_.a.data, job_.a.row, job_.a.column}, rows, depth, a.data());
        Pack<kColumns<T>, T>({job_.b.data, job_.b.column, job_.b.row}, columns, depth, b.data());
        AddTile(rows, columns, depth.size(), a.data(), b.data());
      }
    }
  }

 private:
  void AddTile(Range rows, Range columns, int64_t depth, const T* a, const T* b) const {
    T out[kProductRows * kColumns<T>];
    for (int64_t j = columns.begin; j < columns.end; j += kColumns<T>, b += kColumns<T> * depth) {
      const int64_t width = std::min<int64_t>(kColumns<T>, columns.end - j);
      const T* panel = a;
      for (int64_t i = rows.begin; i < rows.end; i += kProductRows, panel += kProductRows * depth) {
        block_(panel, b, depth, out);
        const int64_t height = std::min<int64_t>(kProductRows, rows.end - i);
        for (int64_t r = 0; r < height; ++r) {
          T* c = job_.c + (i + r) * job_.c_row + j;
          for (int64_t s = 0; s < width; ++s) c[s] += job_.alpha * out[r * kColumns<T> + s];
        }
      }
    }
  }

  const ProductJob<T>& job_;
  const BlockFunction<T> block_;
  const int64_t tile_rows_, tile_columns_;
};

template <typename T>
void Multiply(const ProductJob<T>& job, ThreadPool* pool) {
  const Tiles<T> tiles(job);
  ParallelRange(pool, tiles.size(), 1, [&](int64_t begin, int64_t end) { tiles.Run(begin, end); });
}

}  // namespace

void ParallelRange(ThreadPool* pool, int64_t n, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> fn) {
  if (n <= 0) return;
  if (pool == nullptr) {
    fn(0, n);
  } else {
    pool->ParallelFor(n, grain, fn);
  }
}

void AddProduct(const ProductJob<float>& job, ThreadPool* pool) { Multiply(job, pool); }
void AddProduct(const ProductJob<double>& job, ThreadPool* pool) { Multiply(job, pool); }

}  // namespace assay
