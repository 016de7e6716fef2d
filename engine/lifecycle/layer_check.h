// Looks at the weights themselves: does what will be served decode to what the checkpoint says?
#pragma once
#include <string>

#include "quant/linear.h"

namespace assay {

class ThreadPool;

struct WeightCheck {
  double sqnr_db = 0;  // of the served weight against the checkpoint's
  std::string defect;  // empty, or what is wrong and in which row
};
// What the codes may differ in from those of rounding the original afresh, to nearest.
//   kNearest: nothing. A row is a defect when its largest error exceeds four times that of the
//     fresh rounding (two steps instead of half a step), a block of it (below) when its noise
//     exceeds eight times that of the fresh rounding: a zero point off by one is 13 times.
//   kMethod: rounding methods move single weights by many steps, but the grid of a block stays
//     within its range. A block of a row (a group of the scheme, at least 32 weights) is a defect
//     when its noise exceeds eight times that of the fresh rounding and 0.95 of the block's energy,
//     or half of it while its largest weight grew by half. Codes of another block have noise of
//     twice the energy, a doubled scale once and the largest weight doubled; clipping to half of
//     the range costs 0.25 at most.
//   kFeedback: GPTQ hands a column's error to others, which may cost a block of a layer whose input
//     has an outlier channel more than its energy (2.3 times was seen). Only blocks whose largest
//     weight grew count; wrong codes inside the range show in the layer's output on the calibration
//     inputs, which is looked at where the codes are made (FeedbackDefect, admission_stages.h).
// A layer of nothing but zeros is a defect of the checkpoint. Beside a low-rank branch whole rows
// are compared (eight times the noise of the fresh rounding): what the branch leaves over of a
// block of small weights may be more than these are. A block (kMethod: a whole row) of other than
// GPTQ's codes is also a defect when its mean error exceeds 0.7 steps (2.5 root mean square errors
// of the fresh rounding) and half of its own root mean square error: zero points off by one shift
// it by a whole step.
enum class CodesBy { kNearest, kMethod, kFeedback };
// `original`: the layer in f32; `served`: in any scheme, through its packed weight. A defect means
// that the stored codes or scales are not those of this checkpoint. Both have one shape. Uses all
// threads of the pool.
absl::StatusOr<WeightCheck> CheckServedWeight(const QuantizedLinear& original,
                                              const QuantizedLinear& served, CodesBy codes,
                                              ThreadPool& pool);

}  // namespace assay
