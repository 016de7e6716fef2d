#include "quant/linear_parts.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/float16.h"

namespace assay {
namespace {

constexpr std::string_view kRotation = "x_rotation", kLowRankA = "low_rank_a",
                           kLowRankB = "low_rank_b", kKeyMean = "key_mean", kKeyScale = "key_scale",
                           kInt8Scores = "int8_scores";

const Tensor* Find(const QuantizedTensor& w, std::string_view name) {
  const auto found = w.extra.find(name);
  return found == w.extra.end() || found->second.empty() ? nullptr : &found->second;
}

absl::Status Bad(std::string_view name, std::string_view expected, const Tensor& tensor) {
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(name), " must be ", std::string(expected), ", not ",
                   std::string(Name(tensor.dtype())), ToString(tensor.shape())));
}

absl::StatusOr<Tensor> Copy(const Tensor& from) {
  ASSIGN_OR_RETURN(Tensor to, Tensor::Create(CpuDevice(), from.shape(), from.dtype()));
  std::copy_n(from.data<std::byte>(), from.bytes(), to.data<std::byte>());
  return to;
}

absl::StatusOr<Tensor> ToBf16(std::span<const float> values, Shape shape) {
  ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(CpuDevice(), shape, DType::kBf16));
  std::transform(values.begin(), values.end(), tensor.data<uint16_t>(), F32ToBf16);
  return tensor;
}

}  // namespace

absl::StatusOr<std::optional<HadamardRotation>> ReadInputRotation(const QuantizedTensor& w) {
  const Tensor* signs = Find(w, kRotation);
  if (signs == nullptr) return std::nullopt;
  const int64_t k = w.shape[1];
  if (signs->dtype() != DType::kI8 || signs->shape() != Shape{k})
    return Bad(kRotation, absl::StrCat("signs i8 [", k, "]"), *signs);
  absl::StatusOr<HadamardRotation> rotation =
      HadamardRotation::Create(k, std::span(signs->data<int8_t>(), static_cast<size_t>(k)));
  if (rotation.ok()) return *std::move(rotation);
  return absl::Status(rotation.status().code(),
                      absl::StrCat(std::string(kRotation), ": ", rotation.status().message()));
}

absl::Status WriteInputRotation(const HadamardRotation& rotation, QuantizedTensor& w) {
  ASSIGN_OR_RETURN(Tensor signs, Tensor::Create(CpuDevice(), {rotation.n()}, DType::kI8));
  std::transform(rotation.signs().begin(), rotation.signs().end(), signs.data<int8_t>(),
                 [](float sign) { return static_cast<int8_t>(sign); });
  w.extra[std::string(kRotation)] = std::move(signs);
  return absl::OkStatus();
}

absl::StatusOr<LowRankBranch> MakeLowRankBranch(std::span<const float> left,
                                                std::span<const float> right, int64_t rank) {
  LowRankBranch branch;
  ASSIGN_OR_RETURN(branch.a, ToBf16(right, {rank, static_cast<int64_t>(right.size()) / rank}));
  ASSIGN_OR_RETURN(branch.b, ToBf16(left, {static_cast<int64_t>(left.size()) / rank, rank}));
  return branch;
}

void SubtractLowRank(const LowRankBranch& branch, std::span<float> w) {
  const int64_t rank = branch.a.shape()[0], k = branch.a.shape()[1];
  for (int64_t row = 0; row < branch.b.shape()[0]; ++row) {
    for (int64_t r = 0; r < rank; ++r) {
      const float weight = Bf16ToF32(branch.b.data<uint16_t>()[row * rank + r]);
      const uint16_t* a = branch.a.data<uint16_t>() + r * k;
      for (int64_t i = 0; i < k; ++i) w[row * k + i] -= weight * Bf16ToF32(a[i]);
    }
  }
}

