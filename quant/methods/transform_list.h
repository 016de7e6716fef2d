// Transforms as recipes spell them, "awq:grid=20" or "smooth_quant:alpha=0.7": the choice, not the
// work, which is in transforms.h and hadamard.h. Thread-safe.
//
//   smooth_quant  alpha=0.5: fixed; search: the best alpha per group
//   iter_smooth   alpha=0.9; within a layer from its output to its input: what is rescaled first
//                 counts as a consumer of the next group (msModelSlim's m4)
//   flex_smooth   the best alpha and beta per group
//   awq           grid=20 ratios; plain: without dividing by the weight's magnitude
//   hadamard      rotations that are fused into the weights; seed=0 of their signs
//
// groups=all|norm: what all but hadamard rescale: every group of the model, or
// those behind norms.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"

namespace assay {

enum class TransformKind { kSmoothQuant, kFlexSmooth, kAwq, kHadamard };

struct TransformSpec {
  TransformKind kind = TransformKind::kSmoothQuant;
  std::string name;  // canonical spelling
  double alpha = 0.5;
  bool search = false;
  bool from_output = false;  // order of the groups of a layer
  int64_t grid = 20;
  bool duo = true;
  bool norms_only = false;
  uint64_t seed = 0;
};

// NotFound lists the transforms; InvalidArgument names the option at fault.
absl::StatusOr<TransformSpec> FindTransform(std::string_view spelling);
std::span<const std::string_view> AllTransforms();

}  // namespace assay
