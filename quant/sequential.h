// Is the mean of a stream of numbers still below a limit? Tests that may be looked at after every
// number, for ever, and still keep their rate of false alarms ("anytime-valid"): repeated z-tests
// do not. Numbers lie in [0, 1]; nothing is asked of their distribution, nor that they be
// independent: the hypothesis is about the mean of each given those before it.
//
//   EProcess        betting against "mean <= limit": wealth K = prod (1 + lambda_i (x_i - limit)),
//                   lambda_i chosen from x_1 .. x_{i-1}. K >= 1/alpha happens with probability at
//                   most alpha if the hypothesis is true (Ville; Waudby-Smith and Ramdas 2020,
//                   arXiv:2010.09686, section 4; lambda: "approximate GRAPA", their appendix B.3).
//   MeanBand        confidence sequence for the mean: predictable plug-in empirical Bernstein (the
//                   same paper, theorem 2), as it is now: not the intersection with what it was
//                   before, which a mean that moves would leave, and widened to the plain mean.
//   ChangeDetector  e-CUSUM: g = max(g, 0) + ln(1 + lambda (x - limit)), alarm at ln A; likewise
//                   of a change to below a limit.
//                   Between false alarms lie at least A numbers on average. It forgets a long good
//                   past, which an e-process does not (Shin, Ramdas, Rinaldo 2022,
//                   arXiv:2203.03532).
//
// DriftTest makes a verdict with hysteresis of them. All sums in double. Not thread-safe; no clock.
#pragma once
#include <cstdint>
#include <string_view>

namespace assay {

// Mean and variance of what was seen so far, started with one made-up observation.
class RunningMoments {
 public:
  RunningMoments(double mean, double variance) : sum_(mean), squares_(variance) {}
  double mean() const { return sum_ / count_; }
  double variance() const { return squares_ / count_; }
  void Add(double x) {
    const double error = x - mean();
    squares_ += error * error;
    sum_ += x;
    ++count_;
  }

 private:
  double sum_, squares_, count_ = 1;
};

class EProcess {
 public:
  explicit EProcess(double limit);  // in (0, 1)
  void Add(double x);
  double log_wealth() const { return log_wealth_; }

 private:
  double limit_;
  RunningMoments moments_;
  double log_wealth_ = 0;
};

class MeanBand {
 public:
  explicit MeanBand(double alpha);
  void Add(double x);
  // The mean lies between them at all times together with probability at least 1 - alpha.
  double low() const { return low_; }
  double high() const { return high_; }

 private:
  double log_inverse_alpha_;  // of each side
  RunningMoments moments_{0.5, 0.25};
  int64_t count_ = 0;
  double weights_ = 0, weighted_ = 0, spread_ = 0, sum_ = 0;
  double low_ = 0, high_ = 1;
};

class ChangeDetector {
 public:
  enum class To { kAbove, kBelow };
  // limit in (0, 1): of the mean, margin included.
  ChangeDetector(To direction, double limit);
  void Add(double x);
  double log_evidence() const { return evidence_; }
  // Of the numbers that the evidence comes from: since it last was none.
  int64_t count() const { return count_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }
  void Restart() {
    evidence_ = sum_ = 0;
    count_ = 0;
  }

 private:
  double sign_, limit_;
  double most_bet_;  // keeps the evidence above half of what it was
  RunningMoments moments_;
  double evidence_ = 0, sum_ = 0;
  int64_t count_ = 0;
};

enum class DriftState { kOk, kWarn, kViolated };
std::string_view Name(DriftState state);  // "OK", "WARN", "VIOLATED"

// OK -> WARN -> VIOLATED as evidence grows that the mean is above the limit; WARN -> OK when it has
// gone; VIOLATED -> OK only on evidence, as strong as that of a change, that the mean is below the
// limit again. Becoming VIOLATED, and coming back, start the tests anew, with the number that
// follows: until then mean, band and evidence are those that the verdict rests on.
class DriftTest {
 public:
  struct Options {
    double limit = 0.05;  // of the mean, in (0, 1)
    // Chance of ever calling a stream whose mean is below the limit VIOLATED for its mean, between
    // two starts of the tests. (As a change: change_numbers.)
    double alpha = 0.01;
    double change_margin = 1.1;     // changes are looked for above margin * limit ...
    double change_numbers = 10000;  // ... with at least so many numbers between false alarms
  };
  explicit DriftTest(const Options& options);
  DriftState Add(double x);  // x outside [0, 1] is brought to its nearer end; NaN counts as 1
  DriftState state() const { return state_; }
  // Why it left OK: "mean" or "change"; empty while OK.
  std::string_view cause() const { return cause_; }
  // Since the tests started anew: how many numbers, their mean, the standard error of that
  // (infinite for fewer than 2), the band of the mean, and the wealth against "mean <= limit", at
  // most 1e300.
  int64_t count() const { return count_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }
  double standard_error() const;
  const MeanBand& band() const { return band_; }
  double e_value() const;
  // What the evidence of a change comes from: the latest numbers.
  const ChangeDetector& change() const { return change_; }
  // e-CUSUM, likewise: of a change to above the limit; while VIOLATED, of one to below it.
  double change_evidence() const;
  const Options& options() const { return options_; }

 private:
  void Begin();  // the tests, anew
  void Judge();
  bool decided_ = false;  // by the latest number: the next one begins anew

  Options options_;
  DriftState state_ = DriftState::kOk;
  std::string_view cause_;
  EProcess above_;
  MeanBand band_;
  ChangeDetector change_, back_;
  int64_t count_ = 0;
  double sum_ = 0, squares_ = 0;
};

}  // namespace assay
