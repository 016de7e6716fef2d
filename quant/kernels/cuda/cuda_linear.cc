#include "quant/kernels/cuda/cuda_linear.h"

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/float16.h"

namespace assay {
namespace {

constexpr int64_t kMostOfADimension = int64_t{1} << 30;

absl::Status Refuse(const char* why) {
  return why == nullptr ? absl::OkStatus() : absl::UnimplementedError(why);
}

absl::StatusOr<Buffer> OnDevice(CudaDevice& device, std::span<const std::byte> bytes) {
  if (bytes.empty()) return Buffer();
  ASSIGN_OR_RETURN(Buffer buffer, device.Allocate(bytes.size()));
  RETURN_IF_ERROR(device.Upload(bytes, buffer));
  return buffer;
}
absl::StatusOr<Buffer> OnDevice(CudaDevice& device, const Tensor& tensor) {
  return OnDevice(device, {tensor.data<std::byte>(), tensor.bytes()});
}

int PaddedK(int64_t k) { return static_cast<int>((k + 31) / 32 * 32); }

// Rows of `from`, each longer by zeros.
std::vector<std::byte> PaddedRows(std::span<const std::byte> from, int64_t rows, size_t padded) {
  const size_t width = from.size() / static_cast<size_t>(rows);
  std::vector<std::byte> to(static_cast<size_t>(rows) * padded);
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row)
    std::copy_n(from.data() + row * width, width, to.data() + row * padded);
  return to;
}

// The codes; weights of 16 and 32 bit in T.
absl::StatusOr<Buffer> CodesOnDevice(CudaDevice& device, const QuantizedTensor& w, Half half) {
  const int64_t n = w.shape[0], k = w.shape[1];
  const size_t padded = static_cast<size_t>(PaddedK(k));
  const std::span<const std::byte> codes(w.codes.data<std::byte>(), w.codes.bytes());
  ASSIGN_OR_RETURN(const StoredWeight stored, StorageOf(*w.scheme, w.shape));
  const auto bits = static_cast<size_t>(StorageBits(stored.storage));
  if (bits < 16) {
    if (PaddedK(k) == k) return OnDevice(device, codes);
    return OnDevice(device, PaddedRows(codes, n, padded * bits / 8));
  }
  std::vector<float> values(static_cast<size_t>(n * k));
  RETURN_IF_ERROR(w.scheme->DecodeRows(w, 0, n, values));
  std::vector<uint16_t> rounded(values.size());
  std::transform(values.begin(), values.end(), rounded.begin(),
                 [&](float v) { return half == Half::kF16 ? F32ToF16(v) : F32ToBf16(v); });
  return OnDevice(device, PaddedRows(std::as_bytes(std::span(rounded)), n, 2 * padded));
}

}  // namespace

absl::StatusOr<StoredWeight> StorageOf(const QuantScheme& scheme, const Shape& shape) {
  const std::string_view name = scheme.name();
  StoredWeight w;
  const auto is = [&](const char* family) { return name.substr(0, name.find(':')) == family; };
  if (is("f32")) {
    w.storage = Storage::kF32;
  } else if (is("bf16")) {
    w.storage = Storage::kBf16;
  } else if (is("int4_group")) {
    w.storage = name.find("float") == name.npos ? Storage::kInt4Group : Storage::kInt4Float;
  } else if (is("int8_channel")) {
    w.storage = Storage::kInt8Channel;
  } else if (is("int8_group")) {
    w.storage = Storage::kInt8Group;
  } else if (is("fp8_e4m3")) {
    w.storage = Storage::kE4M3;
  } else if (name == "nf4") {
    w.storage = Storage::kNf4;
  } else {
    return absl::UnimplementedError(
        absl::StrCat("the CUDA backend has no products for scheme ", std::string(name)));
  }
  if (shape[0] > kMostOfADimension || shape[1] > kMostOfADimension)
    return absl::UnimplementedError("the CUDA backend counts in 30 bits: " + ToString(shape));
  w.n = static_cast<int>(shape[0]);
  w.k = static_cast<int>(shape[1]);
  const int64_t group = scheme.group(shape);
  w.group = group >= shape[1] ? 0 : static_cast<int>(group);
  w.scale_rows = static_cast<int>(scheme.scale_rows(shape));
  return w;
}

