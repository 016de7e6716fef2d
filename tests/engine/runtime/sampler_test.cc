#include "engine/runtime/sampler.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/support/golden.h"
#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Code = absl::StatusCode;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

SampledToken Sample(const std::vector<float>& logits, const SamplingParams& params,
                    int64_t position = 0, const TokenCounts& counts = {}) {
  static SamplerScratch scratch;  // reused on purpose
  auto sampled = SampleToken(
      {.logits = logits, .params = params, .counts = counts, .position = position}, scratch);
  EXPECT_OK(sampled);
  return *std::move(sampled);
}

// The definition of the filters, with a full sort, in double.
std::vector<double> Definition(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  const double max = logits[order[0]];
  std::vector<double> weight(logits.size());
  for (size_t i = 0; i < logits.size(); ++i)
    weight[i] = std::exp((logits[i] - max) / static_cast<double>(params.temperature));
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < order.size())
    order.resize(params.top_k);
  double total = 0, mass = 0;
  for (size_t i : order) total += weight[i];
  std::vector<double> probability(logits.size());
  double kept = 0;
  for (size_t i : order) {
    if (params.top_p < 1 && mass >= params.top_p * total) break;
    mass += weight[i];
    if (weight[i] < params.min_p) break;
    probability[i] = weight[i];
    kept += weight[i];
  }
  for (double& p : probability) p /= kept;
  return probability;
}

// What the sampler's filters keep, as probabilities.
std::vector<double> Filtered(const std::vector<float>& logits, const SamplingParams& params) {
  SamplerScratch scratch;
  const float max = std::ranges::max(logits);
  const Cut cut = FilterLogits(logits, max, params, scratch);
  std::vector<double> probability(logits.size());
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!cut.Keeps(logits[i], static_cast<int32_t>(i))) continue;
    probability[i] = std::exp((static_cast<double>(logits[i]) - max) / params.temperature);
    total += probability[i];
  }
  for (double& p : probability) p /= total;
  return probability;
}

double TotalVariation(const std::vector<double>& p, const std::vector<double>& q) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) sum += std::abs(p[i] - q[i]);
  return sum / 2;
}

TEST(SamplerTest, GreedyTakesTheLargestAndOfEqualsTheLowestId) {
  EXPECT_EQ(Sample({0, 3, 1}, {}).token, 1);
  EXPECT_EQ(Sample({-2, -1, -1, -5}, {}).token, 1);
  std::vector<float> flat(1000, 0.25f);
  EXPECT_EQ(Sample(flat, {}).token, 0);
  for (size_t at : {0u, 1u, 15u, 16u, 500u, 991u, 992u, 999u}) {
    std::vector<float> logits = flat;
    logits[at] = 0.5f;
    EXPECT_EQ(Sample(logits, {}).token, static_cast<int32_t>(at));
  }
}

TEST(SamplerTest, GreedyIgnoresMaskedTokens) {
  std::vector<float> logits(40, -kInfinity);
  logits[17] = -3;
  EXPECT_EQ(Sample(logits, {}).token, 17);
  EXPECT_EQ(Sample(logits, {}).logprob, 0);
}

TEST(SamplerTest, NanAndInfinityAreErrorsNotTokens) {
  SamplerScratch scratch;
  const SamplingParams greedy, sampled{.temperature = 1};
  for (const SamplingParams& params : {greedy, sampled}) {
    for (size_t at : {0u, 7u, 16u, 32u, 36u}) {
      std::vector<float> logits(37, 1.0f);
      logits[at] = std::nanf("");
      EXPECT_THAT(
          SampleToken({.logits = logits, .params = params, .counts = {}, .position = 12}, scratch),
          StatusIs(Code::kInternal, HasSubstr("position 12 have a NaN")));
      logits[at] = kInfinity;
      EXPECT_THAT(SampleToken({.logits = logits, .params = params, .counts = {}}, scratch),
                  StatusIs(Code::kInternal, HasSubstr("inf")));
    }
    const std::vector<float> nothing(37, -kInfinity);
    EXPECT_THAT(SampleToken({.logits = nothing, .params = params, .counts = {}}, scratch),
                StatusIs(Code::kInternal, HasSubstr("-inf")));
  }
}

