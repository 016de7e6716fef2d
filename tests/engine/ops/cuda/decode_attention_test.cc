// Decode attention against f64 over the same codes; what no row may read is NaN.
#include "engine/ops/cuda/decode_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/ops/cuda/paged_kv.h"

namespace assay::ASSAY_WORLD {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

struct Case {
  KvShape shape;
  int group = 2;  // query heads of a KV head
  std::vector<int> lengths = {17, 65, 1};
  int window = 0, splits = 1;
  float value_deviation = 1;
};

constexpr int kPadding = -1;  // a row of no sequence

// One row per entry of `rows`: the last position of that sequence.
class Rig {
 public:
  explicit Rig(const Case& c) : case_(c), kv_(c.shape, c.lengths) {
    kv_.Fill(7, c.value_deviation);
    for (size_t i = 0; c.window > 0 && i < c.lengths.size(); ++i)
      kv_.ForgetBlocksBefore(static_cast<int>(i), c.lengths[i] - c.window);
    const auto q = Normal(c.lengths.size() * static_cast<size_t>(heads() * head_dim()), 9);
    for (const float v : q) q_.push_back(ToHalf(c.shape.type, v));
  }

  int heads() const { return case_.group * case_.shape.kv_heads; }
  int head_dim() const { return case_.shape.head_dim; }
  size_t width() const { return static_cast<size_t>(heads() * head_dim()); }

  // y [rows][heads][head_dim].
  std::vector<uint16_t> Run(const std::vector<int>& rows, int splits) {
    DeviceArray<uint16_t> q(rows.size() * width()), y(rows.size() * width());
    DeviceArray<int32_t> positions(rows.size()), sequences(rows.size());
    for (size_t r = 0; r < rows.size(); ++r) {
      if (rows[r] == kPadding) continue;  // NaN, and -1 in both
      const auto s = static_cast<size_t>(rows[r]);
      sequences[r] = rows[r];
      positions[r] = case_.lengths[s] - 1;
      std::copy_n(q_.data() + s * width(), width(), q.data() + r * width());
    }
    const int num_rows = static_cast<int>(rows.size());
    DeviceArray<float> workspace(DecodeWorkspaceBytes(num_rows, heads(), head_dim(), splits) /
                                 sizeof(float));
    DeviceArray<int> arrived(
        std::vector<int>(rows.size() * static_cast<size_t>(case_.shape.kv_heads), 0));
    DecodeAttentionArgs args = Args(splits);
    args.q = q.data();
    args.batch.positions = positions.data();
    args.batch.sequence_of_row = sequences.data();
    args.batch.rows = num_rows;
    args.workspace = workspace.data();
    args.arrived = arrived.data();
    args.y = y.data();
    EXPECT_EQ(DecodeAttentionRefuses(args), nullptr);
    EXPECT_EQ(Ran(DecodeAttention(args, {})), 0);
    EXPECT_THAT(arrived.values(), Each(0));
    return y.values();
  }
  DecodeAttentionArgs Args(int splits) const {
    return {.type = case_.shape.type,
            .heads = heads(),
            .scale = scale(),
            .sliding_window = case_.window,
            .batch = {.block_tables = kv_.tables(), .max_blocks = kv_.max_blocks()},
            .kv = kv_.layer(),
            .splits = splits};
  }
  float scale() const { return 1 / std::sqrt(static_cast<float>(head_dim())); }

  Expected Reference(int sequence, int head, int lost = 0) const {
    const int length = case_.lengths[static_cast<size_t>(sequence)], kv_head = head / case_.group;
    std::vector<double> q;
    q.reserve(static_cast<size_t>(head_dim()));
    for (int i = 0; i < head_dim(); ++i) {
      q.push_back(FromHalf(case_.shape.type, q_[static_cast<size_t>(sequence) * width() +
                                                static_cast<size_t>(head * head_dim() + i)]));
    }
    const int first = case_.window > 0 ? std::max(0, length - case_.window) : 0;
    return Attend(
        q, scale(), first, length - lost,
        [&](int p, int i) {
          return kv_.At({sequence, p, kv_head, 0}, i);
        },
        [&](int p, int i) {
          return kv_.At({sequence, p, kv_head, 1}, i);
        });
  }

