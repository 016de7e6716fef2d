#include "quant/sequential.h"

#include <algorithm>
#include <cmath>

namespace assay {
namespace {

constexpr double kMostBet = 0.5;  // of the wealth that the worst number may cost
// How far from the limit, in parts of it, the mean after a change is expected: detection is fastest
// there.
constexpr double kExpectedShift = 0.5;
// WARN at this power of the evidence that VIOLATED asks for; back to OK below half of that.
constexpr double kWarn = 0.5, kBack = 0.25;

double Exp(double log_value) { return std::exp(std::min(log_value, 690.0)); }

}  // namespace

EProcess::EProcess(double limit) : limit_(limit), moments_(limit, limit * limit) {}

void EProcess::Add(double x) {
  const double rise = moments_.mean() - limit_;
  const double bet =
      rise <= 0 ? 0 : std::min(rise / (moments_.variance() + rise * rise), kMostBet / limit_);
  log_wealth_ += std::log1p(bet * (x - limit_));
  moments_.Add(x);
}

MeanBand::MeanBand(double alpha) : log_inverse_alpha_(std::log(2 / alpha)) {}

void MeanBand::Add(double x) {
  ++count_;
  const auto n = static_cast<double>(count_);
  const double lambda =
      std::min(0.5, std::sqrt(2 * log_inverse_alpha_ / (moments_.variance() * n * std::log1p(n))));
  const double error = x - moments_.mean();
  weights_ += lambda;
  weighted_ += lambda * x;
  spread_ += (-std::log1p(-lambda) - lambda) * error * error;
  moments_.Add(x);
  const double half = (log_inverse_alpha_ + spread_) / weights_, mean = weighted_ / weights_;
  low_ = std::max(low_, mean - half);
  high_ = std::min(high_, mean + half);
}

ChangeDetector::ChangeDetector(To direction, double limit)
    : sign_(direction == To::kAbove ? 1 : -1),
      limit_(limit),
      most_bet_(kMostBet / (direction == To::kAbove ? limit : 1 - limit)),
      moments_(limit, limit * limit) {}

void ChangeDetector::Add(double x) {
  const double shift = kExpectedShift * limit_;
  const double bet = std::min(shift / (moments_.variance() + shift * shift), most_bet_);
  evidence_ = std::max(evidence_, 0.0) + std::log1p(bet * sign_ * (x - limit_));
  moments_.Add(x);
}

std::string_view Name(DriftState state) {
  switch (state) {
    case DriftState::kOk:
      return "OK";
    case DriftState::kWarn:
      return "WARN";
    case DriftState::kViolated:
      return "VIOLATED";
  }
  return "UNKNOWN";
}

DriftTest::DriftTest(const Options& options)
    : options_(options),
      above_(options.limit),
      band_(options.alpha),
      change_(ChangeDetector::To::kAbove,
              std::min(options.limit * options.change_margin, (1 + options.limit) / 2)),
      back_(ChangeDetector::To::kBelow, options.limit) {}

void DriftTest::Restart(DriftState state) {
  state_ = state;
  above_ = EProcess(options_.limit);
  band_ = MeanBand(options_.alpha);
  change_.Restart();
  back_.Restart();
}

DriftState DriftTest::Add(double x) {
  x = std::isnan(x) ? 1 : std::clamp(x, 0.0, 1.0);
  ++count_;
  sum_ += x;
  band_.Add(x);
  change_.Add(x);
  const double alarm = -std::log(options_.alpha), change_alarm = std::log(options_.change_numbers);
  above_.Add(x);
  if (state_ == DriftState::kViolated) {
    back_.Add(x);
    if (back_.log_evidence() >= change_alarm) {
      Restart(DriftState::kOk);
      cause_ = {};
    }
    return state_;
  }
  const double mean = above_.log_wealth() / alarm, change = change_.log_evidence() / change_alarm;
  const double most = std::max(mean, change);
  if (most >= 1) {
    cause_ = mean >= change ? "mean" : "change";
    Restart(DriftState::kViolated);
  } else if (most >= kWarn) {
    state_ = DriftState::kWarn;
    cause_ = mean >= change ? "mean" : "change";
  } else if (state_ == DriftState::kWarn && most < kBack) {
    state_ = DriftState::kOk;
    cause_ = {};
  }
  return state_;
}

double DriftTest::e_value() const { return Exp(above_.log_wealth()); }

double DriftTest::change_evidence() const {
  const ChangeDetector& watched = state_ == DriftState::kViolated ? back_ : change_;
  return Exp(std::max(watched.log_evidence(), 0.0));
}

}  // namespace assay
