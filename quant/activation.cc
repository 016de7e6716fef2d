#include "quant/activation.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/float8.h"
#include "quant/kernels/a8_token.h"

namespace assay {
namespace {

// Rounds half to even; exact for |v| < 2^22.
inline float Rint(float v) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (v + kMagic) - kMagic;
}

// absmax of a row with the columns of `skip` (ascending) left out; NaN or infinity if there is one.
float AbsMax(std::span<const float> x, std::span<const int32_t> skip) {
  uint32_t bits = 0;
  size_t begin = 0;
  const auto scan = [&](size_t end) {
    for (size_t i = begin; i < end; ++i)
      bits = std::max(bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
    begin = end + 1;
  };
  for (const int32_t column : skip) scan(static_cast<size_t>(column));
  scan(x.size());
  return std::bit_cast<float>(bits);
}

// Symmetric codes in [-max_code, max_code] for |x| up to `top`.
float Symmetric(std::span<const float> x, float top, float max_code, std::span<int16_t> codes) {
  if (!(top >= kA8Smallest) || std::isinf(top)) {
    std::fill(codes.begin(), codes.end(), int16_t{0});
    const bool broken = std::isnan(top) || std::isinf(top);
    return broken ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  }
  const float inverse = max_code / top;
  for (size_t i = 0; i < x.size(); ++i) {
    codes[i] = static_cast<int16_t>(Rint(std::clamp(x[i] * inverse, -max_code, max_code)));
  }
  return top / max_code;
}

float Static(const ActivationParams& params, std::span<const float> x, std::span<int16_t> codes) {
  const float inverse = 1.0f / params.scale;
  const auto low = static_cast<float>(-128 - params.zero);
  const auto high = static_cast<float>(127 - params.zero);
  bool broken = false;
  for (size_t i = 0; i < x.size(); ++i) {
    broken |= !(std::fabs(x[i]) <= FLT_MAX);
    // rint(v) + zero clamped to [-128, 127], zero subtracted. max first: NaN becomes `low`.
    codes[i] = static_cast<int16_t>(Rint(std::min(high, std::max(low, x[i] * inverse))));
  }
  return broken ? std::numeric_limits<float>::quiet_NaN() : params.scale;
}

// E4M3ToF32(F32ToE4M3(v)) for numbers, without the codes, so that loops over it vectorise.
inline float RoundToE4M3(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v), sign = bits & 0x80000000u;
  const float a = std::min(std::bit_cast<float>(bits & 0x7fffffffu), 448.0f);
  const uint32_t magnitude = std::bit_cast<uint32_t>(a);
  const uint32_t normal = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1)) & 0xfff00000u;
  // Below 2^-6 the f32 adder rounds at 2^-9: the ulp of numbers from 2^14.
  const uint32_t subnormal = std::bit_cast<uint32_t>((a + 0x1p14f) - 0x1p14f);
  return std::bit_cast<float>(sign | (magnitude < 0x3c800000u ? subnormal : normal));
}

// x in E4M3 codes with this scale, as the numbers that they stand for; broken: all NaN.
void RepresentFp8(std::span<const float> x, float inverse, float scale, std::span<float> out) {
  for (size_t i = 0; i < x.size(); ++i) out[i] = scale * RoundToE4M3(x[i] * inverse);
}

// The same with the scale of their own absmax.
void RepresentFp8(std::span<const float> x, std::span<float> out) {
  constexpr float kMaxE4M3 = 448.0f;
  const float absmax = AbsMax(x, {});
  if (!(absmax >= kA8Smallest) || std::isinf(absmax)) {
    const bool broken = std::isnan(absmax) || std::isinf(absmax);
    std::fill(out.begin(), out.end(), broken ? std::numeric_limits<float>::quiet_NaN() : 0.0f);
    return;
  }
  RepresentFp8(x, kMaxE4M3 / absmax, absmax / kMaxE4M3, out);
}

