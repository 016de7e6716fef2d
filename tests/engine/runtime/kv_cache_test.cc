#include "engine/runtime/kv_cache.h"

#include <gmock/gmock.h>

#include <map>
#include <random>
#include <set>

namespace assay {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> Tokens(int count, int32_t first = 0) {
  std::vector<int32_t> tokens(count);
  for (int i = 0; i < count; ++i) tokens[i] = first + i;
  return tokens;
}

// A sequence that went through the cache and is gone again.
void RunThrough(KvCache& kv, const std::vector<int32_t>& tokens) {
  KvTable table;
  kv.Attach(tokens, table);
  ASSERT_TRUE(kv.Reserve(table, static_cast<int64_t>(tokens.size())));
  kv.Register(tokens, table);
  kv.Release(table);
}

TEST(KvCacheTest, ReservesByWholeBlocks) {
  KvCache kv(4, true);
  KvTable table;
  EXPECT_TRUE(kv.Reserve(table, 17));
  EXPECT_THAT(table.blocks, ElementsAre(0, 1));
  EXPECT_TRUE(kv.Reserve(table, 32));
  EXPECT_EQ(kv.used_blocks(), 2);
  EXPECT_TRUE(kv.Reserve(table, 33));
  EXPECT_EQ(kv.used_blocks(), 3);
  EXPECT_EQ(kv.free_blocks(), 1);
}

TEST(KvCacheTest, FailedReserveChangesNothing) {
  KvCache kv(3, true);
  KvTable table;
  ASSERT_TRUE(kv.Reserve(table, 20));
  EXPECT_FALSE(kv.Reserve(table, 16 * 4));
  EXPECT_EQ(table.blocks.size(), 2u);
  EXPECT_EQ(kv.free_blocks(), 1);
}

TEST(KvCacheTest, ASlotIsHeldFromReserveToRelease) {
  KvCache kv(8, true, 2);
  KvTable a, b, c;
  ASSERT_TRUE(kv.Reserve(a, 20));
  ASSERT_TRUE(kv.Reserve(b, 20));
  EXPECT_EQ(a.slot, 0);
  EXPECT_EQ(b.slot, 1);
  EXPECT_FALSE(kv.Reserve(c, 1));
  EXPECT_EQ(c.slot, -1);
  EXPECT_THAT(c.blocks, ElementsAre());
  ASSERT_TRUE(kv.Reserve(a, 40));  // keeps its own
  EXPECT_EQ(a.slot, 0);
  kv.Release(a);
  EXPECT_EQ(a.slot, -1);
  ASSERT_TRUE(kv.Reserve(c, 1));
  EXPECT_EQ(c.slot, 0);
}

// Blocks without the rows in 16 bit that lie beside them are no prefix.
TEST(KvCacheTest, WithSlotsNoPrefixIsFound) {
  KvCache kv(8, true, 2);
  RunThrough(kv, Tokens(40));
  EXPECT_EQ(kv.cached_blocks(), 0);
  KvTable table;
  EXPECT_EQ(kv.Attach(Tokens(64), table), 0);
}

TEST(KvCacheTest, FindsThePrefixOfAnEarlierSequence) {
  KvCache kv(8, true);
  RunThrough(kv, Tokens(40));
  EXPECT_EQ(kv.cached_blocks(), 2);
  EXPECT_EQ(kv.free_blocks(), 6);
  KvTable table;
  EXPECT_EQ(kv.Attach(Tokens(64), table), 32);
  EXPECT_EQ(kv.used_blocks(), 2);
}

TEST(KvCacheTest, AlwaysLeavesTheLastTokenToCompute) {
  KvCache kv(8, true);
  RunThrough(kv, Tokens(32));
  KvTable table;
  EXPECT_EQ(kv.Attach(Tokens(32), table), 16);
  kv.Release(table);
  EXPECT_EQ(kv.Attach(Tokens(33), table), 32);
  kv.Release(table);
  EXPECT_EQ(kv.Attach(Tokens(1), table), 0);
}

TEST(KvCacheTest, EqualTokensAfterADifferentPrefixAreNotShared) {
  KvCache kv(8, true);
  std::vector<int32_t> a = Tokens(32), b = Tokens(48);
  b[3] = 99;  // second block equal, first not
  RunThrough(kv, a);
  KvTable table;
  EXPECT_EQ(kv.Attach(b, table), 0);
}

TEST(KvCacheTest, WithoutPrefixCacheNothingIsKept) {
  KvCache kv(8, false);
  RunThrough(kv, Tokens(40));
  EXPECT_EQ(kv.cached_blocks(), 0);
  EXPECT_EQ(kv.free_blocks(), 8);
  KvTable table;
  EXPECT_EQ(kv.Attach(Tokens(40), table), 0);
}

TEST(KvCacheTest, EvictsTheLeastRecentlyUsedFromItsEnd) {
  KvCache kv(4, true);
  RunThrough(kv, Tokens(32, 100));
  RunThrough(kv, Tokens(32, 200));
  KvTable probe;
  EXPECT_EQ(kv.Attach(Tokens(33, 100), probe), 32);  // now the more recent one
  kv.Release(probe);
  KvTable table;
  ASSERT_TRUE(kv.Reserve(table, 16));  // no free block: takes the end of 200
  EXPECT_EQ(kv.Attach(Tokens(33, 100), probe), 32);
  kv.Release(probe);
  EXPECT_EQ(kv.Attach(Tokens(33, 200), probe), 16);
}

TEST(KvCacheTest, BlocksInUseAreNotEvicted) {
  KvCache kv(3, true);
  RunThrough(kv, Tokens(32));
  KvTable holder, other;
  ASSERT_EQ(kv.Attach(Tokens(33), holder), 32);
  EXPECT_FALSE(kv.Reserve(other, 32));
  EXPECT_TRUE(kv.Reserve(other, 16));
}

TEST(KvCacheTest, SequencesComputedSideBySideEndUpSharing) {
  KvCache kv(8, true);
  const std::vector<int32_t> tokens = Tokens(32);
  KvTable a, b;
  ASSERT_TRUE(kv.Reserve(a, 32));
  ASSERT_TRUE(kv.Reserve(b, 32));
  kv.Register(tokens, a);
  EXPECT_EQ(kv.used_blocks(), 4);
  kv.Register(tokens, b);
  EXPECT_EQ(kv.used_blocks(), 2);
  EXPECT_EQ(a.blocks, b.blocks);
  kv.Release(a);
  EXPECT_EQ(kv.used_blocks(), 2);
  kv.Release(b);
  EXPECT_EQ(kv.cached_blocks(), 2);
}

// Random sequences come, grow, share and go. The test keeps what a real pool would hold in each
// block and checks it from outside.
class Model {
 public:
  Model(int num_blocks, uint32_t seed)
      : kv_(num_blocks, true), contents_(num_blocks), random_(seed) {}

