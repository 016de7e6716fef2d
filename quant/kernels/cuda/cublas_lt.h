// Products by NVIDIA's cuBLASLt, which is opened at run time: the same binary starts where it is
// absent. Only what this project asks of it: y[m, n] = x[m, k] W[n, k]^T, operands of 16 or 8 bit
// with rows along k, sums in f32, with scales per tensor, per row of both sides, or per row and 128
// of k.
//
// In the library's column-major words: A = W as [k, n] transposed, B = x as [k, m], D = y as [n, m]
// (cuBLAS documentation, cublasLtMatmul; constants as of CUDA 13.0, unchanged since 12.9).
//
// Thread-safe: descriptors are made for every call, in host memory.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/cuda/runtime.h"
#include "base/status.h"

namespace assay {

enum class LtType {
  kF32 = 0,
  kF16 = 2,
  kS8 = 3,
  kS32 = 10,
  kBf16 = 14,
  kE4M3 = 28
};  // cudaDataType
// CUBLASLT_MATMUL_MATRIX_SCALE_*. Vectors are f32 in device memory: kScalar [1] and [1]; kRows [n]
// and [m], compute capability 9.0 alone; kRows128 [k / 128 rounded up][n] and [...][m].
enum class LtScales { kNone = -1, kScalar = 0, kRows = 3, kRows128 = 4 };

struct LtProblem {
  int64_t m = 0, n = 0, k = 0;
  LtType operands = LtType::kBf16;  // of W and x; kS8 gives kS32
  LtType out = LtType::kF32;
  LtScales scales = LtScales::kNone;
  bool fast_sums = false;  // E4M3: sums of fewer bits (FAST_ACCUM)
};

struct LtCall {
  const void* w = nullptr;  // [n, k]
  const void* x = nullptr;  // [m, k]
  const float *w_scales = nullptr, *x_scales = nullptr;
  void* y = nullptr;          // [m, n]
  bool accumulate = false;    // y += ...
  void* workspace = nullptr;  // LtAlgorithm::workspace_bytes
  GpuStream stream = nullptr;
};

struct LtAlgorithm {
  std::array<uint64_t, 8> words = {};  // plain data: can be stored and used again
  size_t workspace_bytes = 0;
};

class CublasLt {
 public:
  // Workspace that algorithms may ask for.
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;
  static constexpr int kMostAlgorithms = 8;

  // `path`: of the library; empty: the environment variable ASSAY_CUBLASLT, then the names that the
  // dynamic linker knows, then /usr/local/cuda. NotFound: not there, with what was tried;
  // Unimplemented: a library that lacks a function, named; Unavailable: it finds no device. It
  // belongs to the device that is current in the calling thread.
  static absl::StatusOr<std::unique_ptr<const CublasLt>> Load(const std::string& path);
  virtual ~CublasLt() = default;
  virtual size_t version() const = 0;  // 130000 = 13.0

  // In the library's order, fastest first by its estimate; at least one, at most kMostAlgorithms.
  // None that splits k: a row's sums would depend on how many rows there are. Slow (milliseconds):
  // at admission, never while serving. Unimplemented: the library has no algorithm for this on this
  // device, or the shape breaks its rules (multiples of 16 bytes).
  virtual absl::StatusOr<std::vector<LtAlgorithm>> Algorithms(const LtProblem& problem) const = 0;
  // The workspace that an algorithm, found for another m or read from a file, takes here.
  // Unimplemented: it does not do this problem. Microseconds, on the host alone.
  virtual absl::StatusOr<size_t> Check(const LtProblem& problem,
                                       const LtAlgorithm& algorithm) const = 0;
  // Puts the product into the call's stream; a captured stream keeps it. Unimplemented: refused,
  // nothing was put there; Internal: what the library says, with the shape.
  virtual absl::Status Run(const LtProblem& problem, const LtCall& call,
                           const LtAlgorithm& algorithm) const = 0;
};

// nullptr, or why the library does not take this, by its documented rules for compute capability
// `compute` (90 = 9.0).
const char* LtRefuses(const LtProblem& problem, int compute);

}  // namespace assay
