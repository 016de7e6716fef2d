// What candidates decide is what the row decides, bit for bit; and they decide what chats ask for.
#include "engine/runtime/sampler_candidates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What a device finds of a row (engine/ops/cuda/top_candidates.h).
struct Candidates {
  std::vector<RankedLogit> ranked;
  LogitSums sums;
};

Candidates CandidatesOf(const std::vector<float>& logits, size_t count,
                        const SamplingParams& params) {
  Candidates c;
  for (const float logit : logits)
    c.ranked.push_back({logit, static_cast<int32_t>(c.ranked.size())});
  count = std::min(count, c.ranked.size());
  std::partial_sort(c.ranked.begin(), c.ranked.begin() + static_cast<ptrdiff_t>(count),
                    c.ranked.end(), [](const RankedLogit& a, const RankedLogit& b) {
                      return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
                    });
  c.ranked.resize(count);
  const float max = c.ranked.front().logit;
  c.sums.plain = TotalWeight(logits, max, 1.0f);
  c.sums.scaled = TotalWeight(logits, max, params.temperature > 0 ? params.temperature : 1.0f);
  return c;
}

struct Case {
  std::vector<float> logits;
  SamplingParams params;
  TokenCounts counts;
  int64_t position = 0;
};

std::optional<SampledToken> FromCandidates(const Case& c, const Candidates& candidates) {
  static SamplerScratch scratch;  // reused on purpose
  return SampleCandidates({.ranked = candidates.ranked,
                           .vocab = static_cast<int>(c.logits.size()),
                           .sums = candidates.sums,
                           .params = c.params,
                           .counts = c.counts,
                           .position = c.position},
                          scratch);
}
std::optional<SampledToken> FromCandidates(const Case& c) {
  return FromCandidates(c, CandidatesOf(c.logits, kMostCandidates, c.params));
}

SampledToken FromRow(const Case& c) {
  static SamplerScratch scratch;
  auto sampled = SampleToken(
      {.logits = c.logits, .params = c.params, .counts = c.counts, .position = c.position},
      scratch);
  EXPECT_OK(sampled);
  return *std::move(sampled);
}

bool Same(const SampledToken& a, const SampledToken& b) {
  return a.token == b.token && a.logprob == b.logprob && a.top == b.top;
}

// Logits of all kinds: peaked or flat, with few values (ties at every border), with masks.
std::vector<float> AnyLogits(std::minstd_rand& random) {
  constexpr int kVocabs[] = {5, 256, 257, 300, 1000, 2049};
  const auto one_of = [&](int count) { return static_cast<int>(random() % count); };
  const float spread = std::exp2(static_cast<float>(one_of(9)) - 3.0f);  // 1/8 .. 32
  std::vector<float> logits = RandomNormal(kVocabs[one_of(6)], random(), spread);
  if (one_of(4) == 0)
    for (float& logit : logits) logit = std::round(logit * 2) / 2;
  if (one_of(6) == 0) {
    for (size_t i = 0; i + 1 < logits.size(); ++i)
      if (i % 5 != 0) logits[i] = -kInfinity;
  }
  return logits;
}

Case AnyCase(std::minstd_rand& random) {
  const auto pick = [&](std::initializer_list<float> from) {
    return from.begin()[random() % from.size()];
  };
  Case c = {.logits = AnyLogits(random)};
  c.params = {.temperature = pick({0, 0.05f, 0.3f, 0.7f, 1, 1.7f}),
              .top_k = static_cast<int>(pick({0, 0, 1, 20, 40, 256, 257, 900})),
              .top_p = pick({1, 0.3f, 0.9f, 0.95f, 0.99f, 0.99999994f}),
              .min_p = pick({0, 0, 0.05f, 0.5f, 1e-4f}),
              .repetition_penalty = pick({1, 1, 1, 1.2f, 2, 0.8f}),
              .presence_penalty = pick({0, 0, 0, 0.5f, 4, -1}),
              .frequency_penalty = pick({0, 0, 0, 0.3f, -0.2f}),
              .seed = random(),
              .logprobs = static_cast<int>(pick({-1, 0, 5, 20}))};
  if (UsesPenalties(c.params)) {
    std::vector<int32_t> prompt(random() % 60);
    for (int32_t& token : prompt) token = static_cast<int32_t>(random() % c.logits.size());
    c.counts.Reset(prompt, 40);
    // Often the largest: penalties are about them.
    const Candidates largest = CandidatesOf(c.logits, 30, c.params);
    for (int i = 0; i < 30; ++i)
      c.counts.Add(largest.ranked[random() % largest.ranked.size()].token);
  }
  c.position = static_cast<int64_t>(random() % 1000);
  return c;
}

