// Linear layers on a GPU: y = x W^T + b with W in the canonical layout of its scheme in device
// memory, nothing repacked. Where k is no multiple of 32, rows of W and of x are made longer with
// zeros.
//
//   scheme                                 activation  up to 64 rows  more rows
//   int4_group, int8_group, int8_channel,  a16         skinny.h       expand.h, then 16 bit
//   nf4, fp8_e4m3
//   bf16, f32 (rounded to 16 bit)          a16         gemm16.h       16 bit
//   int8_channel                           a8_token    gemm_s8.h      gemm_s8.h
//   fp8_e4m3, a scale per row              fp8_token   skinny.h       FP8, scales per row
//   fp8_e4m3; int4_group of groups of 128  fp8_block   skinny.h       blocks_e4m3.h, then FP8
//   or a row, but for float                                           (1)
//
// (1) With scales per row and 128 inputs, rows in fours; the last one to three, of calls with such,
// as a16.
//
// 16 bit: cuBLASLt where CudaBackend has it and it takes the shape (lt_products.h), else gemm16.h.
// FP8: cuBLASLt on compute capability 9.0. Where that cannot be, and for weights of these two modes
// with other scales, activations stay in 16 bit, as in a16: closer to x and one kernel fewer. For
// the same reason up to 64 rows do in any case.
//
// Thread rule: const after Create; one stream at a time per CudaScratch.
#pragma once
#include <memory>
#include <string>

#include "base/cuda/cuda_device.h"
#include "base/tensor.h"
#include "quant/kernels/cuda/kernel_table.h"
#include "quant/kernels/cuda/lt_products.h"
#include "quant/kernels/cuda/row_form.h"
#include "quant/linear.h"

namespace assay {

// What linear layers of one device share.
struct CudaBackend {
  CudaDevice& device;
  const CudaLinearKernels& kernels;
  Half half = Half::kBf16;   // what activations are made of
  LtProducts* lt = nullptr;  // of the same device, outlives the layers; null: own kernels alone
};

// Device memory that products of one stream use in turn.
struct CudaScratch {
  void* expanded = nullptr;   // CudaLinear::expanded_bytes of the largest
  void* padded = nullptr;     // CudaLinear::padded_bytes of the largest
  float* partial = nullptr;   // partial_floats of the largest
  int* counters = nullptr;    // CudaLinear::counters of the largest; zeros before and after
  void* workspace = nullptr;  // CudaLinear::workspace_bytes of the largest; cuBLASLt's
};

struct CudaLinearArgs {
  const void* x = nullptr;          // [rows, k] in input(rows), dense
  const float* x_scales = nullptr;  // [rows], of codes
  int rows = 0;
  float* y = nullptr;       // [rows, n]
  bool accumulate = false;  // y += ...
  CudaScratch scratch;
  LaunchContext context;
};

inline constexpr int kFewRows = 64;  // that skinny products take

class CudaLinear final : public PackedWeight {
 public:
  // `bias` [n] f32 or empty. With a backend that has `lt` it times products of new shapes: not
  // while serving on the same stream. Unimplemented: names the reason (see CudaLinearRefuses);
  // ResourceExhausted; what LtProducts::Tune says.
  static absl::StatusOr<std::unique_ptr<const CudaLinear>> Create(const CudaBackend& backend,
                                                                  const QuantizedTensor& w,
                                                                  const Tensor& bias,
                                                                  ActivationMode activation);
  // Of a weight that lies on the device already, as its scheme draws it: what was quantized there.
  // InvalidArgument: buffers of another size, 16-bit weights, or k that is no multiple of 32.
  struct Parts {
    Buffer codes, scales, zeros;  // zeros empty: symmetric
  };
  static absl::StatusOr<std::unique_ptr<const CudaLinear>> Adopt(const CudaBackend& backend,
                                                                 const LinearProblem& problem,
                                                                 Parts parts);
  size_t bytes() const override { return bytes_; }  // of device memory
  // What Run wants of x, by the number of rows.
  RowForm input(int rows) const;
  const StoredWeight& weight() const { return weight_; }  // its k: with what was padded
  size_t expanded_bytes(int rows) const;
  size_t padded_bytes(int rows) const;
  size_t partial_floats(int rows) const;
  size_t counters(int rows) const;
  size_t workspace_bytes(int rows) const;
  absl::Status Run(const CudaLinearArgs& args) const;

 private:
  explicit CudaLinear(const CudaBackend& backend) : backend_(backend) {}
  void Point();  // weight_ at the buffers
  absl::Status FindLtProducts(ActivationMode activation);
  absl::Status RunPadded(const CudaLinearArgs& args) const;
  absl::Status RunS8(const CudaLinearArgs& args) const;
  // x in 16 bit; `bias` may be null.
  absl::Status RunSkinny(const CudaLinearArgs& args, const float* bias) const;
  absl::Status RunGemm16(const CudaLinearArgs& args, const void* w, const float* bias) const;
  absl::Status RunExpanded(const CudaLinearArgs& args) const;
  // cuda_linear_lt.cc: by cuBLASLt.
  absl::Status RunExpandedByLt(const CudaLinearArgs& args, const void* w) const;
  absl::Status RunFp8Rows(const CudaLinearArgs& args) const;
  absl::Status RunFp8Blocks(const CudaLinearArgs& args) const;
  // Where the operands of RunFp8Blocks lie in CudaScratch::expanded.
  struct BlocksAt {
    size_t w_codes, w_scales, x_codes, x_scales, end;
  };
  BlocksAt BlocksIn(int rows) const;
  absl::Status RunFp8BlocksPart(const CudaLinearArgs& args, const BlocksAt& at) const;
  absl::Status RunSkinnyParts(const CudaLinearArgs& args) const;
  absl::Status RunSkinnyOfCodes(const CudaLinearArgs& args) const;
  absl::Status AddBias(CudaLinearArgs& args) const;
  // Rows [first, first + rows) of a call whose rows of x have `row_bytes`.
  CudaLinearArgs Part(const CudaLinearArgs& args, int first, int rows, size_t row_bytes) const;

  absl::Status Done(int error, const char* op, int rows) const;  // OK for 0
  const float* bias() const { return reinterpret_cast<const float*>(bias_.data()); }
  // In T: 16-bit products use it as it is.
  bool IsPlain() const { return StorageBits(weight_.storage) >= 16; }

  const CudaBackend backend_;
  StoredWeight weight_;
  Buffer codes_, scales_, zeros_, bias_;
  bool s8_ = false;  // a8_token
  int width_ = 0;    // of rows of x
  size_t bytes_ = 0;
  // Products of many rows by cuBLASLt, at most one of them; the backend's.
  const LtProduct *lt_16_ = nullptr, *lt_rows_ = nullptr, *lt_blocks_ = nullptr;
};

// How a scheme's weight lies in device memory; the pointers are left null. Unimplemented: kernels
// do not know the scheme.
absl::StatusOr<StoredWeight> StorageOf(const QuantScheme& scheme, const Shape& shape);
// OK, or Unimplemented with the reason why a device with this profile has no product for it.
absl::Status CudaLinearRefuses(const QuantScheme& scheme, const Shape& shape,
                               ActivationMode activation, const CudaBackend& backend);

}  // namespace assay
