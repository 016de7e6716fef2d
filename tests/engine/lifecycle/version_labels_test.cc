#include "engine/lifecycle/version_labels.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

// The largest distance between the canary's requests among any `most` or fewer in a row and their
// share.
template <typename Split>
double WorstWindow(double share, int most) {
  constexpr int kRequests = 4000;
  Split split;
  std::vector<double> excess{0};  // of the first i requests
  for (int i = 0; i < kRequests; ++i) {
    excess.push_back(excess.back() + (split.NextIsCanary(share) ? 1 : 0) - share);
  }
  double worst = 0;
  for (int i = 0; i <= kRequests; ++i) {
    for (int j = i; j <= std::min(kRequests, i + most); ++j) {
      worst = std::max(worst, std::abs(excess[j] - excess[i]));
    }
  }
  return worst;
}

// What a random choice would do: the check below must tell it apart.
class RandomSplit {
 public:
  bool NextIsCanary(double share) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state_ >> 11) * 0x1p-53 < share;
  }

 private:
  uint64_t state_ = 1;
};

TEST(TrafficSplitTest, AShareHoldsOverAnyShortRun) {
  for (const double share : {0.001, 0.01, 0.1, 0.25, 1.0 / 3, 0.5, 0.618, 0.9, 0.99}) {
    // Of 100 in a row at most three too many or too few, of 1000 four. The sequence is fixed: these
    // are its exact bounds, rounded up.
    EXPECT_LT((WorstWindow<TrafficSplit>(share, 100)), 3) << share;
    EXPECT_LT((WorstWindow<TrafficSplit>(share, 1000)), 4) << share;
  }
  EXPECT_GT((WorstWindow<RandomSplit>(0.25, 100)), 6);
}

TEST(TrafficSplitTest, ZeroIsNoneAndOneIsAll) {
  TrafficSplit split;
  for (int i = 0; i < 10000; ++i) {
    EXPECT_FALSE(split.NextIsCanary(0));
    EXPECT_TRUE(split.NextIsCanary(1));
  }
}

TEST(TrafficSplitTest, ClientsThatTakeTurnsEachGetTheShare) {
  for (const int clients : {2, 3, 4, 5, 8}) {
    TrafficSplit split;
    std::vector<int> canaries(clients);
    for (int i = 0; i < clients * 400; ++i) canaries[i % clients] += split.NextIsCanary(0.25);
    for (const int count : canaries) EXPECT_NEAR(count, 100, 6) << clients;  // fixed, as above
  }
}

TEST(VersionLabelsTest, LabelsAndShares) {
  const VersionLabels labels{.stable = 3, .canary = 4, .previous = 2, .canary_share = 0.25};
  EXPECT_EQ(labels.LabelOf(3), "stable");
  EXPECT_EQ(labels.LabelOf(4), "canary");
  EXPECT_EQ(labels.LabelOf(2), "previous");
  EXPECT_EQ(labels.LabelOf(7), "");
  EXPECT_EQ(VersionLabels().LabelOf(0), "");
  EXPECT_EQ(labels.ShareOf(3), 0.75);
  EXPECT_EQ(labels.ShareOf(4), 0.25);
  EXPECT_EQ(labels.ShareOf(2), 0);
  EXPECT_EQ(VersionLabels{.stable = 3}.ShareOf(3), 1);
  EXPECT_EQ(labels.VersionOf("previous").value(), 2);
  EXPECT_THAT(labels.VersionOf("beta"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("beta")));
  EXPECT_THAT(VersionLabels().VersionOf("canary"),
              StatusIs(StatusCode::kNotFound, HasSubstr("canary")));
}

TEST(VersionLabelsTest, InPlaceOfTheStableVersionStepsThePreviousOneOrElseTheCanary) {
  VersionLabels labels{.stable = 3, .canary = 4, .previous = 2, .canary_share = 0.25};
  labels.Remove(3);
  EXPECT_EQ(labels.stable, 2);
  EXPECT_EQ(labels.previous, 0);
  EXPECT_EQ(labels.canary, 4);
  labels.Remove(2);
  EXPECT_EQ(labels.stable, 4);
  EXPECT_EQ(labels.canary, 0);
  EXPECT_EQ(labels.canary_share, 0);
  labels.Remove(4);
  EXPECT_EQ(labels.stable, 0);
}

TEST(VersionSelectorTest, IsANumberOrALabel) {
  EXPECT_TRUE(VersionSelector::Create(0, "")->is_open());
  EXPECT_FALSE(VersionSelector::Create(3, "")->is_open());
  EXPECT_FALSE(VersionSelector::Create(0, "canary")->is_open());
  EXPECT_THAT(VersionSelector::Create(-1, ""),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("-1")));
  EXPECT_THAT(VersionSelector::Create(3, "canary"),
              StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("3"), HasSubstr("canary"))));
}

}  // namespace
}  // namespace assay
