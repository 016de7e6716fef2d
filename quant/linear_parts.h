// What a linear may have besides its codes, marked by tensors in QuantizedTensor::extra, so that
// artifacts carry it:
//
//   "x_rotation"  s8 [k], signs of 1 or -1: the codes are of W Q, Q = D H / sqrt(k) with these
//       signs (quant/methods/hadamard.h). x is rotated before it is quantized: y = (x Q)(W Q)^T.
//   "low_rank_a"  bf16 [r, k] and "low_rank_b" bf16 [n, r]: the codes are of W - B A, and
//       y += (x A^T) B^T, x as it is before it is quantized, rotated where there is a rotation.
//   "key_mean" and "key_scale"  f32 [c], of a projection that gives keys of so many channels: a KV
//       cache with integer codes holds (key - mean) / scale, per channel of the rotated keys of all
//       heads; queries are multiplied by the scale, and the mean cancels in softmax.
//   "int8_scores"  s8 [1], 1: its attention multiplies queries by keys in INT8.
//
// Sources: QuaRot (arXiv:2404.00456), the online rotation of down_proj; SVDQuant
// (arXiv:2411.05007); SmoothAttention of QServe (arXiv:2405.04532); mean and INT8 products:
// SageAttention (arXiv:2410.02367). QuantizedLinear computes the first two around every kernel and
// hands out what is said of keys; the functions here make and read the tensors. Pure; any thread.
#pragma once
#include <optional>
#include <span>
#include <vector>

#include "quant/methods/hadamard.h"
#include "quant/scheme.h"

namespace assay {

// Absent: nullopt. InvalidArgument: not signs [k]; Unimplemented: no Hadamard matrix of order k.
absl::StatusOr<std::optional<HadamardRotation>> ReadInputRotation(const QuantizedTensor& w);
// Marks w, whose codes are of rotated rows (HadamardRotation::RotateRows). ResourceExhausted.
absl::Status WriteInputRotation(const HadamardRotation& rotation, QuantizedTensor& w);

struct LowRankBranch {
  Tensor a;  // bf16 [r, k]
  Tensor b;  // bf16 [n, r]
};
// Rounds left [n, r] and right [r, k] (quant/methods/low_rank.h) to bf16. ResourceExhausted.
absl::StatusOr<LowRankBranch> MakeLowRankBranch(std::span<const float> left,
                                                std::span<const float> right, int64_t rank);
// w [n, k] -= B A: what is left for the codes.
void SubtractLowRank(const LowRankBranch& branch, std::span<float> w);
// Both absent: nullopt. InvalidArgument: one is missing, or not bf16 of the shapes above.
absl::StatusOr<std::optional<LowRankBranch>> ReadLowRank(const QuantizedTensor& w);
void WriteLowRank(LowRankBranch branch, QuantizedTensor& w);

struct KeyParts {
  std::vector<float> mean, scale;  // [c] each, or empty: as they are
  bool int8_scores = false;
};
// None: nullopt. InvalidArgument: mean without scale, not f32 [c] of one length, a mean that is not
// finite, a scale that is not a positive number; int8_scores that is not 1.
absl::StatusOr<std::optional<KeyParts>> ReadKeyParts(const QuantizedTensor& w);
// ResourceExhausted.
absl::Status WriteKeyParts(const KeyParts& keys, QuantizedTensor& w);

}  // namespace assay
