// The residual stream of a pre-norm decoder, rotated: E Q, W diag(gain) Q and Q^T W compute the
// same as E, W and W, because RMS norms of gain 1 commute with orthogonal Q, and no channel of the
// stream then stands out. A RotatedCheckpoint applies Q on the way from the file, as
// engine/model/fold.h does with scales:
//
//   norms              gains move into the linears behind them, what is left is 1
//   readers            W diag(gain) Q       qkv, gate and up projections, a head of its own
//   writers            Q^T W, b Q           o and down projections
//   embedding          E Q
//   values and output  per head: H^T W_v, W_o H (H of order head_dim)
//
// A head that shares its table with the embedding cannot be rotated that way: the table would have
// to hold E Q and E diag(gain) Q at once. Such models keep table and final norm as they are, and
// the stream is rotated behind the embedding and back before the final norm while serving; the
// checkpoint then has a tensor more, kStreamRotation, that says so to the family's build().
//
// Sources: QuaRot (arXiv:2404.00456), SpinQuant (arXiv:2405.16406): R1 and R2. Pure; thread-safe
// once made.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/model.h"

namespace assay {

// [hidden] f32, the signs of Q (quant/methods/hadamard.h). Find() knows it, tensors() does not list
// it.
inline constexpr char kStreamRotation[] = "assay.stream_rotation";

// The checkpoint with its stream rotated by signs [hidden], each 1 or -1. `base` must outlive it.
// Rows of writers depend on all rows: read them whole. InvalidArgument: another number of signs,
// another number than 1 or -1; Unimplemented: an architecture without a stream between RMS norms
// (names it), or no Hadamard matrix of a size that it has; whatever reading the norms gives.
absl::StatusOr<std::unique_ptr<const Checkpoint>> RotateStream(const Checkpoint& base,
                                                               const ModelFamily& family,
                                                               const ModelSpec& spec,
                                                               std::span<const int8_t> signs);

}  // namespace assay
