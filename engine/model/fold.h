// Fold groups: where a model lets channels be rescaled between a producer and its consumers without
// changing its function. The transforms of quantization (SmoothQuant, AWQ, Flex Smooth) choose the
// scales; a FoldedCheckpoint applies them on the way from the file, so that reference, calibration
// and quantization all read the rescaled model through the usual interface.
//
//   x'[c] = x[c] / s[c],   W'[:, j] = W[:, j] * s[ChannelOf(j)]   for every consumer W of x
//
// Keys and queries meet in a dot product instead: k'[c] = k[c] / s[c], q'[j] = q[j] *
// s[ChannelOf(j)].
//
// Sources: SmoothQuant (Xiao et al. 2023), AWQ (Lin et al. 2023); groups norm-linear, v-o, up-down.
// Key-query: SmoothAttention (Lin et al. 2024, QServe), KVSmooth (msmodelslim).
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"

namespace assay {

struct FoldGroup {
  enum class Kind { kNormLinear, kValueOutput, kUpDown, kKeyQuery };
  Kind kind = Kind::kNormLinear;
  std::string slot;  // the linear slot whose input is rescaled: its statistics count
  // Tensors whose rows (elements, of a vector) are divided, each [channels, ...].
  std::vector<std::string> producers;
  // All weights that read the channels, each [n, columns]: leaving one out would change the model.
  std::vector<std::string> consumers;
  // Key-query: instead of consumers, tensors whose rows (elements) j are multiplied.
  std::vector<std::string> partners;
  int64_t channels = 0;
  // Grouped-query attention: `heads_per_channel` query heads of `head_dim` columns each read the
  // same value head. 0: column j reads channel j.
  int64_t head_dim = 0, heads_per_channel = 1;

  // Rotary positions mix channels i and i + head_dim / 2 of a head: their scales must be equal.
  bool rotary_pairs = false;

  int64_t columns() const { return channels * heads_per_channel; }
  int64_t ChannelOf(int64_t column) const {
    if (head_dim == 0) return column;
    return column / (head_dim * heads_per_channel) * head_dim + column % head_dim;
  }
};
std::string_view Name(FoldGroup::Kind kind);  // "norm_linear", "value_output", ...

// A group and its scales [channels], all finite and positive.
struct Fold {
  FoldGroup group;
  std::vector<float> scales;
};

// The checkpoint with `folds` applied, several to one tensor if they overlap. `base` must outlive
// it. InvalidArgument: a scale that is not finite and positive, of another number, or that differs
// within a rotary pair (names the slot); NotFound: a tensor that the checkpoint lacks.
absl::StatusOr<std::unique_ptr<const Checkpoint>> ApplyFolds(const Checkpoint& base,
                                                             const std::vector<Fold>& folds);

}  // namespace assay