TEST(SamplerTest, PenaltiesChangeTheGreedyChoice) {
  const std::vector<float> logits = {3.0f, 2.5f, -1.0f, 2.9f};
  TokenCounts counts;
  counts.Reset(std::vector<int32_t>{0}, 8);
  EXPECT_EQ(Sample(logits, {.repetition_penalty = 1.5f}, 0, counts).token, 3);
  EXPECT_EQ(Sample(logits, {.presence_penalty = 2.0f}, 0, counts).token, 0);  // prompt only
  counts.Add(0);
  counts.Add(3);
  counts.Add(3);
  EXPECT_EQ(Sample(logits, {.presence_penalty = 2.0f}, 0, counts).token, 1);
  EXPECT_EQ(Sample(logits, {.frequency_penalty = 0.2f}, 0, counts).token, 0);  // 2.8 against 2.5
  EXPECT_EQ(Sample(logits, {.frequency_penalty = 0.6f}, 0, counts).token, 1);
}

TEST(SamplerTest, CountsEachTokenOnce) {
  TokenCounts counts;
  counts.Reset(std::vector<int32_t>{5, 3, 5}, 4);
  counts.Add(4);
  counts.Add(5);
  counts.Add(4);
  std::vector<std::pair<int32_t, int32_t>> entries;
  for (const auto& e : counts.entries()) entries.emplace_back(e.token, e.generated);
  EXPECT_THAT(entries, ElementsAre(std::pair(3, 0), std::pair(4, 2), std::pair(5, 1)));
}

TEST(SamplerTest, FiltersMatchTheIndependentImplementation) {
  const nlohmann::json golden = ReadGoldenJson("sampler/sampler.json");
  int index = 0;
  for (const nlohmann::json& c : golden["cases"]) {
    const nlohmann::json& p = c["params"];
    const SamplingParams params{.temperature = p["temperature"],
                                .top_k = p["top_k"],
                                .top_p = p["top_p"],
                                .min_p = p["min_p"],
                                .repetition_penalty = p["repetition_penalty"],
                                .presence_penalty = p["presence_penalty"],
                                .frequency_penalty = p["frequency_penalty"]};
    auto logits = c["logits"].get<std::vector<float>>();
    const auto generated = c["generated"].get<std::vector<int32_t>>();
    TokenCounts counts;
    counts.Reset(c["prompt"].get<std::vector<int32_t>>(), static_cast<int>(generated.size()));
    for (int32_t token : generated) counts.Add(token);
    ApplyPenalties(params, counts, logits);
    const std::vector<double> actual = Filtered(logits, params);
    const auto expected = c["probability"].get<std::vector<double>>();
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_EQ(actual[i] > 0, expected[i] > 0) << "case " << index << " token " << i;
      // Penalties round each logit (|x| < 32) to 2^-20 at most twice, divided by T >= 0.3:
      // a relative error of a probability below 2 * 2 * 2^-20 / 0.3 < 1.3e-5.
      EXPECT_NEAR(actual[i], expected[i], 1.3e-5 * expected[i] + 1e-9) << "case " << index;
    }
    ++index;
  }
  EXPECT_EQ(index, 60);
}

TEST(SamplerTest, TopPOverALargeVocabularyMatchesAFullSort) {
  for (const float spread : {0.1f, 1.0f, 3.0f}) {
    const std::vector<float> logits = RandomNormal(49157, 11, spread);
    for (const float temperature : {0.2f, 1.0f, 5.0f}) {
      for (const float top_p : {0.01f, 0.3f, 0.9f, 0.999f}) {
        const SamplingParams params{.temperature = temperature, .top_p = top_p};
        // Both stop where the mass reaches p; their sums differ by the error of the fast
        // exponential (3e-7) and of float division in the exponent (|x/T| < 100, half an ulp
        // 4e-6), so the kept sets differ by at most about that mass.
        EXPECT_LT(TotalVariation(Filtered(logits, params), Definition(logits, params)), 2e-5)
            << spread << " " << temperature << " " << top_p;
      }
    }
  }
}

TEST(SamplerTest, TheComparisonNoticesAWrongTopP) {
  const std::vector<float> logits = RandomNormal(49157, 11, 1.0f);
  EXPECT_GT(TotalVariation(Filtered(logits, {.temperature = 1, .top_p = 0.9f}),
                           Definition(logits, {.temperature = 1, .top_p = 0.901f})),
            2e-5);
}

