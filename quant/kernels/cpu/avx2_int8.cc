// Kernel "avx2_int8": int8_channel weights times a8_token activations on AVX2, exact: the integer
// dot products and the f32 epilogue are those of "reference", bit for bit, for every m. One packed
// copy (avx2_int8_micro.h) serves decode, which runs at memory speed, and prefill.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/cpu_info.h"
#include "quant/kernels/cpu/avx2_int8_micro.h"
#include "quant/kernels/cpu/panel_tasks.h"
#include "quant/kernels/kernels.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

// k * 127 * 127 must fit 32 bit.
constexpr int64_t kMaxK = (int64_t{1} << 31) / (127 * 127) - 1;
// Activation codes of one task stay in half of a 512 KB L2.
constexpr int64_t kTaskBytes = 256 << 10;

struct Packed final : PackedWeight {
  int64_t n = 0, k = 0;
  Tensor panels;  // s8 [num_panels * k_pairs * 32]
  Tensor scales;  // f32 [num_panels * 16]

  size_t bytes() const override { return panels.bytes() + scales.bytes(); }
  int64_t num_panels() const { return (n + kInt8PanelColumns - 1) / kInt8PanelColumns; }
  int64_t k_pairs() const { return (k + 1) / 2; }
};

void PackPanels(const QuantizedTensor& w, Packed& packed) {
  const int64_t n = packed.n, k = packed.k, k_pairs = packed.k_pairs();
  const int8_t* codes = w.codes.data<int8_t>();
  int8_t* out = packed.panels.data<int8_t>();
  std::memset(out, 0, packed.panels.bytes());
  std::memset(packed.scales.data<float>(), 0, packed.scales.bytes());
  std::copy_n(w.scales.data<float>(), n, packed.scales.data<float>());
  for (int64_t row = 0; row < n; ++row) {
    int8_t* column = out + (row / 16 * k_pairs * 16 + row % 16) * 2;
    for (int64_t i = 0; i < k; ++i) column[i / 2 * 32 + i % 2] = codes[row * k + i];
  }
}

class Avx2Int8 final : public LinearKernel {
 public:
  std::string_view name() const override { return "avx2_int8"; }

  absl::Status Supports(const LinearProblem& p) const override {
    if (p.scheme != &Int8ChannelScheme() || p.activation != ActivationMode::kA8Token) {
      return absl::UnimplementedError("multiplies int8_channel weights by a8_token activations");
    }
    if (!HostCpu().avx2) return absl::UnimplementedError("CPU has no AVX2");
    if (p.shape[1] > kMaxK) {
      return absl::UnimplementedError(
          absl::StrCat("32-bit sums are exact up to k=", kMaxK, ": k=", p.shape[1]));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<const PackedWeight>> Pack(const QuantizedTensor& w,
                                                           ActivationMode) const override {
    auto packed = std::make_unique<Packed>();
    packed->n = w.shape[0];
    packed->k = w.shape[1];
    const int64_t panels = packed->num_panels();
    ASSIGN_OR_RETURN(packed->panels,
                     Tensor::Create(CpuDevice(), {panels * packed->k_pairs() * 32}, DType::kI8));
    ASSIGN_OR_RETURN(packed->scales, Tensor::Create(CpuDevice(), {panels * 16}, DType::kF32));
    PackPanels(w, *packed);
    return packed;
  }

  size_t scratch_bytes(const LinearProblem& p, int64_t m) const override {
    const auto k_pairs = static_cast<size_t>((p.shape[1] + 1) / 2);
    const auto rows = static_cast<size_t>(m);
    return rows * (k_pairs * 4 + sizeof(float)) + 128;
  }

  void Run(const PackedWeight& w, const LinearArgs& args, ComputeContext& context) const override {
    const auto& packed = static_cast<const Packed&>(w);
    const int64_t m = args.x.shape[0], n = packed.n, k = packed.k, k_pairs = packed.k_pairs();
    const Arena::Scope scope(context.scratch);
    auto* codes = context.scratch.Allocate<int16_t>(static_cast<size_t>(m * k_pairs * 2));
    auto* scales = context.scratch.Allocate<float>(static_cast<size_t>(m));
    const float* x = args.x.as<float>();
    // About 0.1 us per thousand elements: small batches are not worth a fork of their own.
    context.pool.ParallelFor(m, std::max<int64_t>(1, 24000 / k), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        scales[row] = Avx2QuantizeA8Token(x + row * k, k, codes + row * k_pairs * 2);
      }
    });
    const PanelGrid grid = {m, packed.num_panels(),
                            std::max<int64_t>(12, kTaskBytes / (k_pairs * 4) / 6 * 6),
                            static_cast<double>(m) * static_cast<double>(n * k)};
    ForPanelTasks(context.pool, grid, [&](int, const PanelTask& task) {
      const Int8PanelJob job = {.panels = packed.panels.data<int8_t>(),
                                .weight_scales = packed.scales.data<float>(),
                                .k_pairs = k_pairs,
                                .x = codes + task.row * k_pairs * 2,
                                .x_scales = scales + task.row,
                                .m = task.row_end - task.row,
                                .bias = args.bias.empty() ? nullptr : args.bias.as<float>(),
                                .y = args.y.as<float>() + task.row * n,
                                .n = n,
                                .accumulate = args.accumulate};
      Avx2Int8Panels(job, task.panel, task.panel_end);
    });
  }

  void DecodeRow(const PackedWeight& w, int64_t row, std::span<float> out) const override {
    const auto& packed = static_cast<const Packed&>(w);
    const int8_t* column =
        packed.panels.data<int8_t>() + (row / 16 * packed.k_pairs() * 16 + row % 16) * 2;
    const float scale = packed.scales.data<float>()[row];
    for (int64_t i = 0; i < packed.k; ++i) {
      out[i] = scale * static_cast<float>(column[i / 2 * 32 + i % 2]);
    }
  }
};

}  // namespace

const LinearKernel& Avx2Int8Kernel() {
  static const Avx2Int8 kernel;
  return kernel;
}

}  // namespace assay
