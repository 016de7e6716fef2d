// Candidates of rows of logits against std::partial_sort, and their sums against those of the
// host's sampler: both exactly.
#include "engine/ops/cuda/top_candidates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <string>

#include "engine/runtime/sampler.h"
#include "tests/support/device_array.h"
#include "tests/support/random_tensor.h"

namespace assay {
namespace {

using emulated::Order;
using world::DeviceArray;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class TopCandidatesTest : public testing::TestWithParam<Order> {
 protected:
  TopCandidatesTest() { SetWorldOrder(GetParam()); }
  ~TopCandidatesTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, TopCandidatesTest, testing::ValuesIn(WorldOrders()));

struct Found {
  std::vector<RowHead> heads;
  std::vector<RankedLogit> ranked;  // [rows, kMostCandidates]
};

Found Select(const std::vector<float>& logits, int vocab, const std::vector<int32_t>& wanted,
             const std::vector<float>& scales) {
  const DeviceArray<float> in(logits), device_scales(scales);
  const DeviceArray<int32_t> device_wanted(wanted);
  const DeviceArray<RowHead> heads(wanted.size());
  const DeviceArray<RankedLogit> ranked(wanted.size() * kMostCandidates);
  EXPECT_EQ(Ran(world::TopCandidates({.logits = in.data(),
                                      .rows = static_cast<int>(wanted.size()),
                                      .vocab = vocab,
                                      .wanted = device_wanted.data(),
                                      .scales = device_scales.data(),
                                      .heads = heads.data(),
                                      .ranked = ranked.data()},
                                     {})),
            0);
  return {heads.values(), ranked.values()};
}

std::vector<RankedLogit> Sorted(const std::vector<float>& logits) {
  std::vector<RankedLogit> all;
  for (const float logit : logits) all.push_back({logit, static_cast<int32_t>(all.size())});
  const size_t count = std::min<size_t>(kMostCandidates, all.size());
  std::partial_sort(all.begin(), all.begin() + static_cast<ptrdiff_t>(count), all.end(),
                    [](const RankedLogit& a, const RankedLogit& b) {
                      return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
                    });
  all.resize(count);
  return all;
}

bool Same(std::span<const RankedLogit> a, std::span<const RankedLogit> b) {
  return std::ranges::equal(a, b, [](const RankedLogit& x, const RankedLogit& y) {
    return x.logit == y.logit && x.token == y.token;
  });
}

void ExpectSelected(const std::vector<float>& logits, const std::string& what) {
  const Found found = Select(logits, static_cast<int>(logits.size()), {kMostCandidates}, {1.25f});
  const std::vector<RankedLogit> expected = Sorted(logits);
  EXPECT_TRUE(Same(std::span(found.ranked).first(expected.size()), expected)) << what;
  EXPECT_EQ(found.heads[0].first.token, expected[0].token) << what;
  EXPECT_EQ(found.heads[0].first.logit, expected[0].logit) << what;
}

std::vector<float> Made(int vocab, const std::function<float(int)>& logit) {
  std::vector<float> logits;
  for (int token = 0; token < vocab; ++token) logits.push_back(logit(token));
  return logits;
}

TEST_P(TopCandidatesTest, SelectsTheFirstOfTheRanking) {
  for (const int vocab : {1, 2, 31, 255, 256, 257, 300, 511, 512, 513, 1000, 4099, 20011})
    ExpectSelected(RandomNormal(vocab, static_cast<uint64_t>(vocab), 4.0f),
                   std::to_string(vocab) + " random");
}

TEST_P(TopCandidatesTest, OfEqualLogitsTheFirst) {
  for (const int vocab : {100, 1024, 1025, 5003}) {
    const std::string of = " of " + std::to_string(vocab);
    ExpectSelected(Made(vocab, [](int) { return -2.5f; }), "all equal" + of);
    ExpectSelected(Made(vocab, [](int t) { return static_cast<float>(t * 7919 % 5); }),
                   "five values" + of);
    ExpectSelected(Made(vocab, [](int t) { return t % 3 == 0 ? -0.0f : 0.0f; }), "zeros" + of);
    ExpectSelected(Made(vocab, [](int t) { return t % 90 == 7 ? 1.0f : -kInfinity; }),
                   "few that are not masked" + of);
    // 200 above thousands that are equal.
    ExpectSelected(Made(vocab, [](int t) { return t % 25 == 3 ? 0.01f * t : -1.0f; }),
                   "equal ones at the border" + of);
  }
}

// What the shares of threads make of it: the largest all in one share, or sorted.
TEST_P(TopCandidatesTest, WhereverTheLargestLie) {
  constexpr int kVocab = 40000;
  const std::vector<float> noise = RandomNormal(kVocab, 3);
  ExpectSelected(Made(kVocab, [&](int t) { return noise[t] + (t % 512 == 5 ? 30.0f : 0.0f); }),
                 "in one share");
  // In one share fewer than there are candidates: the pool overflows. Random, then with ties.
  ExpectSelected(Made(kVocab, [&](int t) { return noise[t] + (t % 512 < 255 ? 30.0f : 0.0f); }),
                 "in half of the shares");
  ExpectSelected(Made(kVocab, [&](int t) { return t % 512 < 255 ? 30.0f : noise[t]; }),
                 "equal in half of the shares");
  ExpectSelected(Made(kVocab, [&](int t) { return t % 512 < 255 ? -1.0f - t % 7 : -kInfinity; }),
                 "negative in half of the shares");
  ExpectSelected(Made(kVocab, [](int t) { return -0.5f * static_cast<float>(t); }), "descending");
  ExpectSelected(Made(kVocab, [](int t) { return 0.25f * static_cast<float>(t); }), "ascending");
  ExpectSelected(Made(kVocab, [&](int t) { return noise[t] * 1e30f; }), "far apart");
  ExpectSelected(Made(kVocab, [&](int t) { return noise[t] * 1e-42f; }), "denormal");
}

TEST_P(TopCandidatesTest, SumsHaveTheBitsOfTheHosts) {
  for (const int vocab : {1, 3, 4, 255, 256, 257, 511, 1026, 32768, 33001}) {
    for (const float spread : {0.3f, 5.0f, 60.0f}) {
      std::vector<float> logits = RandomNormal(vocab, static_cast<uint64_t>(vocab) + 1, spread);
      if (vocab > 4) logits[2] = -kInfinity;
      const float max = std::ranges::max(logits);
      for (const float temperature : {0.7f, 1.0f, 3.0f}) {
        const LogitSums sums = Select(logits, vocab, {1}, {1.0f / temperature}).heads[0].sums;
        EXPECT_EQ(sums.plain, TotalWeight(logits, max, 1.0f)) << vocab;
        EXPECT_EQ(sums.scaled, TotalWeight(logits, max, temperature)) << vocab;
      }
    }
  }
}

// The same numbers in another order of additions.
TEST_P(TopCandidatesTest, TheComparisonOfSumsNoticesAnotherOrder) {
  std::vector<float> logits = RandomNormal(5000, 1, 0.3f);
  const float max = std::ranges::max(logits);
  const LogitSums sums = Select(logits, 5000, {1}, {1.0f}).heads[0].sums;
  std::ranges::reverse(logits);
  EXPECT_NE(sums.plain, TotalWeight(logits, max, 1.0f));
}

TEST_P(TopCandidatesTest, RowsAreOnTheirOwn) {
  constexpr int kVocab = 1001;  // no row but the first is aligned
  const std::vector<int32_t> wanted = {kMostCandidates, 0, 1, kMostCandidates, kMostCandidates, 1,
                                       kMostCandidates};
  std::vector<float> logits = RandomNormal(7 * kVocab, 17, 3.0f);
  logits[1 * kVocab + 3] = kNan;  // of a row that nobody wants
  logits[3 * kVocab + 1000] = kNan;
  logits[4 * kVocab + 500] = kInfinity;
  std::fill_n(logits.begin() + 5 * kVocab, kVocab, -kInfinity);
  const std::vector<float> scales = {1, 1, 0.5f, 1, 1, 1, 3};
  const Found found = Select(logits, kVocab, wanted, scales);
  for (const size_t row : {0, 2, 6}) {
    const std::vector<float> own(logits.begin() + static_cast<ptrdiff_t>(row) * kVocab,
                                 logits.begin() + static_cast<ptrdiff_t>(row + 1) * kVocab);
    const Found alone = Select(own, kVocab, {wanted[row]}, {scales[row]});
    EXPECT_EQ(found.heads[row].sums.plain, alone.heads[0].sums.plain);
    EXPECT_EQ(found.heads[row].sums.scaled, alone.heads[0].sums.scaled);
    const std::vector<RankedLogit> expected = Sorted(own);
    EXPECT_EQ(found.heads[row].first.token, expected[0].token);
    const auto ranked = std::span(found.ranked).subspan(row * kMostCandidates, kMostCandidates);
    if (wanted[row] > 1) {
      EXPECT_TRUE(Same(ranked, expected)) << row;
    }
  }
  for (const size_t row : {3, 4, 5}) EXPECT_EQ(found.heads[row].first.token, -1) << row;
}

}  // namespace
}  // namespace assay