TEST(SamplerTest, TopKKeepsTheLowestIdsAmongEquals) {
  const std::vector<float> logits = {1, 2, 1, 2, 1, 0};
  const auto kept = [&](int k) {
    std::vector<int> ids;
    const auto p = Filtered(logits, {.temperature = 1, .top_k = k});
    for (size_t i = 0; i < p.size(); ++i)
      if (p[i] > 0) ids.push_back(static_cast<int>(i));
    return ids;
  };
  EXPECT_THAT(kept(1), ElementsAre(1));
  EXPECT_THAT(kept(3), ElementsAre(0, 1, 3));
  EXPECT_THAT(kept(4), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(kept(6), ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST(SamplerTest, TopPOfAFlatDistributionKeepsTheLowestIds) {
  const std::vector<float> logits(40000, 1.5f);
  const auto p = Filtered(logits, {.temperature = 1, .top_p = 0.25f});
  EXPECT_EQ(std::ranges::count_if(p, [](double x) { return x > 0; }), 10000);
  EXPECT_GT(p[9999], 0);
}

TEST(SamplerTest, AtLeastOneTokenIsAlwaysKept) {
  const std::vector<float> logits = {0, 5, 4.999f, -3};
  EXPECT_EQ(Sample(logits, {.temperature = 1, .top_p = 1e-9f}).token, 1);
  EXPECT_EQ(Sample(logits, {.temperature = 100, .min_p = 1}).token, 1);
  EXPECT_EQ(Sample(logits, {.temperature = 1e-6f}).token, 1);
  EXPECT_EQ(Sample(logits, {.temperature = 1, .top_k = 1}).token, 1);
}

// P(chi^2_df > df + 2 sqrt(df t) + 2 t) <= e^-t (Laurent and Massart 2000, lemma 1). t = 16 leaves
// one in 9 million for a correct sampler; seeds are fixed, so the outcome does not vary.
double ChiSquareBound(int df) { return df + 2 * std::sqrt(df * 16.0) + 2 * 16.0; }

struct ChiSquare {
  double statistic = 0;
  int df = -1;
};
ChiSquare Compare(const std::vector<int>& counts, const std::vector<double>& probability, int n) {
  ChiSquare result;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = probability[i] * n;
    if (expected == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " should have been removed";
      continue;
    }
    result.statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    ++result.df;
  }
  return result;
}

std::vector<int> DrawMany(const std::vector<float>& logits, SamplingParams params, int n) {
  std::vector<int> counts(logits.size());
  params.seed = 42;
  params.logprobs = -1;
  for (int i = 0; i < n; ++i) ++counts[Sample(logits, params, i).token];
  return counts;
}

TEST(SamplerTest, DrawsFollowTheDistribution) {
  constexpr int kDraws = 60000;
  const std::vector<float> logits = RandomNormal(37, 5, 1.0f);  // probabilities above 1e-3
  for (const SamplingParams& params :
       {SamplingParams{.temperature = 1}, SamplingParams{.temperature = 0.7f, .top_k = 12},
        SamplingParams{.temperature = 1.3f, .top_p = 0.8f},
        SamplingParams{.temperature = 1, .min_p = 0.2f},
        SamplingParams{.temperature = 2, .top_k = 20, .top_p = 0.9f, .min_p = 0.1f}}) {
    const ChiSquare chi =
        Compare(DrawMany(logits, params, kDraws), Definition(logits, params), kDraws);
    EXPECT_LT(chi.statistic, ChiSquareBound(chi.df));
  }
}

TEST(SamplerTest, TheStatisticNoticesAWrongTemperature) {
  constexpr int kDraws = 60000;
  const std::vector<float> logits = RandomNormal(37, 5, 1.0f);
  const ChiSquare chi = Compare(DrawMany(logits, {.temperature = 1.05f}, kDraws),
                                Definition(logits, {.temperature = 1}), kDraws);
  EXPECT_GT(chi.statistic, ChiSquareBound(chi.df));
}

TEST(SamplerTest, DrawsReachEveryBlockOfALargeVocabulary) {
  constexpr int kDraws = 30000, kVocab = 3000, kCells = 30;
  const std::vector<float> logits(kVocab, -1.0f);
  const std::vector<int> counts = DrawMany(logits, {.temperature = 1}, kDraws);
  std::vector<int> cells(kCells);
  for (int i = 0; i < kVocab; ++i) cells[i * kCells / kVocab] += counts[i];
  const ChiSquare chi = Compare(cells, std::vector<double>(kCells, 1.0 / kCells), kDraws);
  EXPECT_LT(chi.statistic, ChiSquareBound(chi.df));
}

TEST(SamplerTest, UniformOverPositionsAndOverSeeds) {
  constexpr int kDraws = 64000, kCells = 64;
  for (const bool by_seed : {false, true}) {
    std::vector<int> cells(kCells);
    for (int i = 0; i < kDraws; ++i) {
      const double u = by_seed ? UniformAt(i, 3) : UniformAt(7, i);
      ASSERT_GE(u, 0);
      ASSERT_LT(u, 1);
      ++cells[static_cast<int>(u * kCells)];
    }
    const ChiSquare chi = Compare(cells, std::vector<double>(kCells, 1.0 / kCells), kDraws);
    EXPECT_LT(chi.statistic, ChiSquareBound(chi.df));
  }
}

TEST(SamplerTest, NeighbouringSeedsAreUncorrelated) {
  constexpr int kDraws = 40000;
  double sum = 0;
  for (int i = 0; i < kDraws; ++i) sum += (UniformAt(1, i) - 0.5) * (UniformAt(2, i) - 0.5);
  // Each product has mean 0 and standard deviation 1/12; six sigma of the sum.
  EXPECT_LT(std::abs(sum), 6 * std::sqrt(kDraws) / 12);
}

TEST(SamplerTest, MaskedTokensAreNeverDrawn) {
  std::vector<float> logits(300, 0.0f);
  for (int i = 0; i < 300; i += 2) logits[i] = -kInfinity;
  for (int i = 0; i < 2000; ++i) EXPECT_EQ(Sample(logits, {.temperature = 1}, i).token % 2, 1);
}

TEST(SamplerTest, LogprobsComeFromTheRawLogits) {
  const std::vector<float> logits = RandomNormal(4099, 9, 4.0f);
  double total = 0;
  for (float x : logits) total += std::exp(static_cast<double>(x));
  TokenCounts counts;
  counts.Reset(std::vector<int32_t>{1, 2, 3}, 4);
  const SamplingParams params{
      .temperature = 0.5f, .top_k = 40, .repetition_penalty = 1.3f, .logprobs = 5};
  const SampledToken sampled = Sample(logits, params, 3, counts);
  // Error of LogSumExp below 1e-5 (header), of the float result half an ulp of 20.
  EXPECT_NEAR(sampled.logprob, logits[sampled.token] - std::log(total), 1.2e-5);
  ASSERT_EQ(sampled.top.size(), 5u);
  std::vector<float> sorted = logits;
  std::ranges::sort(sorted, std::greater());
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(logits[sampled.top[i].first], sorted[i]);
    EXPECT_NEAR(sampled.top[i].second, sorted[i] - std::log(total), 1.2e-5);
  }
  EXPECT_EQ(Sample(logits, {.logprobs = -1}).logprob, 0);
}

TEST(SamplerTest, MoreAlternativesThanTokensGivesAllOfThem) {
  EXPECT_EQ(Sample({1, 2, 3}, {.logprobs = 20}).top.size(), 3u);
}

TEST(SamplerTest, LogSumExpIsAccurate) {
  for (const float spread : {0.01f, 1.0f, 10.0f, 40.0f}) {
    for (const int size : {1, 3, 4, 255, 256, 257, 49157}) {
      const std::vector<float> logits = RandomNormal(size, 21, spread);
      const float max = std::ranges::max(logits);
      double total = 0;
      for (float x : logits) total += std::exp(static_cast<double>(x) - max);
      EXPECT_NEAR(LogSumExp(logits, max), max + std::log(total), 1e-5) << spread << " " << size;
    }
  }
}

TEST(SamplingParamsTest, ValidatesEachParameterByName) {
  EXPECT_OK(Validate({}));
  EXPECT_OK(Validate({.temperature = 1, .top_k = 5, .top_p = 0.5f, .min_p = 0.5f}));
  const std::pair<SamplingParams, const char*> bad[] = {
      {{.temperature = -0.1f}, "temperature=-0.1 is outside [0, 100]"},
      {{.temperature = std::nanf("")}, "temperature=nan"},
      {{.top_k = -1}, "top_k=-1"},
      {{.top_p = 1.01f}, "top_p=1.01"},
      {{.top_p = 0}, "top_p=0"},
      {{.min_p = 2}, "min_p=2"},
      {{.repetition_penalty = 0}, "repetition_penalty=0"},
      {{.presence_penalty = kInfinity}, "presence_penalty=inf"},
      {{.frequency_penalty = -101}, "frequency_penalty=-101"},
      {{.max_tokens = 0}, "max_tokens=0"},
      {{.logprobs = 21}, "logprobs=21"},
      {{.stop = {"a", ""}}, "stop has an empty string"},
      {{.stop = {std::string(1025, 'x')}}, "1025"},
      {{.stop = std::vector<std::string>(17, "x")}, "stop has 17 entries"},
      {{.stop_token_ids = std::vector<int32_t>(257, 1)}, "stop_token_ids has 257"},
  };
  for (const auto& [params, message] : bad)
    EXPECT_THAT(Validate(params), StatusIs(Code::kInvalidArgument, HasSubstr(message)));
}

}  // namespace
}  // namespace assay