TEST(SampleCandidatesTest, GiveWhatTheRowGivesOrAskForIt) {
  constexpr int kCases = 20000;
  std::minstd_rand random(11);
  int decided = 0, decided_with_penalties = 0;
  for (int i = 0; i < kCases; ++i) {
    const Case c = AnyCase(random);
    const std::optional<SampledToken> sampled = FromCandidates(c);
    if (!sampled) continue;
    ++decided;
    decided_with_penalties += UsesPenalties(c.params) ? 1 : 0;
    const SampledToken expected = FromRow(c);
    ASSERT_TRUE(Same(*sampled, expected))
        << "case " << i << " vocab " << c.logits.size() << " token " << sampled->token << " not "
        << expected.token << " temperature " << c.params.temperature << " top_k " << c.params.top_k
        << " top_p " << c.params.top_p << " min_p " << c.params.min_p;
  }
  // A third and more of such cases, or the test says little.
  EXPECT_GT(decided, kCases / 3);
  EXPECT_GT(decided_with_penalties, kCases / 20);
}

// Fewer candidates than there may be: everything is nearer to the border.
TEST(SampleCandidatesTest, FewCandidatesDecideTheSameOrNothing) {
  std::minstd_rand random(12);
  int decided = 0, left = 0;
  for (int i = 0; i < 10000; ++i) {
    const Case c = AnyCase(random);
    const std::optional<SampledToken> sampled =
        FromCandidates(c, CandidatesOf(c.logits, 1 + random() % 30, c.params));
    ++(sampled ? decided : left);
    if (sampled) {
      ASSERT_TRUE(Same(*sampled, FromRow(c))) << "case " << i;
    }
  }
  EXPECT_GT(decided, 1000);
  EXPECT_GT(left, 1000);
}

// The comparison is not blind: rows that differ from what the candidates were taken of.
TEST(SampleCandidatesTest, TheComparisonNoticesAnotherRow) {
  std::minstd_rand random(13);
  int different = 0;
  for (int i = 0; i < 2000; ++i) {
    Case c = AnyCase(random);
    const std::optional<SampledToken> sampled = FromCandidates(c);
    if (!sampled) continue;
    std::ranges::reverse(c.logits);
    different += Same(*sampled, FromRow(c)) ? 0 : 1;
  }
  EXPECT_GT(different, 100);
}

// Zipf's law, as vocabularies of models have it: ln p = -1.3 ln rank, ranks shuffled.
std::vector<float> ZipfLogits(int vocab, uint32_t seed) {
  std::vector<float> logits;
  for (int i = 1; i <= vocab; ++i) logits.push_back(-1.3f * std::log(static_cast<float>(i)));
  std::minstd_rand random(seed);
  std::shuffle(logits.begin(), logits.end(), random);
  return logits;
}

TEST(SampleCandidatesTest, DecideWhatChatsAskFor) {
  for (const SamplingParams& params :
       {SamplingParams{.temperature = 0.7f, .top_p = 0.9f},
        SamplingParams{.temperature = 0.6f, .top_p = 0.95f, .logprobs = 20},
        SamplingParams{.temperature = 0.7f, .top_k = 20, .top_p = 0.8f},
        SamplingParams{.temperature = 1.5f, .top_k = 50}, SamplingParams{.logprobs = 20},
        SamplingParams{.temperature = 1, .min_p = 0.05f},
        SamplingParams{.temperature = 1, .top_k = 40, .repetition_penalty = 1.1f},
        SamplingParams{.repetition_penalty = 1.1f, .presence_penalty = 0.5f}}) {
    EXPECT_EQ(NumCandidates(params), kMostCandidates);
    for (uint32_t seed = 0; seed < 5; ++seed) {
      Case c = {.logits = ZipfLogits(32000, seed), .params = params, .position = seed};
      c.counts.Reset(std::vector<int32_t>{5, 600, 7000}, 4);
      c.counts.Add(9000);
      const std::optional<SampledToken> sampled = FromCandidates(c);
      ASSERT_TRUE(sampled.has_value()) << params.temperature << " " << params.top_p;
      EXPECT_TRUE(Same(*sampled, FromRow(c)));
    }
  }
}

