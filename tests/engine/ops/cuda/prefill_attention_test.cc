// Prefill attention against f64 over the same codes; what no row may read is NaN.
#include "engine/ops/cuda/prefill_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/ops/cuda/paged_kv.h"

namespace assay::ASSAY_WORLD {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

// Rows [length - rows, length) of a sequence are the batch's.
struct Sequence {
  int length, rows;
};
struct Case {
  KvShape shape;
  int group = 2;  // query heads of a KV head
  std::vector<Sequence> sequences = {{70, 70}, {5, 3}};
  int window = 0;
  int tile_rows = kQueryTileRows;
};

std::vector<int> LengthsOf(const Case& c) {
  std::vector<int> lengths;
  for (const Sequence& s : c.sequences) lengths.push_back(s.length);
  return lengths;
}

class Rig {
 public:
  explicit Rig(const Case& c) : case_(c), kv_(c.shape, LengthsOf(c)) {
    kv_.Fill(7);
    int rows = 0;
    for (size_t s = 0; s < c.sequences.size(); ++s) {
      first_row_.push_back(rows);
      rows += c.sequences[s].rows + 1;  // a row that nobody has
      const int start = c.sequences[s].length - c.sequences[s].rows;
      if (c.window > 0) kv_.ForgetBlocksBefore(static_cast<int>(s), start + 1 - c.window);
    }
    for (const float v : Normal(static_cast<size_t>(rows) * width(), 9))
      q_.push_back(ToHalf(c.shape.type, v));
  }

  int heads() const { return case_.group * case_.shape.kv_heads; }
  int head_dim() const { return case_.shape.head_dim; }
  size_t width() const { return static_cast<size_t>(heads() * head_dim()); }

  // Tiles of at most so many rows, the first of each sequence of `first`, and one of padding.
  std::vector<QueryTile> TilesOf(int tile_rows, int first) const {
    std::vector<QueryTile> tiles(1);
    for (size_t s = 0; s < case_.sequences.size(); ++s) {
      const auto [length, rows] = case_.sequences[s];
      for (int r = 0, count = 0; r < rows; r += count) {
        count = std::min(rows - r, r == 0 ? first : tile_rows);
        tiles.push_back({first_row_[s] + r, count, static_cast<int>(s), length - rows + r});
      }
    }
    return tiles;
  }
  std::vector<uint16_t> Run(const std::vector<QueryTile>& host_tiles) const {
    const DeviceArray<QueryTile> tiles(host_tiles);
    const DeviceArray<uint16_t> q(q_), y(q_.size());
    PrefillAttentionArgs args = Args();
    args.q = q.data();
    args.tiles = tiles.data();
    args.num_tiles = static_cast<int>(tiles.size());
    args.y = y.data();
    EXPECT_EQ(PrefillAttentionRefuses(args), nullptr);
    EXPECT_EQ(Ran(PrefillAttention(args, {})), 0);
    return y.values();
  }
  PrefillAttentionArgs Args() const {
    return {.type = case_.shape.type,
            .heads = heads(),
            .scale = scale(),
            .sliding_window = case_.window,
            .block_tables = kv_.tables(),
            .max_blocks = kv_.max_blocks(),
            .kv = kv_.layer()};
  }
  float scale() const { return 1 / std::sqrt(static_cast<float>(head_dim())); }

  // Of row `row` of a sequence's rows; `ahead`: positions it sees too many.
  Expected Reference(size_t sequence, int row, int head, int ahead = 0) const {
    const Sequence s = case_.sequences[sequence];
    const int last = s.length - s.rows + row + 1 + ahead, kv_head = head / case_.group;
    std::vector<double> q;
    for (int i = 0; i < head_dim(); ++i) {
      q.push_back(FromHalf(case_.shape.type, q_[At(sequence, row, head) + static_cast<size_t>(i)]));
    }
    const int first = case_.window > 0 ? std::max(0, last - case_.window) : 0;
    const auto stored = [&, this](int k_or_v) {
      return [=, this](int p, int i) {
        const double v = kv_.At({static_cast<int>(sequence), p, kv_head, k_or_v}, i);
        return static_cast<double>(
            FromHalf(case_.shape.type, ToHalf(case_.shape.type, static_cast<float>(v))));
      };
    };
    return Attend(q, scale(), first, last, stored(0), stored(1));
  }
  size_t At(size_t sequence, int row, int head) const {
    return static_cast<size_t>(first_row_[sequence] + row) * width() +
           static_cast<size_t>(head * head_dim());
  }

