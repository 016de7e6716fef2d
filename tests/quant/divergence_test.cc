#include "quant/divergence.h"

#include <cmath>

#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using nlohmann::json;
using testing::HasSubstr;

const json& Golden() {
  static const json* const golden = new json(ReadGoldenJson("accuracy/divergence.json"));
  return *golden;
}

// The numbers that make_divergence.py draws.
class SplitMix {
 public:
  explicit SplitMix(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

// `swapped`: reference and candidate change places.
DivergenceMeter Measured(bool swapped = false) {
  const auto vocab = Golden()["vocab"].get<size_t>();
  SplitMix random(Golden()["seed"].get<uint64_t>());
  DivergenceMeter meter;
  std::vector<float> reference(vocab), candidate(vocab);
  for (const int length : Golden()["lengths"].get<std::vector<int>>()) {
    meter.BeginDocument();
    for (int i = 0; i < length; ++i) {
      for (size_t v = 0; v < vocab; ++v) {
        reference[v] = std::ldexp(static_cast<float>(random.Next() >> 40) - 0x1p23f, -20);
        candidate[v] =
            reference[v] + std::ldexp(static_cast<float>(random.Next() >> 45) - 0x1p18f, -20);
      }
      const auto next = static_cast<int32_t>(random.Next() % vocab);
      meter.Add(swapped ? ScorePosition(candidate, reference, next)
                        : ScorePosition(reference, candidate, next));
    }
  }
  return meter;
}

// Every figure beside its golden: (name, ours, golden).
template <typename Visit>
void ForEachFigure(const DivergenceFigures& f, const json& golden, Visit visit) {
  const auto both = [&](const char* name, const WithError& figure) {
    visit(std::string(name), figure.value, golden[name][0].get<double>());
    visit(std::string(name) + " error", figure.error, golden[name][1].get<double>());
  };
  both("perplexity", f.perplexity);
  both("perplexity_reference", f.perplexity_reference);
  both("log_perplexity_ratio", f.log_perplexity_ratio);
  both("perplexity_ratio", f.perplexity_ratio);
  both("perplexity_difference", f.perplexity_difference);
  both("mean_kl", f.mean_kl);
  both("mean_delta_p", f.mean_delta_p);
  both("rms_delta_p", f.rms_delta_p);
  both("same_top", f.same_top);
  visit("correlation", f.log_perplexity_correlation,
        golden["log_perplexity_correlation"].get<double>());
  for (size_t i = 0; i < kKlLevels.size(); ++i) {
    visit("kl quantile", f.kl_quantiles[i], golden["kl_quantiles"][i].get<double>());
  }
  for (size_t i = 0; i < kDeltaPLevels.size(); ++i) {
    visit("delta p quantile", f.delta_p_quantiles[i], golden["delta_p_quantiles"][i].get<double>());
  }
}

// Logits of order 8 in double: log-softmax is right to about 1e-14. Errors of means and the ratio's
// error come from differences of squares of order 1e2 (nll ~ 11): 1e2 * 429 * 2^-53 absolute in the
// sums, against variances of 1e-5: below 1e-8 relative. exp(11) scales the perplexities.
constexpr double kRelative = 1e-7;

TEST(DivergenceFiguresTest, EveryFigureOfLlamaCppAgreesWithItsDefinition) {
  const DivergenceFigures figures = Measured().Figures();
  EXPECT_EQ(figures.positions, 429);
  ForEachFigure(figures, Golden()["exact"],
                [](const std::string& name, double ours, double golden) {
                  EXPECT_NEAR(ours, golden, kRelative * std::abs(golden) + 1e-13) << name;
                });
}

TEST(DivergenceFiguresTest, TheSixteenBitFileOfLlamaCppAddsNoMoreThanItsRounding) {
  const DivergenceFigures figures = Measured().Figures();
  const json& stored = Golden()["llama_cpp"];
  // log p is off by at most half a step of range / 65535: 16 / 65535 / 2 = 1.2e-4. KL is off by
  // E_p[e (1 + log p - log q)], at most twice that; a mean of log ratios by once.
  constexpr double kHalfStep = 16.0 / 65535 / 2;
  EXPECT_NEAR(figures.mean_kl.value, stored["mean_kl"][0].get<double>(), 2 * kHalfStep);
  EXPECT_NEAR(figures.log_perplexity_ratio.value, stored["log_perplexity_ratio"][0].get<double>(),
              kHalfStep);
  EXPECT_NEAR(figures.mean_delta_p.value, stored["mean_delta_p"][0].get<double>(), kHalfStep);
  EXPECT_NE(figures.mean_kl.value, stored["mean_kl"][0].get<double>());
}

TEST(DivergenceFiguresTest, DetectsReferenceAndCandidateSwapped) {
  int different = 0;
  ForEachFigure(Measured(/*swapped=*/true).Figures(), Golden()["exact"],
                [&](const std::string&, double ours, double golden) {
                  different += std::abs(ours - golden) > kRelative * std::abs(golden) + 1e-13;
                });
  EXPECT_GT(different, 20);
}

TEST(DivergenceFiguresTest, TheTextHasLlamaCppsWords) {
  const std::string text = ToText(Measured().Figures());
  for (const char* words : {"Mean ln(PPL(Q)/PPL(base))", "Maximum KLD", "99.9%   KLD",
                            "0.1%    KLD", "Minimum KLD", "RMS     dp", "Same top p"}) {
    EXPECT_THAT(text, HasSubstr(words));
  }
}

TEST(DivergenceFiguresTest, NothingIsDividedByZero) {
  EXPECT_EQ(DivergenceMeter().Figures().positions, 0);
  DivergenceMeter one;
  one.Add({.kl = 0.5, .nll_reference = 1, .nll = 1, .same_top1 = true});
  const DivergenceFigures figures = one.Figures();
  EXPECT_EQ(figures.mean_kl.value, 0.5);
  EXPECT_EQ(figures.mean_kl.error, 0);
  EXPECT_EQ(figures.rms_delta_p.error, 0);
  EXPECT_EQ(figures.log_perplexity_correlation, 0);
  ForEachFigure(figures, Golden()["exact"], [](const std::string& name, double ours, double) {
    EXPECT_TRUE(std::isfinite(ours)) << name;
  });
}

void ExpectInterval(const Estimate& estimate, double low, double high) {
  EXPECT_NEAR(estimate.low, low, 1e-12);
  EXPECT_NEAR(estimate.high, high, 1e-12);
}

TEST(DivergenceMeterTest, IntervalsOverDocumentsAgreeWithNumpy) {
  const DivergenceMeter::Summary summary = Measured().Finish();
  const json& golden = Golden();
  EXPECT_EQ(summary.documents, 7);
  ExpectInterval(summary.mean_kl_bootstrap, golden["mean_kl_bootstrap"][0],
                 golden["mean_kl_bootstrap"][1]);
  ExpectInterval(summary.log_perplexity_ratio_bootstrap,
                 golden["log_perplexity_ratio_bootstrap"][0],
                 golden["log_perplexity_ratio_bootstrap"][1]);
  EXPECT_NEAR(summary.log_perplexity_ratio.mean, golden["log_perplexity_ratio"][0], 1e-12);
  ExpectInterval(summary.log_perplexity_ratio, golden["log_perplexity_ratio"][1],
                 golden["log_perplexity_ratio"][2]);
  EXPECT_EQ(summary.mean_kl.mean, summary.mean_kl_bootstrap.mean);
}

TEST(DivergenceMeterTest, AnotherSeedGivesAnotherBootstrap) {
  const DivergenceMeter meter = Measured();
  EXPECT_EQ(meter.Finish().mean_kl_bootstrap.low, meter.Finish().mean_kl_bootstrap.low);
  EXPECT_NE(meter.Finish().mean_kl_bootstrap.low, meter.Finish({.seed = 1}).mean_kl_bootstrap.low);
}

}  // namespace
}  // namespace assay
