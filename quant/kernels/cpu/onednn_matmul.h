// One oneDNN matmul, u8 [rows, k] x s8 [k, width] -> s32 [rows, width], prepared for the row counts
// 1, 2, 4, ..., 64 over one layout of the weights. Primitives, streams and argument lists are made
// here, once per (k, width); Multiply allocates nothing of ours (the library's VNNI and AMX
// primitives ask the heap for small objects of their own) and runs on the calling thread alone (the
// library is an OpenMP build: each calling thread is told to use one thread).
//
// Thread-safe. What throws inside is caught inside.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/status.h"

namespace assay {

inline constexpr int64_t kOnednnMaxRows = 64;

class OnednnMatmul {
 public:
  virtual ~OnednnMatmul() = default;

  struct Options {
    int64_t k = 0, width = 0;
    int max_weight_code = 127;  // of the numeric self-check
  };
  // The matmul of these options, made on first use and shared while anyone holds it. Unimplemented:
  // oneDNN has only a reference implementation for it (named), no common layout of the weights, or
  // its numbers are not the exact integers. Internal: the library failed.
  static absl::StatusOr<std::shared_ptr<const OnednnMatmul>> Get(const Options& options);

  virtual size_t weight_bytes() const = 0;
  virtual size_t scratchpad_bytes() const = 0;
  // codes [width, k] row-major -> the library's layout at `out` [weight_bytes], 64-byte aligned.
  virtual absl::Status PackWeights(const int8_t* codes, std::byte* out) const = 0;
  // Where the code of (column, i) lies in the packed weights.
  virtual int64_t WeightOffset(int64_t column, int64_t i) const = 0;

  // The row count that `rows` is padded to: x must be readable and out writable up to it.
  static int64_t PaddedRows(int64_t rows);
  struct Operands {
    const uint8_t* x;          // [PaddedRows(rows), k]
    const std::byte* weights;  // as packed
    int32_t* out;              // [PaddedRows(rows), width]
    std::byte* scratchpad;     // [scratchpad_bytes], 64-byte aligned
  };
  // rows in [1, kOnednnMaxRows]. Internal: the library failed.
  virtual absl::Status Multiply(int64_t rows, const Operands& operands) const = 0;
};

}  // namespace assay
