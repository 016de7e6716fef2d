#include "quant/kernels/cuda/cuda_kernel.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "base/log.h"
#include "quant/kernels/a8_token.h"

namespace assay {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Buffers of one product that nobody shares.
struct Staging {
  Buffer x, x_scales, y, expanded, padded, partial, counters, workspace;
};

// As E4M3 codes, by the kernel that serves.
absl::Status StageE4M3(const CudaBackend& backend, TensorView x, Staging& staging) {
  const auto rows = static_cast<int>(x.shape[0]), k = static_cast<int>(x.shape[1]);
  CudaDevice& device = backend.device;
  ASSIGN_OR_RETURN(const Buffer floats, [&]() -> absl::StatusOr<Buffer> {
    ASSIGN_OR_RETURN(Buffer made, device.Allocate(x.bytes()));
    RETURN_IF_ERROR(device.Upload({x.data, x.bytes()}, made));
    return made;
  }());
  ASSIGN_OR_RETURN(staging.x, device.Allocate(static_cast<size_t>(rows) * k));
  ASSIGN_OR_RETURN(staging.x_scales, device.Allocate(sizeof(float) * rows));
  const QuantizeRowsArgs args = {.from = floats.data(),
                                 .codes = reinterpret_cast<uint8_t*>(staging.x.data()),
                                 .scales = reinterpret_cast<float*>(staging.x_scales.data()),
                                 .rows = rows,
                                 .k = k,
                                 .from_stride = k,
                                 .codes_stride = k,
                                 .number = Number::kF32,
                                 .to = RowCodes::kFp8Token};
  RETURN_IF_ERROR(device.Noted(CudaStatus(
      backend.kernels.quantize_rows(args, {.stream = device.stream()}), "quantize_rows")));
  return device.Synchronize();
}

// x [rows, k] as the layer wants it.
absl::Status StageInput(const CudaBackend& backend, RowForm form, TensorView x, Staging& staging) {
  const int64_t rows = x.shape[0], k = x.shape[1];
  const auto count = static_cast<size_t>(rows * k);
  CudaDevice& device = backend.device;
  if (form == RowForm::kE4M3) return StageE4M3(backend, x, staging);
  if (form == RowForm::kHalf) {
    std::vector<uint16_t> halves(count);
    std::transform(x.as<float>(), x.as<float>() + count, halves.begin(), [&](float v) {
      return backend.half == Half::kF16 ? F32ToF16(v) : F32ToBf16(v);
    });
    ASSIGN_OR_RETURN(staging.x, device.Allocate(2 * count));
    return device.Upload(std::as_bytes(std::span(halves)), staging.x);
  }
  std::vector<int8_t> codes(count);
  std::vector<float> scales(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i)
    scales[static_cast<size_t>(i)] =
        QuantizeA8Token(x.as<float>() + i * k, k, codes.data() + i * k);
  ASSIGN_OR_RETURN(staging.x, device.Allocate(count));
  ASSIGN_OR_RETURN(staging.x_scales, device.Allocate(scales.size() * sizeof(float)));
  RETURN_IF_ERROR(device.Upload(std::as_bytes(std::span(codes)), staging.x));
  return device.Upload(std::as_bytes(std::span(scales)), staging.x_scales);
}

absl::Status StageScratch(CudaDevice& device, const CudaLinear& w, int rows, Staging& staging) {
  ASSIGN_OR_RETURN(staging.expanded, device.Allocate(w.expanded_bytes(rows)));
  ASSIGN_OR_RETURN(staging.padded, device.Allocate(w.padded_bytes(rows)));
  ASSIGN_OR_RETURN(staging.workspace, device.Allocate(w.workspace_bytes(rows)));
  ASSIGN_OR_RETURN(staging.partial, device.Allocate(w.partial_floats(rows) * sizeof(float)));
  const std::vector<int> zeros(w.counters(rows), 0);
  ASSIGN_OR_RETURN(staging.counters, device.Allocate(zeros.size() * sizeof(int)));
  return device.Upload(std::as_bytes(std::span(zeros)), staging.counters);
}

}  // namespace

absl::Status CudaLinearKernel::Supports(const LinearProblem& p) const {
  if (p.device != DeviceKind::kCuda) return absl::UnimplementedError("it is another device's");
  return CudaLinearRefuses(*p.scheme, p.shape, p.activation, backend_);
}