  const Case case_;
  PagedKv kv_;
  std::vector<int> first_row_;
  std::vector<uint16_t> q_;
};

void Check(const Case& c) {
  if (!WorldTakes(c.shape.type)) return;
  SCOPED_TRACE(testing::Message() << NameOf(c.shape.format) << " type "
                                  << static_cast<int>(c.shape.type) << " head_dim "
                                  << c.shape.head_dim << " group " << c.group << " window "
                                  << c.window << " tiles of " << c.tile_rows);
  const Rig rig(c);
  const auto y = rig.Run(rig.TilesOf(c.tile_rows, c.tile_rows));
  for (size_t s = 0; s < c.sequences.size(); ++s) {
    for (int h = 0; h < rig.heads(); ++h) {
      for (int row = 0; row < c.sequences[s].rows; ++row) {
        const uint16_t* const got = y.data() + rig.At(s, row, h);
        ASSERT_LE(Misses(got, rig.Reference(s, row, h), c.shape.type), 1)
            << "sequence " << s << " row " << row << " head " << h;
      }
      const auto behind = y.begin() + static_cast<ptrdiff_t>(rig.At(s, c.sequences[s].rows, h));
      EXPECT_THAT(std::vector<uint16_t>(behind, behind + rig.head_dim()), Each(0xffff));
    }
  }
}

constexpr KvCodes kFormats[] = {KvCodes::kHalf, KvCodes::kS8, KvCodes::kE4m3};
constexpr Half kTypes[] = {Half::kF16, Half::kBf16};

class PrefillAttentionTest : public testing::TestWithParam<Order> {
 protected:
  PrefillAttentionTest() { SetWorldOrder(GetParam()); }
  ~PrefillAttentionTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, PrefillAttentionTest, testing::ValuesIn(WorldOrders()));

TEST_P(PrefillAttentionTest, AgreesWithF64InEveryFormatAndHeadDim) {
  for (const auto type : kTypes) {
    for (const auto format : kFormats) {
      for (const int head_dim : {2, 8, 10, 64, 80})
        Check({.shape = {type, format, 1, head_dim}, .sequences = {{19, 19}, {5, 3}}});
      for (const int head_dim : {96, 128, 256})
        Check({.shape = {type, format, 1, head_dim}, .group = 1, .sequences = {{66, 2}}});
    }
  }
}

TEST_P(PrefillAttentionTest, SharesKvHeadsAmongQueries) {
  for (const auto format : kFormats) {
    for (const int group : {1, 4, 8})
      Check({.shape = {Half::kBf16, format, 2, 16}, .group = group, .sequences = {{20, 3}}});
  }
}

TEST_P(PrefillAttentionTest, TakesRaggedSequencesAndChunks) {
  for (const auto format : kFormats) {
    Check({.shape = {Half::kF16, format, 1, 16},
           .group = 1,
           .sequences = {
               {1, 1}, {15, 15}, {16, 1}, {17, 17}, {63, 2}, {64, 64}, {65, 65}, {200, 70}}});
  }
  Check({.shape = {Half::kF16, KvCodes::kS8, 2, 8}, .sequences = {{40, 40}}, .tile_rows = 7});
}

TEST_P(PrefillAttentionTest, LooksBackAsFarAsTheWindow) {
  for (const auto format : kFormats) {
    for (const int window : {1, 16, 50}) {
      Check({.shape = {Half::kF16, format, 1, 16},
             .group = 1,
             .sequences = {{3, 3}, {130, 66}, {200, 1}},
             .window = window});
    }
  }
  // A tile of keys that all rows of a warp see but the last, which has just lost its first.
  Check({.shape = {Half::kF16, KvCodes::kHalf, 1, 16},
         .group = 1,
         .sequences = {{220, 66}},
         .window = 105});
}

// One position: the result is its value, exactly.
TEST_P(PrefillAttentionTest, DecodesEveryCodeExactly) {
  for (const auto type : kTypes) {
    if (!WorldTakes(type)) continue;
    for (const auto format : {KvCodes::kS8, KvCodes::kE4m3}) {
      Rig rig({.shape = {type, format, 1, 256}, .group = 1, .sequences = {{1, 1}}});
      rig.kv_.StoreEveryCode({0, 0, 0, 1});
      const auto y = rig.Run(rig.TilesOf(1, 1));
      for (int i = 0; i < 256; ++i)
        ASSERT_EQ(FromHalf(type, y[static_cast<size_t>(i)]), rig.kv_.At({0, 0, 0, 1}, i)) << i;
    }
  }
}

TEST_P(PrefillAttentionTest, ARowIsTheSameInAnyTile) {
  for (const auto format : {KvCodes::kHalf, KvCodes::kE4m3}) {
    for (const int window : {0, 40}) {
      const Rig rig({.shape = {Half::kF16, format, 1, 16},
                     .group = 1,
                     .sequences = {{90, 90}, {70, 20}},
                     .window = window});
      const auto whole = rig.Run(rig.TilesOf(64, 64));
      EXPECT_EQ(rig.Run(rig.TilesOf(64, 5)), whole);
      EXPECT_EQ(rig.Run(rig.TilesOf(17, 1)), whole);
      EXPECT_EQ(rig.Run(rig.TilesOf(1, 1)), whole);
    }
  }
}

TEST(PrefillAttentionToleranceTest, CatchesAPositionTooMany) {
  const Rig rig({.shape = {Half::kF16, KvCodes::kHalf, 1, 64}, .group = 1});
  const auto y = rig.Run(rig.TilesOf(64, 64));
  const uint16_t* const row = y.data() + rig.At(0, 60, 0);
  EXPECT_LE(Misses(row, rig.Reference(0, 60, 0), Half::kF16), 1);
  EXPECT_GT(Misses(row, rig.Reference(0, 60, 0, /*ahead=*/1), Half::kF16), 1);
}

TEST(PrefillAttentionRefusesTest, NamesWhatDoesNotFit) {
  const Rig rig({.shape = {Half::kF16, KvCodes::kHalf, 2, 64}});
  PrefillAttentionArgs args = rig.Args();
  args.heads = 3;
  EXPECT_THAT(PrefillAttentionRefuses(args), HasSubstr("heads"));
  args = rig.Args();
  args.kv.head_dim = 7;
  EXPECT_THAT(PrefillAttentionRefuses(args), HasSubstr("head_dim"));
  args = rig.Args();
  args.sliding_window = -1;
  EXPECT_THAT(PrefillAttentionRefuses(args), HasSubstr("sliding_window"));
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