namespace {

absl::Status ActivationRefuses(Storage storage, ActivationMode activation) {
  switch (activation) {
    case ActivationMode::kA16:
      return absl::OkStatus();
    case ActivationMode::kFp8Token:
      if (storage == Storage::kE4M3) return absl::OkStatus();
      return absl::UnimplementedError("fp8_token is multiplied with fp8_e4m3");
    case ActivationMode::kFp8Block:
      if (storage == Storage::kE4M3 || storage == Storage::kInt4Group) return absl::OkStatus();
      return absl::UnimplementedError("fp8_block is multiplied with fp8_e4m3 and int4_group");
    default:
      return absl::UnimplementedError(
          absl::StrCat("the CUDA backend has no activation mode ", std::string(Name(activation))));
  }
}

}  // namespace

absl::Status CudaLinearRefuses(const QuantScheme& scheme, const Shape& shape,
                               ActivationMode activation, const CudaBackend& backend) {
  ASSIGN_OR_RETURN(StoredWeight w, StorageOf(scheme, shape));
  w.k = PaddedK(w.k);
  const int compute = backend.device.profile().compute;
  if (activation == ActivationMode::kA8Token) {
    if (w.storage != Storage::kInt8Channel)
      return absl::UnimplementedError("a8_token is multiplied with int8_channel");
    return Refuse(GemmS8Refuses(
        {.m = 1, .n = w.n, .k = w.k, .x_stride = w.k, .w_stride = w.k, .y_stride = w.n}));
  }
  RETURN_IF_ERROR(ActivationRefuses(w.storage, activation));
  if (StorageBits(w.storage) >= 16) {
    return Refuse(Gemm16Refuses({.m = 1,
                                 .n = w.n,
                                 .k = w.k,
                                 .x_stride = w.k,
                                 .w_stride = w.k,
                                 .y_stride = w.n,
                                 .t = backend.half},
                                compute));
  }
  RETURN_IF_ERROR(Refuse(SkinnyRefuses(
      {.w = w, .m = 1, .x_stride = w.k, .y_stride = w.n, .t = backend.half}, compute)));
  return Refuse(
      ExpandRefuses({.w = w, .rows = w.n, .out_stride = w.k, .t = backend.half}, compute));
}

absl::StatusOr<std::unique_ptr<const CudaLinear>> CudaLinear::Create(const CudaBackend& backend,
                                                                     const QuantizedTensor& w,
                                                                     const Tensor& bias,
                                                                     ActivationMode activation) {
  RETURN_IF_ERROR(CudaLinearRefuses(*w.scheme, w.shape, activation, backend));
  // A rotation of x, a low-rank branch, what was calibrated: kernels do without. What was folded
  // into other weights is noted here, and multiplied nowhere.
  for (const auto& [name, tensor] : w.extra) {
    if (absl::StartsWith(name, kFoldPrefix)) continue;
    return absl::UnimplementedError(
        absl::StrCat("the CUDA backend multiplies codes and scales alone, not: ", name));
  }
  std::unique_ptr<CudaLinear> linear(new CudaLinear(backend));
  ASSIGN_OR_RETURN(linear->weight_, StorageOf(*w.scheme, w.shape));
  linear->s8_ = activation == ActivationMode::kA8Token;
  linear->width_ = linear->weight_.k;
  linear->weight_.k = PaddedK(linear->width_);
  CudaDevice& device = backend.device;
  ASSIGN_OR_RETURN(linear->codes_, CodesOnDevice(device, w, backend.half));
  if (linear->IsPlain()) {
    linear->weight_.storage = backend.half == Half::kF16 ? Storage::kF16 : Storage::kBf16;
  } else {
    ASSIGN_OR_RETURN(linear->scales_, OnDevice(device, w.scales));
    ASSIGN_OR_RETURN(linear->zeros_, OnDevice(device, w.zeros));
  }
  ASSIGN_OR_RETURN(linear->bias_, OnDevice(device, bias));
  linear->Point();
  RETURN_IF_ERROR(linear->FindLtProducts(activation));
  return std::unique_ptr<const CudaLinear>(std::move(linear));
}

