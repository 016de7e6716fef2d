// "learned": rounding found by signed gradient descent on the layer's output error (AutoRound,
// Cheng et al., arXiv:2309.05516; reference/quantization 1.3).
//
//   Q = nearest(W + V step), V in [-0.5, 0.5]; a group's range is kept by a fraction that is
//   learned too, in [min_shrink, 1]. Straight-through gradients; theta -= lr sign(gradient), lr
//   falls linearly to 0; error tr((W - Q) H (W - Q)^T). The best V and fractions are kept row by
//   row (rows do not depend on each other), beginning with nearest rounding: never worse than it.
//
//   iterations=200  lr=1/iterations unless given; fewer run where the deadline comes first
//
// `step` is measured, not asked of the scheme: twice the largest distance to the grid in the group.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "quant/methods/output_error.h"
#include "quant/methods/roundings/roundings.h"
#include "quant/schemes/matrix_checks.h"

namespace assay {
namespace {

using Kind = OptionSpec::Kind;
constexpr std::array<OptionSpec, 3> kOptions = {{{"iterations", Kind::kNumber, 200, 1, 100000, {}},
                                                 {"lr", Kind::kNumber, 0, 0, 1, {}},
                                                 {"min_shrink", Kind::kNumber, 0.5, 0.1, 1, {}}}};

struct Settings {
  int64_t iterations;
  double rate;
  float min_shrink;
};

float Sign(float v) { return static_cast<float>((v > 0) - (v < 0)); }

class Learner {
 public:
  Learner(TensorView w, const QuantScheme& scheme, const OutputError& error, ThreadPool* pool)
      : scheme_(scheme),
        error_(error),
        pool_(pool),
        n_(w.shape[0]),
        k_(w.shape[1]),
        group_(scheme.group(w.shape)),
        groups_((k_ + group_ - 1) / group_),
        shape_(w.shape),
        w_(w.as<float>(), w.as<float>() + n_ * k_),
        v_(n_ * k_),
        shrink_(n_ * groups_, 1.0f),
        best_v_(v_),
        best_shrink_(shrink_),
        least_(n_, std::numeric_limits<double>::infinity()),
        step_(n_ * groups_),
        moved_(w_),
        decoded_(n_ * k_),
        gradient_(n_ * k_) {}

  absl::Status Run(const Settings& settings, const RoundingContext& context) {
    for (int64_t i = 0; i < settings.iterations; ++i) {
      RETURN_IF_ERROR(Forward());
      if (i == 0) MeasureSteps();
      KeepBest();
      if (context.Expired()) return absl::OkStatus();
      const double left = 1 - static_cast<double>(i) / static_cast<double>(settings.iterations);
      Step(static_cast<float>(settings.rate * left), settings.min_shrink);
    }
    RETURN_IF_ERROR(Forward());
    KeepBest();
    return absl::OkStatus();
  }

  absl::StatusOr<QuantizedTensor> Best() {
    v_ = best_v_;
    shrink_ = best_shrink_;
    return Encode();
  }

 private:
  TensorView View(const std::vector<float>& values) const {
    return {reinterpret_cast<const std::byte*>(values.data()), shape_, DType::kF32, &CpuDevice()};
  }
  int64_t GroupOf(int64_t row, int64_t j) const { return row * groups_ + j / group_; }

  absl::StatusOr<QuantizedTensor> Encode() {
    // The grid is of the weight itself; only what is rounded moves.
    ASSIGN_OR_RETURN(QuantizedTensor grid, scheme_.Fit(View(w_), {.shrink = shrink_}));
    for (int64_t row = 0; row < n_; ++row) {
      for (int64_t j = 0; j < k_; ++j) {
        const int64_t i = row * k_ + j, g = GroupOf(row, j);
        moved_[i] = w_[i] + v_[i] * step_[g] * shrink_[g];
      }
    }
    return scheme_.EncodeOn(View(moved_), std::move(grid));
  }

  // decoded_ = Q, gradient_ = (Q - W) H'.
  absl::Status Forward() {
    ASSIGN_OR_RETURN(const QuantizedTensor q, Encode());
    RETURN_IF_ERROR(scheme_.DecodeRows(q, 0, n_, std::span<float>(decoded_)));
    std::vector<float>& difference = moved_;
    for (int64_t i = 0; i < n_ * k_; ++i) difference[i] = decoded_[i] - w_[i];
    error_.HalfGradient(difference, std::span<float>(gradient_), pool_);
    return absl::OkStatus();
  }

