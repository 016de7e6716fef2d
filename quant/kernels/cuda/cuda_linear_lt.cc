// Products of many rows by cuBLASLt. Where the library refuses some number of rows, the project's
// own kernels take them, in the memory that is planned for the others.
#include <algorithm>

#include "quant/kernels/cuda/cuda_linear.h"

namespace assay {
namespace {

size_t Rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

absl::Status CudaLinear::FindLtProducts(ActivationMode activation) {
  if (backend_.lt == nullptr || s8_) return absl::OkStatus();
  LtShape shape = {.n = weight_.n, .k = weight_.k, .operands = LtType::kE4M3};
  if (activation == ActivationMode::kFp8Token && weight_.scale_rows == 1 && weight_.group == 0) {
    shape.scales = LtScales::kRows;
    ASSIGN_OR_RETURN(lt_rows_, backend_.lt->Tune(shape));
  }
  if (activation == ActivationMode::kFp8Block && BlocksOfWeightRefuses(weight_) == nullptr) {
    shape.scales = LtScales::kRows128;
    ASSIGN_OR_RETURN(lt_blocks_, backend_.lt->Tune(shape));
  }
  if (lt_rows_ != nullptr || lt_blocks_ != nullptr) return absl::OkStatus();
  shape.scales = LtScales::kNone;
  shape.operands = backend_.half == Half::kF16 ? LtType::kF16 : LtType::kBf16;
  ASSIGN_OR_RETURN(lt_16_, backend_.lt->Tune(shape));
  return absl::OkStatus();
}

CudaLinearArgs CudaLinear::Part(const CudaLinearArgs& args, int first, int rows,
                                size_t row_bytes) const {
  CudaLinearArgs part = args;
  const auto skipped = static_cast<size_t>(first);
  part.x = static_cast<const std::byte*>(args.x) + skipped * row_bytes;
  if (args.x_scales != nullptr) part.x_scales = args.x_scales + first;
  part.y = args.y + skipped * static_cast<size_t>(weight_.n);
  part.rows = rows;
  return part;
}

// The library's own would be in 16 bit. What follows is added to it.
absl::Status CudaLinear::AddBias(CudaLinearArgs& args) const {
  if (bias() == nullptr) return absl::OkStatus();
  const BiasRowsArgs call = {.bias = bias(),
                             .y = args.y,
                             .rows = args.rows,
                             .n = weight_.n,
                             .accumulate = args.accumulate};
  args.accumulate = true;
  return Done(backend_.kernels.bias_rows(call, args.context), "bias_rows", args.rows);
}

absl::Status CudaLinear::RunExpandedByLt(const CudaLinearArgs& args, const void* w) const {
  CudaLinearArgs rest = args;
  RETURN_IF_ERROR(AddBias(rest));
  for (int row = 0; row < args.rows; row += lt_16_->most_rows()) {
    const int rows = std::min(lt_16_->most_rows(), args.rows - row);
    const CudaLinearArgs part = Part(rest, row, rows, size_t{2} * weight_.k);
    const absl::Status run = lt_16_->Run(rows, {.w = w,
                                                .x = part.x,
                                                .y = part.y,
                                                .accumulate = part.accumulate,
                                                .workspace = part.scratch.workspace,
                                                .stream = part.context.stream});
    if (!absl::IsUnimplemented(run)) {
      RETURN_IF_ERROR(backend_.device.Noted(run));
    } else {
      RETURN_IF_ERROR(RunGemm16(part, w, nullptr));
    }
  }
  return absl::OkStatus();
}

absl::Status CudaLinear::RunFp8Rows(const CudaLinearArgs& args) const {
  CudaLinearArgs rest = args;
  RETURN_IF_ERROR(AddBias(rest));
  for (int row = 0; row < args.rows; row += lt_rows_->most_rows()) {
    const int rows = std::min(lt_rows_->most_rows(), args.rows - row);
    const CudaLinearArgs part = Part(rest, row, rows, static_cast<size_t>(weight_.k));
    const absl::Status run =
        lt_rows_->Run(rows, {.w = weight_.codes,
                             .x = part.x,
                             .w_scales = static_cast<const float*>(weight_.scales),
                             .x_scales = part.x_scales,
                             .y = part.y,
                             .accumulate = part.accumulate,
                             .workspace = part.scratch.workspace,
                             .stream = part.context.stream});
    if (!absl::IsUnimplemented(run)) {
      RETURN_IF_ERROR(backend_.device.Noted(run));
      continue;
    }
    RETURN_IF_ERROR(RunSkinnyOfCodes(part));
  }
  return absl::OkStatus();
}

absl::Status CudaLinear::RunSkinnyOfCodes(const CudaLinearArgs& args) const {
  LaunchContext context = args.context;
  context.pdl =
      false;  // expand reads what it takes for a weight before the kernel before has ended
  for (int row = 0; row < args.rows; row += kFewRows) {
    CudaLinearArgs part =
        Part(args, row, std::min(kFewRows, args.rows - row), static_cast<size_t>(weight_.k));
    const StoredWeight x = {.storage = Storage::kE4M3,
                            .n = part.rows,
                            .k = weight_.k,
                            .codes = part.x,
                            .scales = part.x_scales};
    const ExpandArgs expand = {.w = x,
                               .out = args.scratch.expanded,
                               .rows = part.rows,
                               .out_stride = weight_.k,
                               .t = backend_.half};
    RETURN_IF_ERROR(Done(backend_.kernels.expand(expand, context), "expand x", part.rows));
    part.x = args.scratch.expanded;
    RETURN_IF_ERROR(RunSkinny(part, nullptr));
  }
  return absl::OkStatus();
}

// For calls of `rows`, which are cut into parts of most_rows().
CudaLinear::BlocksAt CudaLinear::BlocksIn(int rows) const {
  const auto n = static_cast<size_t>(weight_.n), k = static_cast<size_t>(weight_.k),
             m = static_cast<size_t>(std::min(rows, lt_blocks_->most_rows())),
             blocks = static_cast<size_t>(E4M3Blocks(weight_.k));
  BlocksAt at{};
  at.w_scales = weight_.storage == Storage::kE4M3 ? 0 : Rounded(n * k);
  at.x_codes = at.w_scales + Rounded(blocks * n * sizeof(float));
  at.x_scales = at.x_codes + Rounded(m * k);
  at.end = at.x_scales + Rounded(blocks * m * sizeof(float));
  return at;
}

absl::Status CudaLinear::RunFp8Blocks(const CudaLinearArgs& args) const {
  CudaLinearArgs rest = args;
  RETURN_IF_ERROR(AddBias(rest));
  const BlocksAt at = BlocksIn(args.rows);
  auto* const memory = static_cast<std::byte*>(args.scratch.expanded);
  const BlocksOfWeightArgs weight = {
      .w = weight_,
      .codes = reinterpret_cast<uint8_t*>(memory + at.w_codes),
      .scales = reinterpret_cast<float*>(memory + at.w_scales),
  };
  RETURN_IF_ERROR(
      Done(backend_.kernels.blocks_of_weight(weight, args.context), "blocks_of_weight", 0));
  for (int row = 0; row < args.rows; row += lt_blocks_->most_rows()) {
    const int rows = std::min(lt_blocks_->most_rows(), args.rows - row);
    RETURN_IF_ERROR(RunFp8BlocksPart(Part(rest, row, rows, size_t{2} * weight_.k), at));
  }
  return absl::OkStatus();
}

absl::Status CudaLinear::RunFp8BlocksPart(const CudaLinearArgs& args, const BlocksAt& at) const {
  auto* const memory = static_cast<std::byte*>(args.scratch.expanded);
  // The library wants rows of scales in multiples of 16 bytes: the last rows go with the few.
  const int rows = args.rows / 4 * 4;
  const QuantizeBlocksArgs quantize = {.x = args.x,
                                       .codes = reinterpret_cast<uint8_t*>(memory + at.x_codes),
                                       .scales = reinterpret_cast<float*>(memory + at.x_scales),
                                       .rows = rows,
                                       .k = weight_.k,
                                       .t = backend_.half};
  if (rows > 0) {
    RETURN_IF_ERROR(
        Done(backend_.kernels.quantize_blocks(quantize, args.context), "quantize_blocks", rows));
    const bool in_place = weight_.storage == Storage::kE4M3;
    const absl::Status run =
        lt_blocks_->Run(rows, {.w = in_place ? weight_.codes : memory + at.w_codes,
                               .x = quantize.codes,
                               .w_scales = reinterpret_cast<const float*>(memory + at.w_scales),
                               .x_scales = quantize.scales,
                               .y = args.y,
                               .accumulate = args.accumulate,
                               .workspace = args.scratch.workspace,
                               .stream = args.context.stream});
    if (absl::IsUnimplemented(run)) return RunSkinnyParts(args);
    RETURN_IF_ERROR(backend_.device.Noted(run));
  }
  if (rows == args.rows) return absl::OkStatus();
  return RunSkinnyParts(Part(args, rows, args.rows - rows, size_t{2} * weight_.k));
}

absl::Status CudaLinear::RunSkinnyParts(const CudaLinearArgs& args) const {
  for (int row = 0; row < args.rows; row += kFewRows) {
    const int rows = std::min(kFewRows, args.rows - row);
    RETURN_IF_ERROR(RunSkinny(Part(args, row, rows, size_t{2} * weight_.k), nullptr));
  }
  return absl::OkStatus();
}

}  // namespace assay
