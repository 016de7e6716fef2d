#include "quant/sequential.h"

#include <algorithm>
#include <cmath>
#include <limits>

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
  sum_ += x;
  low_ = std::max(0.0, std::min(mean - half, sum_ / n));
  high_ = std::min(1.0, std::max(mean + half, sum_ / n));
}

ChangeDetector::ChangeDetector(To direction, double limit)
    : sign_(direction == To::kAbove ? 1 : -1),
      limit_(limit),
      most_bet_(kMostBet / (direction == To::kAbove ? limit : 1 - limit)),
      moments_(limit, limit * limit) {}

void ChangeDetector::Add(double x) {
  const double shift = kExpectedShift * limit_;
  const double bet = std::min(shift / (moments_.variance() + shift * shift), most_bet_);
  if (evidence_ <= 0) Restart();
  evidence_ += std::log1p(bet * sign_ * (x - limit_));
  sum_ += x;
  ++count_;
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

void DriftTest::Begin() {
  decided_ = false;
  above_ = EProcess(options_.limit);
  band_ = MeanBand(options_.alpha);
  change_.Restart();
  back_.Restart();
  count_ = 0;
  sum_ = squares_ = 0;
}

DriftState DriftTest::Add(double x) {
  x = std::isnan(x) ? 1 : std::clamp(x, 0.0, 1.0);
  if (decided_) Begin();
  ++count_;
  sum_ += x;
  squares_ += x * x;
  band_.Add(x);
  change_.Add(x);
  above_.Add(x);
  if (state_ == DriftState::kViolated) back_.Add(x);
  Judge();
  return state_;
}

void DriftTest::Judge() {
  const double alarm = -std::log(options_.alpha), change_alarm = std::log(options_.change_numbers);
  if (state_ == DriftState::kViolated) {
    if (back_.log_evidence() < change_alarm) return;
    state_ = DriftState::kOk;
    cause_ = {};
    decided_ = true;
    return;
  }
  const double mean = above_.log_wealth() / alarm, change = change_.log_evidence() / change_alarm;
  const double most = std::max(mean, change);
  if (most >= kWarn) cause_ = mean >= change ? "mean" : "change";
  if (most >= 1) {
    state_ = DriftState::kViolated;
    decided_ = true;
  } else if (most >= kWarn) {
    state_ = DriftState::kWarn;
  } else if (state_ == DriftState::kWarn && most < kBack) {
    state_ = DriftState::kOk;
    cause_ = {};
  }
}

double DriftTest::standard_error() const {
  if (count_ < 2) return std::numeric_limits<double>::infinity();
  const auto n = static_cast<double>(count_);
  const double variance = std::max(0.0, (squares_ - sum_ * sum_ / n) / (n - 1));
  return std::sqrt(variance / n);
}

double DriftTest::e_value() const { return Exp(above_.log_wealth()); }

double DriftTest::change_evidence() const {
  // Just decided: of the state before.
  const ChangeDetector& watched = (state_ == DriftState::kViolated) != decided_ ? back_ : change_;
  return Exp(std::max(watched.log_evidence(), 0.0));
}

}  // namespace assay
