// Kernel "decoded_f32": any scheme and activation mode at the speed of f32. The weight is decoded
// once, when it is packed, and x is replaced by what its mode makes of it (quant/activation.h); the
// product is avx512_f32's or avx2_f32's, or the reference's where the CPU lacks AVX2. Right for
// accuracy and within a few percent of f32 in speed; the resident weight is as large as in f32, and
// bytes() says so. Batch-invariant, as the kernel below it is.
#include <algorithm>

#include "base/thread_pool.h"
#include "quant/activation.h"
#include "quant/kernels/kernels.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

struct Packed final : PackedWeight {
  std::unique_ptr<const PackedWeight> inner;
  ActivationMode activation = ActivationMode::kA16;
  ActivationParams params;
  size_t bytes() const override { return inner->bytes(); }
};

LinearProblem InnerProblem(const Shape& shape) {
  return {shape, &F32Scheme(), ActivationMode::kA16, DeviceKind::kCpu};
}

const LinearKernel& Inner() {
  static const LinearKernel& inner = [&]() -> const LinearKernel& {
    for (const LinearKernel* kernel : {&Avx512F32Kernel(), &Avx2F32Kernel()}) {
      if (kernel->Supports(InnerProblem({1, 1})).ok()) return *kernel;
    }
    return ReferenceKernel();
  }();
  return inner;
}

class Decoded final : public LinearKernel {
 public:
  std::string_view name() const override { return "decoded_f32"; }

  absl::Status Supports(const LinearProblem& p) const override {
    if (p.activation == ActivationMode::kA16 && p.scheme == &F32Scheme())
      return absl::UnimplementedError("f32 weights need no decoding");
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<const PackedWeight>> Pack(
      const QuantizedTensor& w, ActivationMode activation) const override {
    auto packed = std::make_unique<Packed>();
    packed->activation = activation;
    ASSIGN_OR_RETURN(packed->params, ReadActivationParams(w, activation));
    QuantizedTensor decoded;
    decoded.scheme = &F32Scheme();
    decoded.shape = w.shape;
    ASSIGN_OR_RETURN(decoded.codes, Tensor::Create(CpuDevice(), w.shape, DType::kF32));
    RETURN_IF_ERROR(w.scheme->DecodeRows(
        w, 0, w.shape[0], {decoded.codes.data<float>(), static_cast<size_t>(w.shape.elements())}));
    ASSIGN_OR_RETURN(packed->inner, Inner().Pack(decoded, ActivationMode::kA16));
    return packed;
  }

  size_t scratch_bytes(const LinearProblem& p, int64_t m) const override {
    const size_t inner = Inner().scratch_bytes(InnerProblem(p.shape), m);
    if (!HasCodes(p.activation)) return inner;
    return inner + static_cast<size_t>(m * p.shape[1]) * (sizeof(float) + sizeof(int16_t)) + 192;
  }

  void Run(const PackedWeight& w, const LinearArgs& args, ComputeContext& context) const override {
    const auto& packed = static_cast<const Packed&>(w);
    const Arena::Scope scope(context.scratch);
    LinearArgs seen = args;
    if (HasCodes(packed.activation)) seen.x.data = Represent(packed, args.x, context);
    Inner().Run(*packed.inner, seen, context);
  }

  void DecodeRow(const PackedWeight& w, int64_t row, std::span<float> out) const override {
    Inner().DecodeRow(*static_cast<const Packed&>(w).inner, row, out);
  }

 private:
  static const std::byte* Represent(const Packed& packed, TensorView x, ComputeContext& context) {
    const int64_t m = x.shape[0], k = x.shape[1];
    const auto size = static_cast<size_t>(k);
    auto* codes = context.scratch.Allocate<int16_t>(static_cast<size_t>(m * k));
    auto* out = context.scratch.Allocate<float>(static_cast<size_t>(m * k));
    const uint8_t* decode_rows = context.decode_rows;
    context.pool.ParallelFor(m, std::max<int64_t>(1, 24000 / k), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        RepresentRow(packed.activation, packed.params,
                     {decode_rows != nullptr && decode_rows[r] != 0}, {x.as<float>() + r * k, size},
                     {codes + r * k, size}, {out + r * k, size});
      }
    });
    return reinterpret_cast<const std::byte*>(out);
  }
};

}  // namespace

const LinearKernel& DecodedF32Kernel() {
  static const Decoded kernel;
  return kernel;
}

}  // namespace assay