absl::StatusOr<std::unique_ptr<const CudaLinear>> CudaLinear::Adopt(const CudaBackend& backend,
                                                                    const LinearProblem& problem,
                                                                    Parts parts) {
  RETURN_IF_ERROR(CudaLinearRefuses(*problem.scheme, problem.shape, problem.activation, backend));
  std::unique_ptr<CudaLinear> linear(new CudaLinear(backend));
  StoredWeight& weight = linear->weight_;
  ASSIGN_OR_RETURN(weight, StorageOf(*problem.scheme, problem.shape));
  const size_t wanted = static_cast<size_t>(weight.n) * weight.k * StorageBits(weight.storage) / 8;
  if (linear->IsPlain() || PaddedK(weight.k) != weight.k || parts.codes.bytes() != wanted)
    return absl::InvalidArgumentError(
        absl::StrCat("a weight on a device has codes of 4 or 8 bits and k of 32s: scheme=",
                     std::string(problem.scheme->name()), " shape=", ToString(problem.shape),
                     " bytes=", parts.codes.bytes(), " expected=", wanted));
  linear->width_ = weight.k;
  linear->s8_ = problem.activation == ActivationMode::kA8Token;
  linear->codes_ = std::move(parts.codes);
  linear->scales_ = std::move(parts.scales);
  linear->zeros_ = std::move(parts.zeros);
  linear->Point();
  RETURN_IF_ERROR(linear->FindLtProducts(problem.activation));
  return std::unique_ptr<const CudaLinear>(std::move(linear));
}

void CudaLinear::Point() {
  weight_.codes = codes_.data();
  weight_.scales = scales_.data();
  weight_.zeros = zeros_.data();
  bytes_ = codes_.bytes() + scales_.bytes() + zeros_.bytes() + bias_.bytes();
}

RowForm CudaLinear::input(int rows) const {
  if (s8_) return RowForm::kS8;
  return lt_rows_ != nullptr && rows > kFewRows ? RowForm::kE4M3 : RowForm::kHalf;
}

size_t CudaLinear::expanded_bytes(int rows) const {
  if (s8_ || rows <= kFewRows) return 0;
  if (lt_rows_ != nullptr) return size_t{2} * kFewRows * static_cast<size_t>(weight_.k);
  if (lt_blocks_ != nullptr) return BlocksIn(rows).end;
  return IsPlain() ? 0 : size_t{2} * weight_.n * weight_.k;
}

size_t CudaLinear::padded_bytes(int rows) const {
  if (width_ == weight_.k) return 0;
  return static_cast<size_t>(rows) * weight_.k * (s8_ ? 1 : 2);
}

size_t CudaLinear::partial_floats(int rows) const {
  if (rows == 0 || s8_ || IsPlain()) return 0;
  return SkinnyWorkspaceFloats(std::min(rows, kFewRows), weight_.n, weight_.k);
}

size_t CudaLinear::counters(int rows) const {
  if (rows == 0 || s8_ || IsPlain()) return 0;
  return static_cast<size_t>(SkinnyCounters(std::min(rows, kFewRows), weight_.n));
}

size_t CudaLinear::workspace_bytes(int rows) const {
  size_t bytes = 0;
  for (const LtProduct* product : {lt_16_, lt_rows_, lt_blocks_}) {
    if (product != nullptr && rows > kFewRows) bytes = product->workspace_bytes(rows);
  }
  return bytes;
}