  void Step() {
    const int what = static_cast<int>(random_() % 4);
    if (live_.size() < 2 || (what == 0 && live_.size() < 12)) {
      Arrive();
    } else if (what == 1) {
      Leave(random_() % live_.size());
    } else {
      Grow(live_[random_() % live_.size()]);
    }
    Check();
  }
  void LeaveAll() {
    while (!live_.empty()) Leave(0);
    Check();
  }
  int hits() const { return hits_; }
  int refusals() const { return refusals_; }
  const KvCache& kv() const { return kv_; }

 private:
  struct Live {
    std::vector<int32_t> tokens;
    KvTable table;
  };

  void Arrive() {
    Live live;
    // Few different tokens per block, so that prefixes meet.
    const int blocks = static_cast<int>(random_() % 5);
    for (int b = 0; b < blocks; ++b)
      live.tokens.insert(live.tokens.end(), 16, static_cast<int32_t>(random_() % 2));
    for (int i = static_cast<int>(random_() % 16); i >= 0; --i) live.tokens.push_back(7);
    const int cached = kv_.Attach(live.tokens, live.table);
    ASSERT_LT(cached, static_cast<int>(live.tokens.size()));
    hits_ += cached > 0;
    for (int p = 0; p < cached; ++p)  // what was promised must be there
      ASSERT_EQ(contents_[live.table.blocks[p / 16]][p % 16], live.tokens[p]);
    if (!kv_.Reserve(live.table, static_cast<int64_t>(live.tokens.size()))) {
      ++refusals_;
      kv_.Release(live.table);
      return;
    }
    Write(live, cached);
    live_.push_back(std::move(live));
  }

  void Grow(Live& live) {
    const size_t old = live.tokens.size();
    const int32_t token = static_cast<int32_t>(random_() % 2);
    live.tokens.insert(live.tokens.end(), 1 + random_() % 20, token);
    if (!kv_.Reserve(live.table, static_cast<int64_t>(live.tokens.size()))) {
      ++refusals_;
      live.tokens.resize(old);
      return;
    }
    Write(live, static_cast<int>(old));
  }

  void Write(Live& live, int from) {
    for (int p = from; p < static_cast<int>(live.tokens.size()); ++p)
      contents_[live.table.blocks[p / 16]][p % 16] = live.tokens[p];
    kv_.Register(live.tokens, live.table);
  }

  void Leave(size_t index) {
    kv_.Release(live_[index].table);
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(index));
  }

  void Check() {
    std::set<int32_t> held;
    for (const Live& live : live_) {
      ASSERT_EQ(live.table.blocks.size(), KvCache::BlocksFor(live.tokens.size()));
      for (size_t p = 0; p < live.tokens.size(); ++p)  // nobody wrote into anybody's block
        ASSERT_EQ(contents_[live.table.blocks[p / 16]][p % 16], live.tokens[p]);
      held.insert(live.table.blocks.begin(), live.table.blocks.end());
    }
    ASSERT_EQ(kv_.used_blocks(), static_cast<int>(held.size()));
    ASSERT_EQ(kv_.used_blocks() + kv_.cached_blocks() + kv_.free_blocks(), kv_.num_blocks());
    ASSERT_GE(kv_.free_blocks(), 0);
    ASSERT_GE(kv_.cached_blocks(), 0);
  }

  KvCache kv_;
  std::vector<std::array<int32_t, 16>> contents_;
  std::vector<Live> live_;
  std::minstd_rand random_;
  int hits_ = 0, refusals_ = 0;
};

TEST(KvCacheTest, RandomOperationsNeitherLeakNorMixBlocksUp) {
  int hits = 0, refusals = 0;
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    Model model(4 + static_cast<int>(seed) * 2, seed);
    for (int i = 0; i < 2000 && !testing::Test::HasFatalFailure(); ++i) model.Step();
    model.LeaveAll();
    EXPECT_EQ(model.kv().used_blocks(), 0);
    EXPECT_EQ(model.kv().available_blocks(), model.kv().num_blocks());
    hits += model.hits();
    refusals += model.refusals();
  }
  EXPECT_GT(hits, 500);  // the interesting paths were taken
  EXPECT_GT(refusals, 500);
}

}  // namespace
}  // namespace assay
