// Encoder attention against f64 over the same rows; what no row may read is NaN.
#include "engine/ops/cuda/encoder_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/ops/cuda/paged_kv.h"

namespace assay::ASSAY_WORLD {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

struct Case {
  Half type = Half::kF16;
  int heads = 2, kv_heads = 2, head_dim = 64;
  std::vector<int> lengths = {70, 3, 64};
  int extra = 0;  // columns of the projection before q: what misaligns rows
  int tile_rows = kQueryTileRows;
};

// A fused projection [rows][extra | q | k | v]; a row of NaN behind each sequence.
class Rig {
 public:
  explicit Rig(const Case& c)
      : case_(c), lengths_(std::vector<int32_t>(c.lengths.begin(), c.lengths.end())) {
    int rows = 0;
    for (const int length : c.lengths) {
      first_row_.push_back(rows);
      rows += length + 1;
    }
    x_.assign(static_cast<size_t>(rows) * stride(), uint16_t{0xffff});
    const auto random = Normal(x_.size(), 11);
    for (size_t s = 0; s < c.lengths.size(); ++s) {
      for (size_t i = At(s, 0, -c.extra); i < At(s, c.lengths[s], -c.extra); ++i)
        x_[i] = ToHalf(c.type, random[i]);
    }
  }

  int q_width() const { return case_.heads * case_.head_dim; }
  int kv_width() const { return case_.kv_heads * case_.head_dim; }
  size_t stride() const { return static_cast<size_t>(case_.extra + q_width() + 2 * kv_width()); }
  size_t At(size_t sequence, int row, int column) const {
    return static_cast<size_t>(first_row_[sequence] + row) * stride() +
           static_cast<size_t>(case_.extra + column);
  }
  double Value(size_t sequence, int row, int column) const {
    return FromHalf(case_.type, x_[At(sequence, row, column)]);
  }

  std::vector<uint16_t> Run(int tile_rows) const {
    std::vector<QueryTile> host_tiles(1);
    for (size_t s = 0; s < case_.lengths.size(); ++s) {
      for (int r = 0; r < case_.lengths[s]; r += tile_rows) {
        host_tiles.push_back(
            {first_row_[s] + r, std::min(tile_rows, case_.lengths[s] - r), static_cast<int>(s), r});
      }
    }
    const DeviceArray<QueryTile> tiles(host_tiles);
    const DeviceArray<uint16_t> x(x_), y(x_.size() / stride() * static_cast<size_t>(q_width()));
    EncoderAttentionArgs args = Args(x.data());
    args.tiles = tiles.data();
    args.num_tiles = static_cast<int>(tiles.size());
    args.y = y.data();
    EXPECT_EQ(EncoderAttentionRefuses(args), nullptr);
    EXPECT_EQ(Ran(EncoderAttention(args, {})), 0);
    return y.values();
  }
  EncoderAttentionArgs Args(const uint16_t* x) const {
    const auto columns = [&](int first) -> HeadRows {
      return {x + case_.extra + first, static_cast<int64_t>(stride())};
    };
    return {.type = case_.type,
            .q = columns(0),
            .k = columns(q_width()),
            .v = columns(q_width() + kv_width()),
            .heads = case_.heads,
            .kv_heads = case_.kv_heads,
            .head_dim = case_.head_dim,
            .scale = scale(),
            .lengths = lengths_.data()};
  }
  float scale() const { return 1 / std::sqrt(static_cast<float>(case_.head_dim)); }

  Expected Reference(size_t sequence, int row, int head, int lost = 0) const {
    const int kv_head = head / (case_.heads / case_.kv_heads);
    std::vector<double> q;
    for (int i = 0; i < case_.head_dim; ++i)
      q.push_back(Value(sequence, row, head * case_.head_dim + i));
    const auto column = [&, this](int first) {
      return [=, this](int p, int i) {
        return Value(sequence, p, first + kv_head * case_.head_dim + i);
      };
    };
    return Attend(q, scale(), 0, case_.lengths[sequence] - lost, column(q_width()),
                  column(q_width() + kv_width()));
  }
  size_t OutputAt(size_t sequence, int row, int head) const {
    return static_cast<size_t>(first_row_[sequence] + row) * static_cast<size_t>(q_width()) +
           static_cast<size_t>(head * case_.head_dim);
  }