void RepresentFp8Row(ActivationMode mode, const ActivationParams& params, std::span<const float> x,
                     std::span<float> out) {
  const float absmax = AbsMax(x, {});
  if (std::isnan(absmax) || std::isinf(absmax)) {
    std::fill(out.begin(), out.end(), std::numeric_limits<float>::quiet_NaN());
  } else if (mode == ActivationMode::kFp8Tensor) {
    RepresentFp8(x, 1.0f / params.scale, params.scale, out);
  } else if (mode == ActivationMode::kFp8Token) {
    RepresentFp8(x, out);
  } else {
    constexpr auto kBlock = static_cast<size_t>(kFp8BlockInputs);
    for (size_t begin = 0; begin < x.size(); begin += kBlock) {
      const size_t size = std::min(kBlock, x.size() - begin);
      RepresentFp8(x.subspan(begin, size), out.subspan(begin, size));
    }
  }
}

absl::Status Bad(std::string_view tensor, ActivationMode mode, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(Name(mode)), " needs ",
                                                 std::string(tensor), ": ", std::string(what)));
}

const Tensor* Find(const QuantizedTensor& w, std::string_view name) {
  const auto found = w.extra.find(name);
  return found == w.extra.end() || found->second.empty() ? nullptr : &found->second;
}

absl::StatusOr<float> ReadScalar(const QuantizedTensor& w, ActivationMode mode,
                                 std::string_view name) {
  const Tensor* tensor = Find(w, name);
  if (tensor == nullptr) return Bad(name, mode, "absent; was the model calibrated?");
  if (tensor->shape() != Shape{1} ||
      (tensor->dtype() != DType::kF32 && tensor->dtype() != DType::kI32)) {
    return Bad(name, mode,
               absl::StrCat("one number, not ", std::string(assay::Name(tensor->dtype())),
                            ToString(tensor->shape())));
  }
  return tensor->dtype() == DType::kF32 ? tensor->data<float>()[0]
                                        : static_cast<float>(tensor->data<int32_t>()[0]);
}

absl::Status ReadScale(const QuantizedTensor& w, ActivationMode mode, ActivationParams& params) {
  ASSIGN_OR_RETURN(params.scale, ReadScalar(w, mode, "x_scale"));
  if (!(params.scale >= kA8Smallest) || std::isinf(params.scale))
    return Bad("x_scale", mode, absl::StrCat("a positive number, not ", params.scale));
  return absl::OkStatus();
}

absl::Status ReadStatic(const QuantizedTensor& w, ActivationMode mode, ActivationParams& params) {
  RETURN_IF_ERROR(ReadScale(w, mode, params));
  ASSIGN_OR_RETURN(const float zero, ReadScalar(w, mode, "x_zero"));
  if (!(zero >= -128 && zero <= 127 && zero == std::trunc(zero)))
    return Bad("x_zero", mode, absl::StrCat("an integer in [-128, 127], not ", zero));
  params.zero = static_cast<int32_t>(zero);
  return absl::OkStatus();
}

