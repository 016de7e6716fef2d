// Kernel "reference": every scheme and activation mode by its definition, on any x86-64.
//
//   integer codes on both sides (int8_channel, the modes with integer codes):
//     acc = sum of code_x * code_w exactly in 64 bit, then y = (s_x * s_w) * f32(acc), + the
//     outlier columns' x * decode(w) in order (int8_outlier), + bias, + y; each step rounded to f32
//     once
//   everything else:
//     y = sum over k, in order, of what x stands for (quant/activation.h) times decode(w)[k], one
//     f32 rounding per product and per sum (no FMA), + bias, + y
//
// The packed weight is a copy of the canonical one. Batch-invariant: a row is computed alone.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/thread_pool.h"
#include "quant/activation.h"
#include "quant/kernels/kernels.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

constexpr int64_t kRowBlock = 8;  // rows of x that share one decoded row of w

struct Packed final : PackedWeight {
  QuantizedTensor w;
  ActivationMode activation = ActivationMode::kA16;
  ActivationParams params;
  size_t bytes() const override { return w.bytes(); }
  bool integer() const { return MultipliesIntegers(w.scheme, activation); }

  static bool MultipliesIntegers(const QuantScheme* scheme, ActivationMode activation) {
    return HasIntegerCodes(activation) && scheme == &Int8ChannelScheme();
  }
};

RowPhase PhaseOf(const ComputeContext& context, int64_t row) {
  return {context.decode_rows != nullptr && context.decode_rows[row] != 0};
}

absl::StatusOr<Tensor> Clone(const Tensor& from) {
  if (from.empty()) return Tensor();
  ASSIGN_OR_RETURN(Tensor to, Tensor::Create(CpuDevice(), from.shape(), from.dtype()));
  std::memcpy(to.data<std::byte>(), from.data<std::byte>(), from.bytes());
  return to;
}

absl::StatusOr<QuantizedTensor> Clone(const QuantizedTensor& from) {
  QuantizedTensor to;
  to.scheme = from.scheme;
  to.shape = from.shape;
  to.group = from.group;
  ASSIGN_OR_RETURN(to.codes, Clone(from.codes));
  ASSIGN_OR_RETURN(to.scales, Clone(from.scales));
  ASSIGN_OR_RETURN(to.zeros, Clone(from.zeros));
  for (const auto& [name, tensor] : from.extra) {
    ASSIGN_OR_RETURN(to.extra[name], Clone(tensor));
  }
  return to;
}

// Adds bias and the old y as LinearArgs asks.
void Store(const LinearArgs& args, int64_t row, int64_t column, float value) {
  if (!args.bias.empty()) value += args.bias.as<float>()[column];
  float& y = args.y.as<float>()[row * args.y.shape[1] + column];
  y = args.accumulate ? y + value : value;
}

// dot[i] = x[i] . w for kRowBlock rows; eight independent chains, each in order over k.
void DotRows(const float* x, int64_t k, const float* w, float* dot) {
  float sum[kRowBlock] = {};
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t r = 0; r < kRowBlock; ++r) sum[r] += x[r * k + i] * w[i];
  }
  std::copy_n(sum, kRowBlock, dot);
}

void DotRow(const float* x, int64_t k, const float* w, float* dot) {
  float sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += x[i] * w[i];
  *dot = sum;
}

// Columns [begin, end) of y, weights decoded one row at a time into `row` [k].
void RunFloat(const Packed& packed, const LinearArgs& args, int64_t begin, int64_t end,
              std::span<float> row) {
  const int64_t m = args.x.shape[0], k = args.x.shape[1];
  const float* x = args.x.as<float>();
  for (int64_t column = begin; column < end; ++column) {
    // Create() decoded once: the layout is right and this cannot fail.
    (void)packed.w.scheme->DecodeRows(packed.w, column, 1, row);
    for (int64_t r = 0; r < m;) {
      float dot[kRowBlock];
      const int64_t rows = m - r >= kRowBlock ? kRowBlock : 1;
      if (rows == kRowBlock) {
        DotRows(x + r * k, k, row.data(), dot);
      } else {
        DotRow(x + r * k, k, row.data(), dot);
      }
      for (int64_t i = 0; i < rows; ++i) Store(args, r + i, column, dot[i]);
      r += rows;
    }
  }
}

int64_t DotIntegers(const int16_t* a, const int8_t* b, int64_t k) {
  constexpr int64_t kBlock = 1 << 15;  // 2^15 * 255 * 128 < 2^31
  int64_t total = 0;
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t end = std::min(k, begin + kBlock);
    int32_t sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += static_cast<int32_t>(a[i]) * b[i];
    total += sum;
  }
  return total;
}