  const Case case_;
  PagedKv kv_;
  std::vector<uint16_t> q_;
};

void Check(const Case& c) {
  if (!WorldTakes(c.shape.type)) return;
  SCOPED_TRACE(testing::Message() << NameOf(c.shape.format) << " type "
                                  << static_cast<int>(c.shape.type) << " head_dim "
                                  << c.shape.head_dim << " group " << c.group << " window "
                                  << c.window << " splits " << c.splits);
  Rig rig(c);
  std::vector<int> rows;  // the sequences from the last to the first, and padding
  for (int s = static_cast<int>(c.lengths.size()) - 1; s >= 0; --s) {
    rows.push_back(s);
    if (rows.size() == 2) rows.push_back(kPadding);
  }
  const auto y = rig.Run(rows, c.splits);
  for (size_t r = 0; r < rows.size(); ++r) {
    for (int h = 0; h < rig.heads(); ++h) {
      const uint16_t* const got = y.data() + r * rig.width() + h * rig.head_dim();
      if (rows[r] == kPadding) {
        EXPECT_THAT(std::vector<uint16_t>(got, got + rig.head_dim()), Each(0xffff));
      } else {
        EXPECT_LE(Misses(got, rig.Reference(rows[r], h), c.shape.type), 1)
            << "length " << c.lengths[static_cast<size_t>(rows[r])] << " head " << h;
      }
    }
  }
}

constexpr KvCodes kFormats[] = {KvCodes::kHalf, KvCodes::kS8, KvCodes::kE4m3};
constexpr Half kTypes[] = {Half::kF16, Half::kBf16};

class DecodeAttentionTest : public testing::TestWithParam<Order> {
 protected:
  DecodeAttentionTest() { SetWorldOrder(GetParam()); }
  ~DecodeAttentionTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, DecodeAttentionTest, testing::ValuesIn(WorldOrders()));

TEST_P(DecodeAttentionTest, AgreesWithF64InEveryFormatAndHeadDim) {
  for (const auto type : kTypes) {
    for (const auto format : kFormats) {
      for (const int head_dim : {2, 8, 10, 64, 80, 96, 128, 256})
        Check({.shape = {type, format, 1, head_dim}, .lengths = {17, 1, 65}});
    }
  }
}

TEST_P(DecodeAttentionTest, SharesKvHeadsAmongQueries) {
  for (const auto format : kFormats) {
    for (const int group : {1, 4, 8, 13, 16})
      Check({.shape = {Half::kBf16, format, 2, 32}, .group = group, .lengths = {140, 3}});
  }
}

TEST_P(DecodeAttentionTest, TakesAnyLengthAndNumberOfSplits) {
  for (const auto format : kFormats) {
    for (const int splits : {1, 2, 3, 64}) {
      Check({.shape = {Half::kF16, format, 2, 16},
             .lengths = {1, 15, 16, 17, 63, 64, 65, 200, 321},
             .splits = splits});
    }
  }
}

TEST_P(DecodeAttentionTest, LooksBackAsFarAsTheWindow) {
  for (const auto format : kFormats) {
    for (const int window : {1, 16, 50}) {
      for (const int splits : {1, 2}) {
        Check({.shape = {Half::kF16, format, 1, 64},
               .lengths = {1, 16, 50, 51, 200},
               .window = window,
               .splits = splits});
      }
    }
  }
}

// What precision weights have must not depend on the size of the values' scales.
TEST_P(DecodeAttentionTest, KeepsDigitsOfSmallAndLargeValues) {
  for (const float deviation : {1e-6f, 1e4f}) {
    Check({.shape = {Half::kBf16, KvCodes::kS8, 1, 64}, .value_deviation = deviation});
    Check({.shape = {Half::kBf16, KvCodes::kE4m3, 1, 64}, .value_deviation = deviation});
  }
  Check({.shape = {Half::kF16, KvCodes::kS8, 1, 64}, .value_deviation = 1e-2f});
}

// One position: the result is its value, exactly.
TEST_P(DecodeAttentionTest, DecodesEveryCodeExactly) {
  for (const auto type : kTypes) {
    if (!WorldTakes(type)) continue;
    for (const auto format : {KvCodes::kS8, KvCodes::kE4m3}) {
      Rig rig({.shape = {type, format, 1, 256}, .group = 1, .lengths = {1}});
      rig.kv_.StoreEveryCode({0, 0, 0, 1});
      const auto y = rig.Run({0}, 1);
      for (int i = 0; i < 256; ++i)
        ASSERT_EQ(FromHalf(type, y[static_cast<size_t>(i)]), rig.kv_.At({0, 0, 0, 1}, i)) << i;
    }
  }
}

TEST_P(DecodeAttentionTest, ARowIsTheSameInAnyCompany) {
  for (const auto format : kFormats) {
    Rig rig({.shape = {Half::kF16, format, 2, 16}, .lengths = {200, 17, 129, 64}});
    for (const int splits : {1, 3}) {
      const auto all = rig.Run({3, kPadding, 0, 1, 2, 0}, splits);
      const std::vector<int> places = {2, 3, 4, 0};
      for (int s = 0; s < 4; ++s) {
        const auto alone = rig.Run({s}, splits);
        const auto place = static_cast<size_t>(places[static_cast<size_t>(s)]);
        EXPECT_EQ(std::memcmp(alone.data(), all.data() + place * rig.width(), 2 * rig.width()), 0);
      }
      EXPECT_EQ(
          std::memcmp(all.data() + 2 * rig.width(), all.data() + 5 * rig.width(), 2 * rig.width()),
          0);
    }
  }
}

TEST_P(DecodeAttentionTest, ACachedRowThatIsNotFiniteShows) {
  for (const int k_or_v : {0, 1}) {
    Rig rig({.shape = {Half::kF16, KvCodes::kS8, 1, 64}, .lengths = {30, 30}});
    std::vector<float> row(64, 1.0f);
    row[3] = NAN;
    rig.kv_.Store({0, 12, 0, k_or_v}, row.data());
    const auto y = rig.Run({0, 1}, 1);
    for (size_t i = 0; i < rig.width(); ++i) {
      EXPECT_TRUE(std::isnan(F16ToF32(y[i])));
      EXPECT_TRUE(std::isfinite(F16ToF32(y[rig.width() + i])));
    }
  }
}

// The tolerance notices one position of 200 and one wrong scale.
TEST(DecodeAttentionToleranceTest, CatchesALostPositionAndAWrongScale) {
  Rig rig({.shape = {Half::kF16, KvCodes::kS8, 1, 64}, .lengths = {200}});
  const auto y = rig.Run({0}, 2);
  EXPECT_LE(Misses(y.data(), rig.Reference(0, 0), Half::kF16), 1);
  EXPECT_GT(Misses(y.data(), rig.Reference(0, 0, /*lost=*/1), Half::kF16), 1);
  for (const int k_or_v : {0, 1}) {
    auto* const scale = rig.kv_.layer().scales + rig.kv_.RowOf({0, 199, 0, k_or_v});
    const float before = std::exchange(*scale, 2 * *scale);
    EXPECT_GT(Misses(y.data(), rig.Reference(0, 0), Half::kF16), 1);
    *scale = before;
  }
}

TEST(DecodeAttentionRefusesTest, NamesWhatDoesNotFit) {
  const Rig rig({.shape = {Half::kF16, KvCodes::kS8, 2, 64}});
  DecodeAttentionArgs args = rig.Args(1);
  args.heads = 3;
  EXPECT_THAT(DecodeAttentionRefuses(args), HasSubstr("heads"));
  args.heads = 34;
  EXPECT_THAT(DecodeAttentionRefuses(args), HasSubstr("16"));
  args = rig.Args(65);
  EXPECT_THAT(DecodeAttentionRefuses(args), HasSubstr("splits"));
  args = rig.Args(1);
  args.kv.head_dim = 258;
  EXPECT_THAT(DecodeAttentionRefuses(args), HasSubstr("head_dim"));
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
