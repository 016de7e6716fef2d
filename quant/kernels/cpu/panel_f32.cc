// Kernels "avx512_f32" and "avx2_f32": f32, bf16 and int8_channel weights times f32 activations
// (a16) with AVX512, or AVX2 and FMA. Both have the same layout and the same results: each output
// is one chain of fused multiply-adds over k in order, for every m: bit for bit the same whatever
// the batch and the number of threads. The reference model of verification runs on it.
#include <algorithm>
#include <cstring>

#include "base/cpu_info.h"
#include "base/float16.h"
#include "quant/kernels/cpu/panel_f32_micro.h"
#include "quant/kernels/cpu/panel_tasks.h"
#include "quant/kernels/kernels.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

// Activations of one task stay in half of a 512 KB L2.
constexpr int64_t kTaskBytes = 256 << 10;

struct Packed final : PackedWeight {
  F32WeightType type = F32WeightType::kF32;
  int64_t n = 0, k = 0;
  Tensor panels;  // [num_panels * k * 16], as panel_f32_micro.h draws it
  Tensor scales;  // f32 [num_panels * 16], or empty

  size_t bytes() const override { return panels.bytes() + (scales.empty() ? 0 : scales.bytes()); }
  int64_t num_panels() const { return (n + kF32PanelColumns - 1) / kF32PanelColumns; }
  // Where W[row, 0] lies; W[row, i] lies 16 i elements further.
  int64_t Column(int64_t row) const {
    const int64_t c = row % 16;
    const int64_t lane = type == F32WeightType::kBf16 ? c % 8 * 2 + c / 8 : c;
    return row / 16 * k * 16 + lane;
  }
};

template <typename T>
void PackPanels(const QuantizedTensor& w, Packed& packed) {
  const T* codes = w.codes.data<T>();
  T* out = packed.panels.data<T>();
  std::memset(out, 0, packed.panels.bytes());
  for (int64_t row = 0; row < packed.n; ++row) {
    T* column = out + packed.Column(row);
    for (int64_t i = 0; i < packed.k; ++i) column[i * 16] = codes[row * packed.k + i];
  }
}

// What differs between the instruction sets.
struct Loops {
  const char *name, *missing;
  bool supported;
  void (*panels)(const F32PanelJob& job, int64_t panel_begin, int64_t panel_end, float* wide);
};

class PanelF32 final : public LinearKernel {
 public:
  explicit PanelF32(const Loops& loops) : loops_(loops) {}
  std::string_view name() const override { return loops_.name; }

  absl::Status Supports(const LinearProblem& p) const override {
    if (p.activation != ActivationMode::kA16 ||
        (p.scheme != &F32Scheme() && p.scheme != &Bf16Scheme() &&
         p.scheme != &Int8ChannelScheme())) {
      return absl::UnimplementedError(
          "multiplies f32, bf16 and int8_channel weights by a16 activations");
    }
    return loops_.supported ? absl::OkStatus() : absl::UnimplementedError(loops_.missing);
  }

  absl::StatusOr<std::unique_ptr<const PackedWeight>> Pack(const QuantizedTensor& w,
                                                           ActivationMode) const override {
    auto packed = std::make_unique<Packed>();
    packed->n = w.shape[0];
    packed->k = w.shape[1];
    const int64_t panels = packed->num_panels();
    ASSIGN_OR_RETURN(packed->panels,
                     Tensor::Create(CpuDevice(), {panels * packed->k * 16}, w.codes.dtype()));
    if (w.scheme == &F32Scheme()) {
      PackPanels<float>(w, *packed);
    } else if (w.scheme == &Bf16Scheme()) {
      packed->type = F32WeightType::kBf16;
      PackPanels<uint16_t>(w, *packed);
    } else {
      packed->type = F32WeightType::kInt8;
      PackPanels<int8_t>(w, *packed);
      ASSIGN_OR_RETURN(packed->scales, Tensor::Create(CpuDevice(), {panels * 16}, DType::kF32));
      std::fill_n(packed->scales.data<float>(), panels * 16, 0.0f);
      std::copy_n(w.scales.data<float>(), packed->n, packed->scales.data<float>());
    }
    return packed;
  }

  size_t scratch_bytes(const LinearProblem& p, int64_t) const override {
    if (p.scheme == &F32Scheme()) return 0;
    return static_cast<size_t>(MaxPanelWorkers() * p.shape[1]) * 64 + 64;
  }

  void Run(const PackedWeight& w, const LinearArgs& args, ComputeContext& context) const override {
    const auto& packed = static_cast<const Packed&>(w);
    const int64_t m = args.x.shape[0], n = packed.n, k = packed.k;
    const Arena::Scope scope(context.scratch);
    const bool widens = packed.type != F32WeightType::kF32;
    auto* wide = widens ? context.scratch.Allocate<float>(
                              static_cast<size_t>(PanelWorkers(context.pool) * k * 16))
                        : nullptr;
    const PanelGrid grid = {m, packed.num_panels(),
                            std::max<int64_t>(12, kTaskBytes / (k * 4) / 6 * 6), 12,
                            static_cast<double>(m) * static_cast<double>(n * k)};
    ForPanelTasks(context.pool, grid, [&](int worker, const PanelTask& task) {
      const F32PanelJob job = {
          .type = packed.type,
          .panels = packed.panels.data<std::byte>(),
          .weight_scales = packed.scales.empty() ? nullptr : packed.scales.data<float>(),
          .k = k,
          .x = args.x.as<float>() + task.row * k,
          .m = task.row_end - task.row,
          .bias = args.bias.empty() ? nullptr : args.bias.as<float>(),
          .y = args.y.as<float>() + task.row * n,
          .n = n,
          .accumulate = args.accumulate};
      loops_.panels(job, task.panel, task.panel_end, widens ? wide + worker * k * 16 : nullptr);
    });
  }

  void DecodeRow(const PackedWeight& w, int64_t row, std::span<float> out) const override {
    const auto& packed = static_cast<const Packed&>(w);
    const int64_t begin = packed.Column(row);
    for (int64_t i = 0; i < packed.k; ++i) {
      const int64_t at = begin + i * 16;
      switch (packed.type) {
        case F32WeightType::kF32:
          out[i] = packed.panels.data<float>()[at];
          break;
        case F32WeightType::kBf16:
          out[i] = Bf16ToF32(packed.panels.data<uint16_t>()[at]);
          break;
        case F32WeightType::kInt8:
          out[i] = packed.scales.data<float>()[row] *
                   static_cast<float>(packed.panels.data<int8_t>()[at]);
          break;
      }
    }
  }

 private:
  Loops loops_;
};

}  // namespace

const LinearKernel& Avx512F32Kernel() {
  static const PanelF32 kernel(
      {"avx512_f32", "CPU has no AVX512", HostCpu().avx512f, &Avx512F32Panels});
  return kernel;
}

const LinearKernel& Avx2F32Kernel() {
  static const PanelF32 kernel(
      {"avx2_f32", "CPU has no AVX2 and FMA", HostCpu().avx2 && HostCpu().fma, &Avx2F32Panels});
  return kernel;
}
}  // namespace assay