class Reference final : public LinearKernel {
 public:
  std::string_view name() const override { return "reference"; }

  absl::Status Supports(const LinearProblem&) const override { return absl::OkStatus(); }

  absl::StatusOr<std::unique_ptr<const PackedWeight>> Pack(
      const QuantizedTensor& w, ActivationMode activation) const override {
    auto packed = std::make_unique<Packed>();
    packed->activation = activation;
    ASSIGN_OR_RETURN(packed->params, ReadActivationParams(w, activation));
    ASSIGN_OR_RETURN(packed->w, Clone(w));
    return packed;
  }

  size_t scratch_bytes(const LinearProblem& p, int64_t m) const override {
    const auto k = static_cast<size_t>(p.shape[1]), rows = static_cast<size_t>(m);
    const size_t codes = HasCodes(p.activation) ? rows * (k * 2 + sizeof(float)) + 128 : 0;
    if (Packed::MultipliesIntegers(p.scheme, p.activation)) return codes;
    return codes + (HasCodes(p.activation) ? rows * k * sizeof(float) + 64 : 0) +
           static_cast<size_t>(kMaxWorkers) * k * sizeof(float) + 64;
  }

  void Run(const PackedWeight& w, const LinearArgs& args, ComputeContext& context) const override {
    const auto& packed = static_cast<const Packed&>(w);
    const Arena::Scope scope(context.scratch);
    if (packed.integer()) {
      RunIntegers(packed, args, context);
      return;
    }
    LinearArgs seen = args;
    if (HasCodes(packed.activation)) seen.x.data = Represent(packed, args.x, context);
    const int64_t n = packed.w.shape[0], k = packed.w.shape[1];
    const int workers = std::min(context.pool.num_threads(), kMaxWorkers);
    auto* rows = context.scratch.Allocate<float>(static_cast<size_t>(workers * k));
    context.pool.Run([&](int worker) {
      if (worker >= workers) return;
      RunFloat(packed, seen, n * worker / workers, n * (worker + 1) / workers,
               {rows + worker * k, static_cast<size_t>(k)});
    });
  }

  void DecodeRow(const PackedWeight& w, int64_t row, std::span<float> out) const override {
    const auto& packed = static_cast<const Packed&>(w);
    (void)packed.w.scheme->DecodeRows(packed.w, row, 1, out);  // row < n: the caller's contract
  }

 private:
  static constexpr int kMaxWorkers = 64;  // more threads than this leave the rest idle

  // x as the mode sees it, in scratch.
  static const std::byte* Represent(const Packed& packed, TensorView x, ComputeContext& context) {
    const int64_t m = x.shape[0];
    const auto k = static_cast<size_t>(x.shape[1]);
    auto* codes = context.scratch.Allocate<int16_t>(k);
    auto* out = context.scratch.Allocate<float>(static_cast<size_t>(m) * k);
    for (int64_t r = 0; r < m; ++r) {
      RepresentRow(packed.activation, packed.params, PhaseOf(context, r),
                   {x.as<float>() + r * x.shape[1], k}, {codes, k}, {out + r * x.shape[1], k});
    }
    return reinterpret_cast<const std::byte*>(out);
  }

  static void RunIntegers(const Packed& packed, const LinearArgs& args, ComputeContext& context) {
    const int64_t m = args.x.shape[0], n = packed.w.shape[0], k = packed.w.shape[1];
    auto* codes = context.scratch.Allocate<int16_t>(static_cast<size_t>(m * k));
    auto* scales = context.scratch.Allocate<float>(static_cast<size_t>(m));
    const float* x = args.x.as<float>();
    for (int64_t r = 0; r < m; ++r) {
      scales[r] =
          QuantizeRow(packed.activation, packed.params, PhaseOf(context, r),
                      {x + r * k, static_cast<size_t>(k)}, {codes + r * k, static_cast<size_t>(k)});
    }
    const int8_t* weights = packed.w.codes.data<int8_t>();
    const float* weight_scales = packed.w.scales.data<float>();
    context.pool.ParallelFor(n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t column = begin; column < end; ++column) {
        for (int64_t r = 0; r < m; ++r) {
          const int8_t* w = weights + column * k;
          const auto acc = static_cast<float>(DotIntegers(codes + r * k, w, k));
          float value = (scales[r] * weight_scales[column]) * acc;
          for (const int32_t i : packed.params.outliers)
            value += x[r * k + i] * (weight_scales[column] * static_cast<float>(w[i]));
          Store(args, r, column, value);
        }
      }
    });
  }
};

}  // namespace

const LinearKernel& ReferenceKernel() {
  static const Reference kernel;
  return kernel;
}

}  // namespace assay
