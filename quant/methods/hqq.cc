#include "quant/methods/hqq.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace assay {
namespace {

// sign(x) max(0, |x| - |x|^(norm - 1) / beta): the proximal step of the norm.
float Shrink(float x, const HqqOptions& options) {
  const float magnitude = std::fabs(x);
  if (magnitude == 0) return 0;
  const float kept = magnitude - std::pow(magnitude, options.norm - 1) / options.beta;
  return kept <= 0 ? 0 : std::copysign(kept, x);
}

}  // namespace

std::vector<float> HqqZeros(const HqqProblem& problem, std::vector<float> zeros,
                            const HqqOptions& options) {
  double least = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < options.iterations; ++i) {
    double error = 0;
    for (size_t g = 0; g < zeros.size(); ++g) {
      const float scale = problem.scales[g], zero = zeros[g];
      if (scale == 0) continue;
      double sum = 0;
      for (const float w : problem.w.subspan(g * problem.group, problem.group)) {
        const float q = std::clamp(std::nearbyint(w / scale + zero), 0.0f, problem.levels);
        const float difference = w - (q - zero) * scale;
        error += std::fabs(difference);
        sum += q - (w - Shrink(difference, options)) / scale;
      }
      zeros[g] = static_cast<float>(sum / static_cast<double>(problem.group));
    }
    if (!(error < least)) break;
    least = error;
  }
  return zeros;
}

}  // namespace assay