absl::StatusOr<std::optional<LowRankBranch>> ReadLowRank(const QuantizedTensor& w) {
  const Tensor *a = Find(w, kLowRankA), *b = Find(w, kLowRankB);
  if (a == nullptr && b == nullptr) return std::nullopt;
  if (a == nullptr || b == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("low_rank_a and low_rank_b belong together; absent: ",
                     std::string(a == nullptr ? kLowRankA : kLowRankB)));
  }
  if (a->dtype() != DType::kBf16 || a->shape().rank != 2 || a->shape()[1] != w.shape[1])
    return Bad(kLowRankA, absl::StrCat("bf16 [r, ", w.shape[1], "]"), *a);
  if (b->dtype() != DType::kBf16 || b->shape() != Shape{w.shape[0], a->shape()[0]})
    return Bad(kLowRankB, absl::StrCat("bf16 [", w.shape[0], ", ", a->shape()[0], "]"), *b);
  LowRankBranch branch;
  ASSIGN_OR_RETURN(branch.a, Copy(*a));
  ASSIGN_OR_RETURN(branch.b, Copy(*b));
  return branch;
}

void WriteLowRank(LowRankBranch branch, QuantizedTensor& w) {
  w.extra[std::string(kLowRankA)] = std::move(branch.a);
  w.extra[std::string(kLowRankB)] = std::move(branch.b);
}

absl::StatusOr<std::optional<KeyParts>> ReadKeyParts(const QuantizedTensor& w) {
  const Tensor *mean = Find(w, kKeyMean), *scale = Find(w, kKeyScale);
  const Tensor* int8 = Find(w, kInt8Scores);
  if (mean == nullptr && scale == nullptr && int8 == nullptr) return std::nullopt;
  KeyParts keys;
  if (int8 != nullptr) {
    if (int8->dtype() != DType::kI8 || int8->shape() != Shape{1} || int8->data<int8_t>()[0] != 1)
      return Bad(kInt8Scores, "one 1 of i8", *int8);
    keys.int8_scores = true;
  }
  if (mean == nullptr && scale == nullptr) return keys;
  for (const auto& [name, tensor] : {std::pair{kKeyMean, mean}, std::pair{kKeyScale, scale}}) {
    if (tensor == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("key_mean and key_scale belong together; absent: ", std::string(name)));
    }
    if (tensor->dtype() != DType::kF32 || tensor->shape().rank != 1 ||
        tensor->shape() != mean->shape())
      return Bad(name, "f32 [c]", *tensor);
  }
  const auto size = static_cast<size_t>(mean->shape()[0]);
  keys.mean.assign(mean->data<float>(), mean->data<float>() + size);
  keys.scale.assign(scale->data<float>(), scale->data<float>() + size);
  for (size_t i = 0; i < size; ++i) {
    if (std::isfinite(keys.mean[i]) && std::isnormal(keys.scale[i]) && keys.scale[i] > 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("key_mean must be finite and key_scale positive: channel=", i,
                     " mean=", keys.mean[i], " scale=", keys.scale[i]));
  }
  return keys;
}

absl::Status WriteKeyParts(const KeyParts& keys, QuantizedTensor& w) {
  const auto put = [&w](std::string_view name, const std::vector<float>& values) -> absl::Status {
    const Shape shape = {static_cast<int64_t>(values.size())};
    ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(CpuDevice(), shape, DType::kF32));
    std::copy(values.begin(), values.end(), tensor.data<float>());
    w.extra[std::string(name)] = std::move(tensor);
    return absl::OkStatus();
  };
  if (!keys.scale.empty()) {
    RETURN_IF_ERROR(put(kKeyMean, keys.mean));
    RETURN_IF_ERROR(put(kKeyScale, keys.scale));
  }
  if (!keys.int8_scores) return absl::OkStatus();
  ASSIGN_OR_RETURN(Tensor int8, Tensor::Create(CpuDevice(), {1}, DType::kI8));
  int8.data<int8_t>()[0] = 1;
  w.extra[std::string(kInt8Scores)] = std::move(int8);
  return absl::OkStatus();
}

}  // namespace assay