TEST(SampleCandidatesTest, DoNotDecideWhatReachesPastThem) {
  const std::vector<float> flat = RandomNormal(5000, 3, 0.1f);
  TokenCounts counts;
  counts.Reset(std::vector<int32_t>{1, 2, 3}, 4);
  for (const SamplingParams& params :
       {SamplingParams{.temperature = 1, .top_p = 0.9f},
        SamplingParams{.temperature = 1, .min_p = 0.01f}, SamplingParams{.temperature = 1},
        SamplingParams{.temperature = 1, .top_k = 257},
        SamplingParams{.temperature = 1, .top_k = 300, .top_p = 0.01f},
        SamplingParams{.temperature = 1, .top_p = 0.01f, .repetition_penalty = 1.1f},
        SamplingParams{.temperature = 1, .top_k = 5, .repetition_penalty = 0.9f},
        SamplingParams{.temperature = 1, .top_k = 5, .presence_penalty = -0.1f},
        SamplingParams{.frequency_penalty = -0.1f}}) {
    EXPECT_FALSE(FromCandidates({.logits = flat, .params = params, .counts = counts}).has_value());
  }
}

TEST(SampleCandidatesTest, LeaveAloneWhatRoundingDecides) {
  // 0.25 of 40 equal weights is ten of them exactly, but sums may be a little off.
  const Case c = {.logits = std::vector<float>(40, 1.5f),
                  .params = {.temperature = 1, .top_p = 0.25f}};
  EXPECT_FALSE(FromCandidates(c).has_value());
  // A token more is clear.
  Case clear = c;
  clear.params.top_p = 0.26f;
  ASSERT_TRUE(FromCandidates(clear).has_value());
  EXPECT_TRUE(Same(*FromCandidates(clear), FromRow(clear)));
}

// Penalties sink candidates below the border, where others may lie that nobody knows.
TEST(SampleCandidatesTest, PenalizedBelowTheBorderIsNotKnown) {
  std::vector<float> logits(1000, 0.0f);
  for (size_t i = 0; i < kMostCandidates; ++i) logits[i] = 1.0f;
  logits[500] = 0.5f;  // not a candidate
  Case c = {.logits = logits, .params = {.presence_penalty = 0.75f}};
  c.counts.Reset({}, kMostCandidates);
  for (int32_t token = 0; token < kMostCandidates - 1; ++token) c.counts.Add(token);
  ASSERT_TRUE(FromCandidates(c).has_value());
  EXPECT_EQ(FromCandidates(c)->token, kMostCandidates - 1);  // the last that is left
  c.counts.Add(kMostCandidates - 1);
  EXPECT_FALSE(FromCandidates(c).has_value());
  EXPECT_EQ(FromRow(c).token, 500);
}

TEST(SampleCandidatesTest, OneCandidateIsEnoughForTheMostLikely) {
  const std::vector<float> logits = RandomNormal(3000, 8, 3.0f);
  for (const int logprobs : {-1, 0}) {
    const Case c = {.logits = logits, .params = {.logprobs = logprobs}};
    EXPECT_EQ(NumCandidates(c.params), 1);
    const auto sampled = FromCandidates(c, CandidatesOf(logits, 1, c.params));
    ASSERT_TRUE(sampled.has_value());
    EXPECT_TRUE(Same(*sampled, FromRow(c)));
  }
  const Case more = {.logits = logits, .params = {.logprobs = 2}};
  EXPECT_FALSE(FromCandidates(more, CandidatesOf(logits, 1, more.params)).has_value());
}

TEST(SampleCandidatesTest, ARowIsAskedForAtOnceWhereCandidatesWillNotDo) {
  for (const SamplingParams& params :
       {SamplingParams{.temperature = 1}, SamplingParams{.temperature = 1, .top_k = 257},
        SamplingParams{.temperature = 1, .top_k = 20, .repetition_penalty = 0.9f},
        SamplingParams{.temperature = 1, .top_p = 0.9f, .presence_penalty = 1}})
    EXPECT_EQ(NumCandidates(params), 0);
}

}  // namespace
}  // namespace assay