absl::Status ReadOutliers(const QuantizedTensor& w, ActivationMode mode, ActivationParams& params) {
  const Tensor* tensor = Find(w, "x_outliers");
  if (tensor == nullptr) return absl::OkStatus();  // none: a tensor cannot be empty
  if (tensor->dtype() != DType::kI32 || tensor->shape().rank != 1)
    return Bad("x_outliers", mode, "columns as i32 [c]");
  const int32_t* columns = tensor->data<int32_t>();
  params.outliers.assign(columns, columns + tensor->shape()[0]);
  int64_t last = -1;
  for (const int32_t column : params.outliers) {
    if (column <= last || column >= w.shape[1]) {
      return Bad("x_outliers", mode,
                 absl::StrCat("ascending columns below ", w.shape[1], ", not ", column));
    }
    last = column;
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status Put(QuantizedTensor& w, const char* name, DType dtype, std::span<const T> values) {
  ASSIGN_OR_RETURN(Tensor tensor,
                   Tensor::Create(CpuDevice(), {static_cast<int64_t>(values.size())}, dtype));
  std::copy(values.begin(), values.end(), tensor.data<T>());
  w.extra[name] = std::move(tensor);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ActivationParams> ReadActivationParams(const QuantizedTensor& w,
                                                      ActivationMode mode) {
  ActivationParams params;
  switch (mode) {
    case ActivationMode::kA16:
    case ActivationMode::kA8Token:
    case ActivationMode::kFp8Token:
    case ActivationMode::kFp8Block:
      break;
    case ActivationMode::kFp8Tensor:
      RETURN_IF_ERROR(ReadScale(w, mode, params));
      break;
    case ActivationMode::kA8Tensor:
    case ActivationMode::kA8Mix:
      RETURN_IF_ERROR(ReadStatic(w, mode, params));
      break;
    case ActivationMode::kInt8Outlier:
      RETURN_IF_ERROR(ReadOutliers(w, mode, params));
      break;
    case ActivationMode::kA4Token:
      if (Find(w, "x_clip") == nullptr) break;
      ASSIGN_OR_RETURN(params.clip, ReadScalar(w, mode, "x_clip"));
      if (!(params.clip > 0 && params.clip <= 1))
        return Bad("x_clip", mode, absl::StrCat("a part in (0, 1], not ", params.clip));
      break;
  }
  return params;
}

absl::Status WriteActivationParams(const ActivationParams& params, ActivationMode mode,
                                   QuantizedTensor& w) {
  const bool integers = mode == ActivationMode::kA8Tensor || mode == ActivationMode::kA8Mix;
  if (integers || mode == ActivationMode::kFp8Tensor)
    RETURN_IF_ERROR(Put(w, "x_scale", DType::kF32, std::span(&params.scale, 1)));
  if (integers) RETURN_IF_ERROR(Put(w, "x_zero", DType::kI32, std::span(&params.zero, 1)));
  if (mode == ActivationMode::kInt8Outlier && !params.outliers.empty())
    RETURN_IF_ERROR(Put(w, "x_outliers", DType::kI32, std::span<const int32_t>(params.outliers)));
  if (mode == ActivationMode::kA4Token)
    RETURN_IF_ERROR(Put(w, "x_clip", DType::kF32, std::span(&params.clip, 1)));
  return absl::OkStatus();
}

std::optional<StaticRange> StaticRangeOf(ActivationMode mode, const ActivationParams& params) {
  switch (mode) {
    case ActivationMode::kA8Tensor:
    case ActivationMode::kA8Mix: {
      // What still rounds to the first and the last code.
      const auto zero = static_cast<float>(params.zero);
      return StaticRange{(-128.5f - zero) * params.scale, (127.5f - zero) * params.scale};
    }
    case ActivationMode::kFp8Tensor:
      return StaticRange{-448.0f * params.scale, 448.0f * params.scale};
    default:
      return std::nullopt;
  }
}

float QuantizeRow(ActivationMode mode, const ActivationParams& params, RowPhase phase,
                  std::span<const float> x, std::span<int16_t> codes) {
  if (mode == ActivationMode::kA8Tensor || (mode == ActivationMode::kA8Mix && phase.decode))
    return Static(params, x, codes);
  if (mode == ActivationMode::kA4Token) {
    const float absmax = AbsMax(x, {});
    return Symmetric(x, params.clip * absmax, 7, codes);
  }
  const float scale = Symmetric(x, AbsMax(x, params.outliers), kA8MaxCode, codes);
  for (const int32_t column : params.outliers) codes[column] = 0;
  return scale;
}

void RepresentRow(ActivationMode mode, const ActivationParams& params, RowPhase phase,
                  std::span<const float> x, std::span<int16_t> codes, std::span<float> out) {
  if (!HasCodes(mode)) {
    std::copy(x.begin(), x.end(), out.begin());
    return;
  }
  if (HasFp8Codes(mode)) return RepresentFp8Row(mode, params, x, out);
  const float scale = QuantizeRow(mode, params, phase, x, codes);
  for (size_t i = 0; i < x.size(); ++i) out[i] = scale * static_cast<float>(codes[i]);
  for (const int32_t column : params.outliers) out[column] = x[column];
}

}  // namespace assay
