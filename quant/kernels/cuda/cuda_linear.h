// Linear layers on a GPU: y = x W^T + b with W in the canonical layout of its scheme in device
// memory, nothing repacked. Where k is no multiple of 32, rows of W and of x are made longer with
// zeros.
//
//   scheme                                 activation  up to 64 rows   more rows
//   int4_group, int8_group, int8_channel,  a16         skinny.h        expand.h, then gemm16.h
//   nf4, fp8_e4m3
//   bf16, f32 (rounded to 16 bit)          a16         gemm16.h        gemm16.h
//   int8_channel                           a8_token    gemm_s8.h       gemm_s8.h
//
// Thread rule: const after Create; one stream at a time per CudaScratch.
#pragma once
#include <memory>
#include <string>

#include "base/cuda/cuda_device.h"
#include "base/tensor.h"
#include "quant/kernels/cuda/kernel_table.h"
#include "quant/kernels/cuda/row_form.h"
#include "quant/linear.h"

namespace assay {

// What linear layers of one device share.
struct CudaBackend {
  CudaDevice& device;
  const CudaLinearKernels& kernels;
  Half half = Half::kBf16;  // what activations are made of
};

// Device memory that products of one stream use in turn.
struct CudaScratch {
  void* expanded = nullptr;  // CudaLinear::expanded_bytes of the largest
  void* padded = nullptr;    // CudaLinear::padded_bytes of the largest
  float* partial = nullptr;  // partial_floats of the largest
  int* counters = nullptr;   // CudaLinear::counters of the largest; zeros before and after
};

struct CudaLinearArgs {
  const void* x = nullptr;          // [rows, k] in input(), dense
  const float* x_scales = nullptr;  // [rows], of codes
  int rows = 0;
  float* y = nullptr;       // [rows, n]
  bool accumulate = false;  // y += ...
  CudaScratch scratch;
  LaunchContext context;
};

class CudaLinear final : public PackedWeight {
 public:
  // `bias` [n] f32 or empty. Unimplemented: names the reason (see CudaLinearRefuses);
  // ResourceExhausted.
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
  RowForm input() const { return input_; }
  const StoredWeight& weight() const { return weight_; }  // its k: with what was padded
  size_t expanded_bytes(int rows) const;
  size_t padded_bytes(int rows) const;
  size_t partial_floats(int rows) const;
  size_t counters(int rows) const;
  absl::Status Run(const CudaLinearArgs& args) const;

 private:
  explicit CudaLinear(const CudaBackend& backend) : backend_(backend) {}
  void Point();  // weight_ at the buffers
  absl::Status RunPadded(const CudaLinearArgs& args) const;
  absl::Status RunHalf(const CudaLinearArgs& args) const;
  absl::Status RunExpanded(const CudaLinearArgs& args) const;
  absl::Status RunS8(const CudaLinearArgs& args) const;
  absl::Status Done(int error, const char* op, int rows) const;  // OK for 0
  // In T: 16-bit products use it as it is.
  bool IsPlain() const { return StorageBits(weight_.storage) >= 16; }

  const CudaBackend backend_;
  StoredWeight weight_;
  Buffer codes_, scales_, zeros_, bias_;
  RowForm input_ = RowForm::kHalf;
  int width_ = 0;  // of rows of x
  size_t bytes_ = 0;
};

// How a scheme's weight lies in device memory; the pointers are left null. Unimplemented: kernels
// do not know the scheme.
absl::StatusOr<StoredWeight> StorageOf(const QuantScheme& scheme, const Shape& shape);
// OK, or Unimplemented with the reason why a device with this profile has no product for it.
absl::Status CudaLinearRefuses(const QuantScheme& scheme, const Shape& shape,
                               ActivationMode activation, const CudaBackend& backend);

}  // namespace assay
