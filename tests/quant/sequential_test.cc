// Sequential tests against numpy, and by simulation: how often they cry wolf and how soon they see.
#include "quant/sequential.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/golden.h"

namespace assay {
namespace {

using nlohmann::json;

const json& Golden() {
  static const json& golden = *new json(ReadGoldenJson("accuracy/sequential.json"));
  return golden;
}

// Both add up at most 300 numbers of size 1 in double, in another order.
constexpr double kTolerance = 1e-9;

TEST(SequentialTest, AgreesWithNumpy) {
  const double limit = Golden()["limit"];
  EProcess above(limit);
  MeanBand band(Golden()["alpha"]);
  ChangeDetector change(ChangeDetector::To::kAbove, limit * Golden()["margin"].get<double>());
  ChangeDetector back(ChangeDetector::To::kBelow, limit);
  size_t row = 0;
  const std::vector<double> x = Golden()["x"];
  for (size_t i = 0; i < x.size(); ++i) {
    above.Add(x[i]);
    back.Add(0.3 * x[i]);
    band.Add(x[i]);
    change.Add(x[i]);
    if (row == Golden()["at"].size() || Golden()["at"][row] != i) continue;
    EXPECT_NEAR(above.log_wealth(), Golden()["above"][row].get<double>(), kTolerance) << i;
    EXPECT_NEAR(back.log_evidence(), Golden()["back_of_0.3x"][row].get<double>(), kTolerance) << i;
    EXPECT_NEAR(change.log_evidence(), Golden()["change"][row].get<double>(), kTolerance) << i;
    EXPECT_NEAR(band.low(), Golden()["low"][row].get<double>(), kTolerance) << i;
    EXPECT_NEAR(band.high(), Golden()["high"][row].get<double>(), kTolerance) << i;
    ++row;
  }
  EXPECT_EQ(row, Golden()["at"].size());
}

constexpr double kLimit = 0.02;

// KL per request as in the simulation of the formulas' source: log-normal, sigma 1.5, clipped.
class Stream {
 public:
  explicit Stream(uint64_t seed) : random_(seed) {}
  double Next(double times) {
    const double z = normal_(random_);
    return std::min(1.0, times * kLimit * std::exp(1.5 * z - 1.125));
  }

