#include "quant/accuracy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace assay {
namespace {

constexpr size_t kLanes = 8;  // independent sums, so that the compiler can use vector registers
using Lanes = std::array<double, kLanes>;

// exp(x) for x in [-700, 0], below that exp(-700): x = n ln 2 + r with |r| <= ln 2 / 2, Taylor
// series of exp(r) to r^11. Relative error below 1e-14. No branch and no call: the vocabulary of a
// model is 1e5 wide, and libm takes five times as long.
inline double ExpOfNegative(double x) {
  constexpr double kMagic = 0x1.8p52;  // adding it rounds to an integer in the low bits
  constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
  const double clamped = x < -700.0 ? -700.0 : x;
  const double shifted = clamped * 1.4426950408889634 + kMagic;
  const double n = shifted - kMagic;
  const double r = (clamped - n * kLn2High) - n * kLn2Low;
  double p = 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  // The low bits of `shifted` are n: into the exponent with them.
  return std::bit_cast<double>(std::bit_cast<uint64_t>(p) +
                               (std::bit_cast<uint64_t>(shifted) << 52));
}

double Sum(const Lanes& lanes) {
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

struct Peak {
  float max = 0;
  bool finite = true;
};

Peak FindPeak(std::span<const float> logits) {
  std::array<float, kLanes> max, zero{};
  max.fill(-std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float value = logits[i + lane];
      max[lane] = value > max[lane] ? value : max[lane];
      zero[lane] += value * 0.0f;  // NaN from then on after a NaN or an infinity
    }
  }
  Peak peak{.max = max[0]};
  for (size_t lane = 0; lane < kLanes; ++lane) {
    peak.max = std::max(peak.max, max[lane]);
    peak.finite = peak.finite && zero[lane] == 0.0f;
  }
  for (; i < logits.size(); ++i) {
    peak.max = std::max(peak.max, logits[i]);
    peak.finite = peak.finite && std::isfinite(logits[i]);
  }
  return peak;
}

size_t IndexOf(std::span<const float> logits, float value) {
  return static_cast<size_t>(std::find(logits.begin(), logits.end(), value) - logits.begin());
}

// Sums over the vocabulary that KL is made of.
struct Moments {
  double z_reference = 0, z_candidate = 0;  // sums of exp(logit - max)
  double cross = 0;                         // sum of exp(x - max) (x - y)
};

// One block of lanes: separate loops over locals, which the compiler turns into vectors.
inline void AddBlock(const float* reference, const float* candidate, const Peak& p, const Peak& q,
                     Lanes& z_reference, Lanes& z_candidate, Lanes& cross) {
  Lanes x, y, weight, other;
  for (size_t i = 0; i < kLanes; ++i) x[i] = reference[i];
  for (size_t i = 0; i < kLanes; ++i) y[i] = candidate[i];
  const double max_p = p.max, max_q = q.max;
  for (size_t i = 0; i < kLanes; ++i) weight[i] = ExpOfNegative(x[i] - max_p);
  for (size_t i = 0; i < kLanes; ++i) other[i] = ExpOfNegative(y[i] - max_q);
  for (size_t i = 0; i < kLanes; ++i) z_reference[i] += weight[i];
  for (size_t i = 0; i < kLanes; ++i) z_candidate[i] += other[i];
  for (size_t i = 0; i < kLanes; ++i) cross[i] += weight[i] * (x[i] - y[i]);
}

Moments Accumulate(std::span<const float> reference, std::span<const float> candidate,
                   const Peak& p, const Peak& q) {
  Lanes z_reference{}, z_candidate{}, cross{};
  size_t i = 0;
  for (; i + kLanes <= reference.size(); i += kLanes) {
    AddBlock(&reference[i], &candidate[i], p, q, z_reference, z_candidate, cross);
  }
  Moments sums{Sum(z_reference), Sum(z_candidate), Sum(cross)};
  for (; i < reference.size(); ++i) {
    const double x = reference[i], y = candidate[i];
    const double weight = ExpOfNegative(x - static_cast<double>(p.max));
    sums.z_reference += weight;
    sums.z_candidate += ExpOfNegative(y - static_cast<double>(q.max));
    sums.cross += weight * (x - y);
  }
  return sums;
}

}  // namespace

PositionScore ScorePosition(std::span<const float> reference, std::span<const float> candidate,
                            int32_t next) {
  PositionScore score;
  const Peak p = FindPeak(reference), q = FindPeak(candidate);
  score.finite = p.finite && q.finite;
  if (!score.finite) return score;
  // KL = E_p[reference - candidate] - log Z_p + log Z_q, in one pass with two exponentials.
  const Moments sums = Accumulate(reference, candidate, p, q);
  const double log_z_p = p.max + std::log(sums.z_reference);
  const double log_z_q = q.max + std::log(sums.z_candidate);
  score.kl = std::max(sums.cross / sums.z_reference - log_z_p + log_z_q, 0.0);  // rounding
  score.nll_reference = log_z_p - static_cast<double>(reference[static_cast<size_t>(next)]);
  score.nll = log_z_q - static_cast<double>(candidate[static_cast<size_t>(next)]);
  score.same_top1 = IndexOf(reference, p.max) == IndexOf(candidate, q.max);
  return score;
}

double Cosine(std::span<const float> a, std::span<const float> b) {
  double dot = 0, norm_a = 0, norm_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = a[i], y = b[i];
    dot += x * y;
    norm_a += x * x;
    norm_b += y * y;
  }
  if (norm_a == 0 && norm_b == 0) return 1;
  if (norm_a == 0 || norm_b == 0) return 0;
  return dot / std::sqrt(norm_a * norm_b);
}

void SignalNoise::Add(std::span<const float> reference, std::span<const float> approximation) {
  Lanes signals{}, noises{};
  const auto add = [&](size_t i, size_t lane) {
    const double y = reference[i], error = y - static_cast<double>(approximation[i]);
    signals[lane] += y * y;
    noises[lane] += error * error;
  };
  size_t i = 0;
  for (; i + kLanes <= reference.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (; i < reference.size(); ++i) add(i, 0);
  signal += Sum(signals);
  noise += Sum(noises);
}

double SignalNoise::sqnr_db() const {
  constexpr double kLimit = 200;
  if (std::isnan(signal) || std::isnan(noise) || std::isinf(noise)) return -kLimit;
  if (noise == 0) return kLimit;
  if (signal == 0) return -kLimit;
  return std::clamp(10 * std::log10(signal / noise), -kLimit, kLimit);
}

}  // namespace assay