  void MeasureSteps() {
    for (int64_t row = 0; row < n_; ++row) {
      for (int64_t j = 0; j < k_; ++j) {
        float& step = step_[GroupOf(row, j)];
        step = std::max(step, 2 * std::fabs(decoded_[row * k_ + j] - w_[row * k_ + j]));
      }
    }
  }

  void KeepBest() {
    for (int64_t row = 0; row < n_; ++row) {
      double error = 0;
      for (int64_t i = row * k_; i < (row + 1) * k_; ++i)
        error += static_cast<double>(decoded_[i] - w_[i]) * gradient_[i];
      if (!(error < least_[row])) continue;
      least_[row] = error;
      std::copy_n(v_.begin() + row * k_, k_, best_v_.begin() + row * k_);
      std::copy_n(shrink_.begin() + row * groups_, groups_, best_shrink_.begin() + row * groups_);
    }
  }

  void Step(float rate, float min_shrink) {
    for (int64_t row = 0; row < n_; ++row) {
      for (int64_t g = 0; g < groups_; ++g) {
        const int64_t begin = row * k_ + g * group_;
        const int64_t end = row * k_ + std::min((g + 1) * group_, k_);
        float& shrink = shrink_[row * groups_ + g];
        const float step = step_[row * groups_ + g] * shrink;
        double slope = 0;  // of the error by the fraction kept
        for (int64_t i = begin; i < end; ++i) {
          const float moved = w_[i] + v_[i] * step, q = decoded_[i];
          const bool clipped = std::fabs(moved - q) > 0.501f * step;
          // Clipped, Q is a multiple of the fraction and ignores V; else it follows the scale
          // through q - w (LSQ, reference 1.3).
          slope += static_cast<double>(gradient_[i]) * (clipped ? q : q - w_[i]);
          if (!clipped) v_[i] = std::clamp(v_[i] - rate * Sign(gradient_[i]), -0.5f, 0.5f);
        }
        shrink = std::clamp(shrink - rate * Sign(static_cast<float>(slope)), min_shrink, 1.0f);
      }
    }
  }

  const QuantScheme& scheme_;
  const OutputError& error_;
  ThreadPool* const pool_;
  const int64_t n_, k_, group_, groups_;
  const Shape shape_;
  const std::vector<float> w_;
  std::vector<float> v_, shrink_, best_v_, best_shrink_;
  std::vector<double> least_;                      // [n]
  std::vector<float> step_;                        // [n, groups]
  std::vector<float> moved_, decoded_, gradient_;  // [n, k]
};

class Learned final : public Rounding {
 public:
  explicit Learned(const MethodOptions& options)
      : name_(options.spelling()),
        settings_{
            static_cast<int64_t>(options.number("iterations")),
            options.number("lr") > 0 ? options.number("lr") : 1 / options.number("iterations"),
            static_cast<float>(options.number("min_shrink"))} {}
  std::string_view name() const override { return name_; }
  StatisticsNeed needs() const override { return StatisticsNeed::kHessian; }
  absl::StatusOr<QuantizedTensor> Quantize(TensorView w, const QuantScheme& scheme,
                                           const InputStatistics* input,
                                           const RoundingContext& context) const override {
    RETURN_IF_ERROR(CheckStatistics(name_, needs(), w.shape, input));
    RETURN_IF_ERROR(CheckEncodable(name_, w));
    RETURN_IF_ERROR(scheme.Accepts(w.shape));
    if (scheme.is_floating()) return scheme.Encode(w);
    ASSIGN_OR_RETURN(const OutputError error, OutputError::Create(*input));
    Learner learner(w, scheme, error, context.pool);
    RETURN_IF_ERROR(learner.Run(settings_, context));
    return learner.Best();
  }

 private:
  const std::string name_;
  const Settings settings_;
};

}  // namespace

const RoundingFamily kLearnedRounding = {
    "learned", [] { return std::span<const OptionSpec>(kOptions); },
    [](const MethodOptions& options) -> std::unique_ptr<const Rounding> {
      return std::make_unique<Learned>(options);
    }};

}  // namespace assay
