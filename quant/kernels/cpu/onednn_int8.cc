#include "quant/kernels/cpu/onednn_int8.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/cpu_info.h"
#include "quant/kernels/cpu/onednn_matmul.h"
#include "quant/kernels/cpu/panel_int8_micro.h"
#include "quant/kernels/cpu/panel_tasks.h"
#include "quant/kernels/kernels.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

// k * 255 * 127 must fit 32 bit.
constexpr int64_t kMaxK = (int64_t{1} << 31) / (255 * 127) - 1;
// Columns of one matmul: enough threads find work in a decode step, and 64 rows of s32 results
// (32 KB) stay in L2 until they are rescaled.
constexpr int64_t kPanelColumns = 128;
constexpr int kOffset = 128;  // u8 activation = code + 128

struct Panel {
  int64_t column, width;
  std::shared_ptr<const OnednnMatmul> matmul;
  Tensor weights;  // in the library's layout
};

struct Packed final : PackedWeight {
  int64_t n = 0, k = 0;
  std::vector<Panel> panels;
  Tensor scales;   // f32 [n]
  Tensor offsets;  // s32 [n]: 128 * sum of the channel's codes

  size_t bytes() const override {
    size_t total = scales.bytes() + offsets.bytes();
    for (const Panel& panel : panels) total += panel.weights.bytes();
    return total;
  }
};

class OnednnInt8 final : public LinearKernel {
 public:
  explicit OnednnInt8(const OnednnInt8Options& options) : options_(options) {}
  std::string_view name() const override { return "onednn_int8"; }