  const Case case_;
  DeviceArray<int32_t> lengths_;
  std::vector<int> first_row_;
  std::vector<uint16_t> x_;
};

void Check(const Case& c) {
  if (!WorldTakes(c.type)) return;
  SCOPED_TRACE(testing::Message() << "type " << static_cast<int>(c.type) << " head_dim "
                                  << c.head_dim << " heads " << c.heads << "/" << c.kv_heads
                                  << " extra " << c.extra);
  const Rig rig(c);
  const auto y = rig.Run(c.tile_rows);
  for (size_t s = 0; s < c.lengths.size(); ++s) {
    for (int h = 0; h < c.heads; ++h) {
      for (int row = 0; row < c.lengths[s]; ++row) {
        ASSERT_LE(Misses(y.data() + rig.OutputAt(s, row, h), rig.Reference(s, row, h), c.type), 1)
            << "sequence " << s << " row " << row << " head " << h;
      }
      const auto behind = y.begin() + static_cast<ptrdiff_t>(rig.OutputAt(s, c.lengths[s], h));
      EXPECT_THAT(std::vector<uint16_t>(behind, behind + c.head_dim), Each(0xffff));
    }
  }
}

class EncoderAttentionTest : public testing::TestWithParam<Order> {
 protected:
  EncoderAttentionTest() { SetWorldOrder(GetParam()); }
  ~EncoderAttentionTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, EncoderAttentionTest, testing::ValuesIn(WorldOrders()));

TEST_P(EncoderAttentionTest, AgreesWithF64InEveryHeadDim) {
  for (const auto type : {Half::kF16, Half::kBf16}) {
    for (const int head_dim : {2, 8, 10, 32, 64, 80, 96, 128, 256}) {
      Check({.type = type, .heads = 1, .kv_heads = 1, .head_dim = head_dim, .lengths = {17, 33}});
    }
  }
}

TEST_P(EncoderAttentionTest, TakesAnyLength) {
  Check({.head_dim = 16, .lengths = {1, 15, 16, 17, 63, 64, 65, 130}});
  Check({.head_dim = 16, .lengths = {65, 20}, .tile_rows = 9});
}

TEST_P(EncoderAttentionTest, SharesKvHeadsAndTakesRowsThatAreNotAligned) {
  for (const int extra : {0, 2, 8}) {
    Check({.heads = 4, .kv_heads = 2, .head_dim = 32, .lengths = {20}, .extra = extra});
    Check({.heads = 2, .kv_heads = 1, .head_dim = 10, .lengths = {20}, .extra = extra});
  }
}

TEST_P(EncoderAttentionTest, ARowIsTheSameInAnyTile) {
  const Rig rig({.heads = 1, .kv_heads = 1, .head_dim = 32, .lengths = {100, 5}});
  const auto whole = rig.Run(64);
  EXPECT_EQ(rig.Run(1), whole);
  EXPECT_EQ(rig.Run(23), whole);
}

TEST(EncoderAttentionToleranceTest, CatchesALostPosition) {
  const Rig rig({.heads = 1, .kv_heads = 1});
  const auto y = rig.Run(64);
  const uint16_t* const row = y.data() + rig.OutputAt(0, 5, 0);
  EXPECT_LE(Misses(row, rig.Reference(0, 5, 0), Half::kF16), 1);
  EXPECT_GT(Misses(row, rig.Reference(0, 5, 0, /*lost=*/1), Half::kF16), 1);
}

TEST(EncoderAttentionRefusesTest, NamesWhatDoesNotFit) {
  const Rig rig({});
  EncoderAttentionArgs args = rig.Args(nullptr);
  args.head_dim = 260;
  EXPECT_THAT(EncoderAttentionRefuses(args), HasSubstr("head_dim"));
  args = rig.Args(nullptr);
  args.kv_heads = 3;
  EXPECT_THAT(EncoderAttentionRefuses(args), HasSubstr("kv_heads"));
  args = rig.Args(nullptr);
  args.v.row_stride = 63;
  EXPECT_THAT(EncoderAttentionRefuses(args), HasSubstr("4 bytes"));
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