absl::Status CudaLinear::Done(int error, const char* op, int rows) const {
  if (error == 0) return absl::OkStatus();
  return backend_.device.Noted(
      CudaStatus(error, absl::StrCat(op, " rows=", rows, " n=", weight_.n, " k=", weight_.k)));
}

absl::Status CudaLinear::Run(const CudaLinearArgs& args) const {
  if (args.rows == 0) return absl::OkStatus();
  if (width_ == weight_.k) return RunPadded(args);
  const int element = input(args.rows) == RowForm::kHalf ? 2 : 1;
  const PadArgs pad = {.from = args.x,
                       .to = args.scratch.padded,
                       .rows = args.rows,
                       .width = width_ * element,
                       .padded = weight_.k * element};
  RETURN_IF_ERROR(Done(backend_.kernels.pad(pad, args.context), "pad", args.rows));
  CudaLinearArgs padded = args;
  padded.x = args.scratch.padded;
  return RunPadded(padded);
}

absl::Status CudaLinear::RunPadded(const CudaLinearArgs& args) const {
  if (s8_) return RunS8(args);
  if (args.rows <= kFewRows)
    return IsPlain() ? RunGemm16(args, codes_.data(), bias()) : RunSkinny(args, bias());
  if (lt_rows_ != nullptr) return RunFp8Rows(args);
  return lt_blocks_ != nullptr ? RunFp8Blocks(args) : RunExpanded(args);
}

absl::Status CudaLinear::RunSkinny(const CudaLinearArgs& args, const float* bias) const {
  const SkinnyArgs call = {.x = args.x,
                           .w = weight_,
                           .bias = bias,
                           .y = args.y,
                           .workspace = args.scratch.partial,
                           .counters = args.scratch.counters,
                           .m = args.rows,
                           .x_stride = weight_.k,
                           .y_stride = weight_.n,
                           .t = backend_.half,
                           .accumulate = args.accumulate};
  return Done(backend_.kernels.skinny(call, args.context), "skinny", args.rows);
}

absl::Status CudaLinear::RunExpanded(const CudaLinearArgs& args) const {
  const void* w = codes_.data();
  if (!IsPlain()) {
    const ExpandArgs expand = {.w = weight_,
                               .out = args.scratch.expanded,
                               .rows = weight_.n,
                               .out_stride = weight_.k,
                               .t = backend_.half};
    RETURN_IF_ERROR(Done(backend_.kernels.expand(expand, args.context), "expand", args.rows));
    w = args.scratch.expanded;
  }
  return lt_16_ != nullptr ? RunExpandedByLt(args, w) : RunGemm16(args, w, bias());
}

absl::Status CudaLinear::RunGemm16(const CudaLinearArgs& args, const void* w,
                                   const float* bias) const {
  const Gemm16Args call = {.x = args.x,
                           .w = w,
                           .bias = bias,
                           .y = args.y,
                           .m = args.rows,
                           .n = weight_.n,
                           .k = weight_.k,
                           .x_stride = weight_.k,
                           .w_stride = weight_.k,
                           .y_stride = weight_.n,
                           .t = backend_.half,
                           .accumulate = args.accumulate};
  return Done(backend_.kernels.gemm16(call, args.context), "gemm16", args.rows);
}

absl::Status CudaLinear::RunS8(const CudaLinearArgs& args) const {
  const GemmS8Args call = {.x = static_cast<const int8_t*>(args.x),
                           .x_scales = args.x_scales,
                           .w = static_cast<const int8_t*>(weight_.codes),
                           .w_scales = static_cast<const float*>(weight_.scales),
                           .bias = bias(),
                           .y = args.y,
                           .m = args.rows,
                           .n = weight_.n,
                           .k = weight_.k,
                           .x_stride = weight_.k,
                           .w_stride = weight_.k,
                           .y_stride = weight_.n,
                           .accumulate = args.accumulate};
  return Done(backend_.kernels.gemm_s8(call, args.context), "gemm_s8", args.rows);
}

}  // namespace assay