 private:
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
};

DriftTest Fresh() { return DriftTest({.limit = kLimit}); }

// How many numbers until VIOLATED, after `clean` good ones; -1: not within `most`.
int UntilViolated(DriftTest& test, Stream& stream, double times, int most) {
  for (int i = 1; i <= most; ++i) {
    if (test.Add(stream.Next(times)) == DriftState::kViolated) return i;
  }
  return -1;
}

int MedianDelay(double times, int clean) {
  std::vector<int> delays;
  for (uint64_t run = 0; run < 101; ++run) {
    Stream stream(run + 1);
    DriftTest test = Fresh();
    if (UntilViolated(test, stream, 1, clean) >= 0) continue;  // a false alarm: counted elsewhere
    const int delay = UntilViolated(test, stream, times, 20000);
    delays.push_back(delay < 0 ? std::numeric_limits<int>::max() : delay);
  }
  std::sort(delays.begin(), delays.end());
  return delays[delays.size() / 2];
}

// What the source of the formulas found by simulation (medians), and a quarter more.
TEST(DriftTestSimulation, SeesDriftFromTheStartAsSoonAsTheSource) {
  EXPECT_LE(MedianDelay(1.5, 0), 386 * 1.25);
  EXPECT_LE(MedianDelay(2, 0), 166 * 1.25);
  EXPECT_LE(MedianDelay(3, 0), 81 * 1.25);
}

TEST(DriftTestSimulation, SeesAChangeAfterTenThousandGoodOnesAsSoonAsTheSource) {
  EXPECT_LE(MedianDelay(1.5, 10000), 1210 * 1.25);
  EXPECT_LE(MedianDelay(2, 10000), 370 * 1.25);
  EXPECT_LE(MedianDelay(3, 10000), 166 * 1.25);
}

// Clipping takes 1.14 % of the mean (the log-normal's tail above 1): made up for, so that the mean
// is at the limit.
constexpr double kAtLimit = 1.0115;
constexpr int kRuns = 400, kRequests = 20000;
// alpha = 0.01 of 400 runs is 4; a binomial count with that mean is above 11 once in 800 times.
constexpr int kMostFalse = 11;

TEST(DriftTestSimulation, FalseAlarmsStayBelowAlphaAtTheLimit) {
  int alarms = 0;
  for (uint64_t run = 0; run < kRuns; ++run) {
    Stream stream(1000 + run);
    DriftTest test = Fresh();
    alarms += UntilViolated(test, stream, kAtLimit, kRequests) >= 0 ? 1 : 0;
  }
  EXPECT_LE(alarms, kMostFalse);
}

// The simulation can tell: a z-test at the same level that is looked at after every number is
// above.
TEST(DriftTestSimulation, ARepeatedZTestWouldBeSeen) {
  int alarms = 0;
  for (uint64_t run = 0; run < kRuns; ++run) {
    Stream stream(1000 + run);
    double sum = 0, squares = 0;
    bool alarm = false;
    for (int n = 1; n <= kRequests && !alarm; ++n) {
      const double x = stream.Next(kAtLimit);
      sum += x;
      squares += x * x;
      const double mean = sum / n, variance = squares / n - mean * mean;
      alarm = n >= 30 && mean - kLimit > 2.326 * std::sqrt(variance / n);
    }
    alarms += alarm ? 1 : 0;
  }
  EXPECT_GT(alarms, kMostFalse);
}

TEST(DriftTestSimulation, TheBandHoldsTheMeanAtAllTimes) {
  int missed = 0;
  for (uint64_t run = 0; run < kRuns; ++run) {
    std::mt19937_64 random(run);
    std::bernoulli_distribution coin(0.1);
    MeanBand band(0.05);
    for (int n = 0; n < 3000; ++n) band.Add(coin(random) ? 1 : 0);
    missed += band.low() > 0.1 || band.high() < 0.1 ? 1 : 0;
    EXPECT_LT(band.high() - band.low(), 0.06);  // and says something: 8 standard errors
  }
  // 0.05 of 400 is 20, three standard deviations are 13.
  EXPECT_LE(missed, 33);
}

TEST(DriftTestTest, ComesBackOnlyOnEvidenceThatTheMeanIsBelowTheLimit) {
  Stream stream(5);
  DriftTest test = Fresh();
  ASSERT_GT(UntilViolated(test, stream, 3, 2000), 0);
  EXPECT_EQ(test.cause(), "mean");
  for (int i = 0; i < 2000; ++i) EXPECT_EQ(test.Add(stream.Next(3)), DriftState::kViolated);
  EXPECT_GT(test.band().low(), kLimit);
  int back = 0;
  for (int i = 1; i <= 5000 && test.state() == DriftState::kViolated; ++i) {
    test.Add(stream.Next(0.3));
    back = i;
  }
  EXPECT_EQ(test.state(), DriftState::kOk);
  EXPECT_EQ(test.cause(), "");
  EXPECT_GT(back, 20);         // a lucky streak is not enough
  test.Add(stream.Next(0.3));  // the tests begin anew
  EXPECT_LT(test.e_value(), 2);
  EXPECT_EQ(test.count(), 1);
}

// A verdict comes with the very number that takes the evidence over its threshold, and what is
// shown at that moment is what it rests on; the number after it starts anew.
TEST(DriftTestTest, VerdictsComeAtTheirThresholdsAndShowWhatTheyRestOn) {
  constexpr double kAlpha = 0.01, kNever = 1e200;
  DriftTest by_mean({.limit = kLimit, .alpha = kAlpha, .change_numbers = kNever});
  Stream stream(11);
  double before = 0;
  while (by_mean.Add(stream.Next(2.5)) != DriftState::kViolated) before = by_mean.e_value();
  EXPECT_LT(before, 1 / kAlpha);
  EXPECT_GE(by_mean.e_value(), 1 / kAlpha);
  EXPECT_EQ(by_mean.cause(), "mean");
  EXPECT_GT(by_mean.mean(), kLimit);
  EXPECT_GT(by_mean.count(), 10);
  EXPECT_LT(by_mean.band().high() - by_mean.band().low(), 1);
  by_mean.Add(0.5);
  EXPECT_EQ(by_mean.count(), 1);
  EXPECT_EQ(by_mean.mean(), 0.5);
  EXPECT_EQ(by_mean.band().low(), 0);  // one number says nothing
  EXPECT_TRUE(std::isinf(by_mean.standard_error()));

  constexpr double kNumbers = 10000;
  DriftTest by_change({.limit = kLimit, .alpha = 1e-200, .change_numbers = kNumbers});
  for (int i = 0; i < 3000; ++i) ASSERT_EQ(by_change.Add(stream.Next(0.3)), DriftState::kOk);
  int bad = 0;
  for (; by_change.state() != DriftState::kViolated; ++bad) {
    before = by_change.change_evidence();
    by_change.Add(stream.Next(5));
  }
  EXPECT_LT(before, kNumbers);
  EXPECT_GE(by_change.change_evidence(), kNumbers);
  EXPECT_EQ(by_change.cause(), "change");
  EXPECT_LT(by_change.mean(), kLimit);  // over all, while the latest are above
  EXPECT_GT(by_change.change().mean(), 2 * kLimit);
  EXPECT_LE(by_change.change().count(), bad + 20);
  for (before = 0; by_change.state() == DriftState::kViolated;) {
    before = by_change.change_evidence();
    by_change.Add(stream.Next(0.3));
  }
  EXPECT_LT(before, kNumbers);
  EXPECT_GE(by_change.change_evidence(), kNumbers);
}

// While VIOLATED the mean and its band are of the same numbers: one lies in the other.
TEST(DriftTestTest, TheMeanLiesInItsBand) {
  DriftTest test = Fresh();
  Stream stream(12);
  int outside = 0;
  for (const double times : {0.5, 8.0, 0.3, 6.0}) {
    for (int i = 0; i < 2000; ++i) {
      test.Add(stream.Next(times));
      outside += test.mean() < test.band().low() || test.mean() > test.band().high() ? 1 : 0;
    }
  }
  EXPECT_EQ(outside, 0);
}

TEST(DriftTestTest, WarnsBeforeItsVerdictAndTakesItBack) {
  DriftTest test = Fresh();
  Stream stream(7);
  bool warned = false;
  DriftState last = DriftState::kOk;
  for (int i = 0; i < 2000 && last != DriftState::kViolated; ++i) {
    last = test.Add(stream.Next(2));
    warned = warned || last == DriftState::kWarn;
  }
  EXPECT_TRUE(warned);
  EXPECT_EQ(last, DriftState::kViolated);

  DriftTest other = Fresh();
  while (other.state() == DriftState::kOk) other.Add(2.2 * kLimit);
  EXPECT_EQ(other.state(), DriftState::kWarn);
  EXPECT_FALSE(other.cause().empty());
  for (int i = 0; i < 500 && other.state() == DriftState::kWarn; ++i) other.Add(0.2 * kLimit);
  EXPECT_EQ(other.state(), DriftState::kOk);
}

TEST(DriftTestTest, NumbersOutsideTheirRangeAreBroughtIntoItAndNanIsTheWorst) {
  DriftTest test = Fresh();
  test.Add(-3);
  EXPECT_EQ(test.mean(), 0);
  test.Add(7);
  EXPECT_EQ(test.mean(), 0.5);
  test.Add(std::numeric_limits<double>::quiet_NaN());
  EXPECT_NEAR(test.mean(), 2.0 / 3, 1e-15);
  EXPECT_EQ(test.count(), 3);
}

TEST(DriftTestTest, AModelThatAnswersNonsenseIsSeenAtOnce) {
  DriftTest test = Fresh();
  int numbers = 0;
  while (test.Add(1) != DriftState::kViolated) ++numbers;
  EXPECT_LE(numbers, 10);
  EXPECT_GT(test.e_value(), 0);
  for (int i = 0; i < 10000; ++i) test.Add(1);
  EXPECT_TRUE(std::isfinite(test.e_value()) && std::isfinite(test.change_evidence()));
}

}  // namespace
}  // namespace assay