  absl::Status Supports(const LinearProblem& p) const override {
    if (p.scheme != &Int8ChannelScheme() || p.activation != ActivationMode::kA8Token) {
      return absl::UnimplementedError("multiplies int8_channel weights by a8_token activations");
    }
    const CpuInfo& cpu = HostCpu();
    if (!cpu.avx2) return absl::UnimplementedError("CPU has no AVX2");
    if (!options_.skip_isa_check && !cpu.avx512_vnni && !cpu.avx_vnni && !cpu.amx_int8) {
      return absl::UnimplementedError("CPU has no VNNI: u8s8 saturates");
    }
    if (p.shape[1] > kMaxK) {
      return absl::UnimplementedError(
          absl::StrCat("32-bit sums are exact up to k=", kMaxK, ": k=", p.shape[1]));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<const PackedWeight>> Pack(const QuantizedTensor& w,
                                                           ActivationMode) const override {
    auto packed = std::make_unique<Packed>();
    const int64_t n = packed->n = w.shape[0], k = packed->k = w.shape[1];
    ASSIGN_OR_RETURN(packed->scales, Tensor::Create(CpuDevice(), {n}, DType::kF32));
    ASSIGN_OR_RETURN(packed->offsets, Tensor::Create(CpuDevice(), {n}, DType::kI32));
    std::copy_n(w.scales.data<float>(), n, packed->scales.data<float>());
    const int8_t* codes = w.codes.data<int8_t>();
    for (int64_t row = 0; row < n; ++row) {
      int32_t sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += codes[row * k + i];
      packed->offsets.data<int32_t>()[row] = kOffset * sum;
    }
    for (int64_t column = 0; column < n; column += kPanelColumns) {
      const int64_t width = std::min(kPanelColumns, n - column);
      ASSIGN_OR_RETURN(auto matmul,
                       OnednnMatmul::Get({k, width, options_.skip_isa_check ? 63 : 127}));
      ASSIGN_OR_RETURN(
          Tensor weights,
          Tensor::Create(CpuDevice(), {static_cast<int64_t>(matmul->weight_bytes())}, DType::kI8));
      RETURN_IF_ERROR(matmul->PackWeights(codes + column * k, weights.data<std::byte>()));
      packed->panels.push_back({column, width, std::move(matmul), std::move(weights)});
    }
    RETURN_IF_ERROR(CheckLayout(*packed, codes));
    return packed;
  }

  size_t scratch_bytes(const LinearProblem& p, int64_t m) const override {
    const auto rows = static_cast<size_t>(m + kOnednnMaxRows), k = static_cast<size_t>(p.shape[1]);
    return rows * (k + sizeof(float)) + 256 +
           static_cast<size_t>(MaxPanelWorkers()) * (kOutBytes + kMaxScratchpad);
  }

  void Run(const PackedWeight& w, const LinearArgs& args, ComputeContext& context) const override {
    const auto& packed = static_cast<const Packed&>(w);
    const int64_t m = args.x.shape[0], n = packed.n, k = packed.k;
    const Arena::Scope scope(context.scratch);
    const int64_t padded = m + kOnednnMaxRows;
    auto* codes = context.scratch.Allocate<uint8_t>(static_cast<size_t>(padded * k));
    auto* scales = context.scratch.Allocate<float>(static_cast<size_t>(padded));
    auto* per_worker = context.scratch.Allocate<std::byte>(
        static_cast<size_t>(PanelWorkers(context.pool)) * (kOutBytes + kMaxScratchpad));
    const float* x = args.x.as<float>();
    context.pool.ParallelFor(m, std::max<int64_t>(1, 24000 / k), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        scales[row] = Avx2QuantizeA8TokenU8(x + row * k, k, codes + row * k, false);
    });
    std::memset(codes + m * k, kOffset, static_cast<size_t>((padded - m) * k));
    const PanelGrid grid = {m, static_cast<int64_t>(packed.panels.size()), kOnednnMaxRows, 12,
                            static_cast<double>(m) * static_cast<double>(n * k)};
    ForPanelTasks(context.pool, grid, [&](int worker, const PanelTask& task) {
      std::byte* scratch = per_worker + static_cast<size_t>(worker) * (kOutBytes + kMaxScratchpad);
      const Activations activations = {codes, scales};
      for (int64_t p = task.panel; p < task.panel_end; ++p)
        RunPanel(packed, args, activations, {task.row, task.row_end, p, p + 1}, scratch);
    });
  }

  void DecodeRow(const PackedWeight& w, int64_t row, std::span<float> out) const override {
    const auto& packed = static_cast<const Packed&>(w);
    const Panel& panel = packed.panels[static_cast<size_t>(row / kPanelColumns)];
    const int8_t* codes = panel.weights.data<int8_t>();
    const float scale = packed.scales.data<float>()[row];
    for (int64_t i = 0; i < packed.k; ++i) {
      out[i] = scale * static_cast<float>(codes[panel.matmul->WeightOffset(row - panel.column, i)]);
    }
  }

 private:
  static constexpr size_t kOutBytes = kOnednnMaxRows * kPanelColumns * sizeof(int32_t);
  static constexpr size_t kMaxScratchpad = size_t{1} << 20;  // checked in Pack

  struct Activations {
    const uint8_t* codes;  // [m, k]
    const float* scales;   // [m]
  };

  // Every code is found where DecodeRow looks for it: the layout is what the library says it is.
  static absl::Status CheckLayout(const Packed& packed, const int8_t* codes) {
    for (const Panel& panel : packed.panels) {
      if (panel.matmul->scratchpad_bytes() > kMaxScratchpad) {
        return absl::UnimplementedError(absl::StrCat("oneDNN wants a large scratchpad: bytes=",
                                                     panel.matmul->scratchpad_bytes()));
      }
      for (int64_t c = 0; c < panel.width; ++c) {
        const int8_t* row = codes + (panel.column + c) * packed.k;
        for (int64_t i = 0; i < packed.k; ++i) {
          if (panel.weights.data<int8_t>()[panel.matmul->WeightOffset(c, i)] != row[i]) {
            return absl::InternalError(absl::StrCat("oneDNN's weight layout is not as described: ",
                                                    "row=", panel.column + c, " column=", i));
          }
        }
      }
    }
    return absl::OkStatus();
  }

  static void RunPanel(const Packed& packed, const LinearArgs& args, const Activations& x,
                       const PanelTask& task, std::byte* scratch) {
    const Panel& panel = packed.panels[static_cast<size_t>(task.panel)];
    auto* out = reinterpret_cast<int32_t*>(scratch);
    for (int64_t row = task.row; row < task.row_end; row += kOnednnMaxRows) {
      const int64_t rows = std::min(kOnednnMaxRows, task.row_end - row);
      const absl::Status status = panel.matmul->Multiply(
          rows,
          {x.codes + row * packed.k, panel.weights.data<std::byte>(), out, scratch + kOutBytes});
      if (!status.ok()) {  // it ran when it was made: a broken process, shown as NaN, never silent
        for (int64_t r = row; r < row + rows; ++r) {
          std::fill_n(args.y.as<float>() + r * packed.n + panel.column, panel.width,
                      std::numeric_limits<float>::quiet_NaN());
        }
        continue;
      }
      Avx2Int8Rescale({.acc = out,
                       .offsets = packed.offsets.data<int32_t>() + panel.column,
                       .x_scales = x.scales + row,
                       .weight_scales = packed.scales.data<float>() + panel.column,
                       .bias = args.bias.empty() ? nullptr : args.bias.as<float>() + panel.column,
                       .y = args.y.as<float>() + row * packed.n + panel.column,
                       .rows = rows,
                       .columns = panel.width,
                       .y_stride = packed.n,
                       .accumulate = args.accumulate});
    }
  }

  const OnednnInt8Options options_;
};

}  // namespace

std::unique_ptr<LinearKernel> MakeOnednnInt8Kernel(const OnednnInt8Options& options) {
  return std::make_unique<OnednnInt8>(options);
}
bool HasOnednn() { return true; }

const LinearKernel& OnednnInt8Kernel() {
  static const OnednnInt8 kernel{OnednnInt8Options{}};
  return kernel;
}

}  // namespace assay