absl::StatusOr<std::unique_ptr<const PackedWeight>> CudaLinearKernel::Pack(
    const QuantizedTensor& w, ActivationMode activation) const {
  ASSIGN_OR_RETURN(std::unique_ptr<const CudaLinear> linear,
                   CudaLinear::Create(backend_, w, Tensor(), activation));
  return std::unique_ptr<const PackedWeight>(std::move(linear));
}

absl::Status CudaLinearKernel::TryRun(const CudaLinear& w, const LinearArgs& args) const {
  CudaDevice& device = backend_.device;
  RETURN_IF_ERROR(device.Use());
  const auto rows = static_cast<int>(args.x.shape[0]);
  const int n = w.weight().n;
  Staging staging;
  RETURN_IF_ERROR(StageInput(backend_, w.input(rows), args.x, staging));
  RETURN_IF_ERROR(StageScratch(device, w, rows, staging));
  ASSIGN_OR_RETURN(staging.y, device.Allocate(args.y.bytes()));
  if (args.accumulate) RETURN_IF_ERROR(device.Upload({args.y.data, args.y.bytes()}, staging.y));
  RETURN_IF_ERROR(w.Run({.x = staging.x.data(),
                         .x_scales = reinterpret_cast<const float*>(staging.x_scales.data()),
                         .rows = rows,
                         .y = reinterpret_cast<float*>(staging.y.data()),
                         .accumulate = args.accumulate,
                         .scratch = {.expanded = staging.expanded.data(),
                                     .padded = staging.padded.data(),
                                     .partial = reinterpret_cast<float*>(staging.partial.data()),
                                     .counters = reinterpret_cast<int*>(staging.counters.data()),
                                     .workspace = staging.workspace.data()},
                         .context = {.stream = device.stream()}}));
  RETURN_IF_ERROR(device.Download(staging.y, {args.y.data, args.y.bytes()}));
  if (args.bias.empty()) return absl::OkStatus();
  for (int64_t i = 0; i < int64_t{rows} * n; ++i)
    args.y.as<float>()[i] += args.bias.as<float>()[i % n];
  return absl::OkStatus();
}

void CudaLinearKernel::Run(const PackedWeight& w, const LinearArgs& args, ComputeContext&) const {
  if (const absl::Status status = TryRun(static_cast<const CudaLinear&>(w), args); !status.ok()) {
    Log(LogLevel::kError, "product on the GPU failed", {{"error", status.ToString()}});
    std::fill_n(args.y.as<float>(), args.y.shape.elements(), kNaN);
  }
}

absl::Status CudaLinearKernel::TryDecodeRow(const CudaLinear& w, int64_t row,
                                            std::span<float> out) const {
  CudaDevice& device = backend_.device;
  RETURN_IF_ERROR(device.Use());
  const size_t bytes = out.size() * sizeof(float);
  ASSIGN_OR_RETURN(Buffer expanded,
                   device.Allocate(static_cast<size_t>(w.weight().k) * sizeof(float)));
  const ExpandArgs args = {.w = w.weight(),
                           .out = expanded.data(),
                           .row = static_cast<int>(row),
                           .rows = 1,
                           .out_stride = w.weight().k,
                           .float_out = true};
  RETURN_IF_ERROR(device.Noted(
      CudaStatus(backend_.kernels.expand(args, {.stream = device.stream()}), "decode_row")));
  return device.Download(expanded, {reinterpret_cast<std::byte*>(out.data()), bytes});
}

void CudaLinearKernel::DecodeRow(const PackedWeight& w, int64_t row, std::span<float> out) const {
  const auto& linear = static_cast<const CudaLinear&>(w);
  if (const absl::Status status = TryDecodeRow(linear, row, out); !status.ok()) {
    Log(LogLevel::kError, "reading a row on the GPU failed", {{"error", status.ToString()}});
    std::fill(out.begin(), out.end(), kNaN);
  }
}

absl::StatusOr<QuantizedLinear> MakeCudaQuantizedLinear(const CudaLinearKernel& kernel,
                                                        const QuantizedTensor& w,
                                                        const Tensor& bias,
                                                        ActivationMode activation) {
  ASSIGN_OR_RETURN(std::unique_ptr<const CudaLinear> linear,
                   CudaLinear::Create(kernel.backend_, w, bias, activation));
  const LinearProblem problem = {
      .shape = w.shape, .scheme = w.scheme, .activation = activation, .device = DeviceKind::kCuda};
  // The bias is the CudaLinear's: it lies on the device.
  return QuantizedLinear::Of(problem, kernel, std::move(linear), Tensor());
}

}  // namespace assay
