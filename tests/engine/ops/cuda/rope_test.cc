// RoPE and append against what the CPU computes (engine/ops/cpu, engine/ops/kv_row.h): the same
// operations in the same order, so codes and scales are compared bit for bit. Sines and cosines are
// the world's own, asked through a probe, as no two agree on their last bits
// (tests/base/cuda/simt_test.cc holds them to their values).
#include "engine/ops/cuda/rope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>

#include "tests/base/cuda/probe.h"
#include "tests/engine/ops/cuda/paged_kv.h"

namespace assay::ASSAY_WORLD {
namespace {

using ::testing::HasSubstr;

struct Case {
  KvShape shape;
  int heads = 2;
  bool norm = false, f32 = true;
};

// Rows of two sequences, between them two of padding.
const std::vector<int> kLengths = {37, 18};
const std::vector<int32_t> kSequences = {0, 0, 1, 0, 0, 1, 1};
const std::vector<int32_t> kPositions = {0, 36, 17, -1, -1, 3, 16};

class Rig {
 public:
  explicit Rig(const Case& c)
      : case_(c),
        kv_(c.shape, kLengths),
        x_(Normal(kPositions.size() * static_cast<size_t>(width()), 3)),
        halves_(x_.size()),
        inverse_(static_cast<size_t>(half())),
        q_gain_(Normal(static_cast<size_t>(c.shape.head_dim), 4)),
        k_gain_(Normal(static_cast<size_t>(c.shape.head_dim), 5)),
        x_device_(x_),
        halves_device_(x_.size()),
        inverse_device_(inverse_.size()),
        q_gain_device_(q_gain_),
        k_gain_device_(k_gain_),
        positions_(kPositions),
        sequences_(kSequences),
        q_(kPositions.size() * static_cast<size_t>(c.heads * c.shape.head_dim)) {
    for (int i = 0; i < half(); ++i) {
      inverse_[static_cast<size_t>(i)] = inverse_device_[static_cast<size_t>(i)] =
          static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / half()));
    }
    if (!c.f32) {
      for (size_t i = 0; i < x_.size(); ++i) {
        halves_device_[i] = ToHalf(c.shape.type, x_[i]);
        x_[i] = FromHalf(c.shape.type, halves_device_[i]);
      }
    }
    FillTurns();
  }

  // Sines and cosines by row and pair.
  void FillTurns() {
    const size_t count = kPositions.size() * inverse_.size();
    const DeviceArray<float> angles(count), sines(count), cosines(count);
    for (size_t i = 0; i < count; ++i) {
      angles[i] =
          static_cast<float>(kPositions[i / inverse_.size()]) * inverse_[i % inverse_.size()];
    }
    EXPECT_EQ(
        Ran(ProbeSinCos(angles.data(), sines.data(), cosines.data(), static_cast<int>(count), {})),
        0);
    sines_ = sines.values();
    cosines_ = cosines.values();
  }

  int half() const { return case_.shape.head_dim / 2; }
  int width() const { return (case_.heads + 2 * case_.shape.kv_heads) * case_.shape.head_dim; }
  RopeAppendArgs Args() const {
    RopeAppendArgs args;
    args.qkv = case_.f32 ? static_cast<const void*>(x_device_.data()) : halves_device_.data();
    args.qkv_is_f32 = case_.f32;
    args.type = case_.shape.type;
    args.heads = case_.heads;
    args.inv_freq = inverse_device_.data();
    args.attention_scale = 1.25f;
    if (case_.norm) {
      args.q_gain = q_gain_device_.data();
      args.k_gain = k_gain_device_.data();
      args.eps = 1e-6f;
    }
    args.batch = {.positions = positions_.data(),
                  .sequence_of_row = sequences_.data(),
                  .block_tables = kv_.tables(),
                  .rows = static_cast<int>(kPositions.size()),
                  .max_blocks = kv_.max_blocks()};
    args.kv = kv_.layer();
    args.q = q_.data();
    return args;
  }

  // Head `index` of a row as it should leave the rotation, in f32.
  std::vector<float> Rotated(size_t row, int index) const {
    const int d = case_.shape.head_dim;
    const auto from = x_.begin() + static_cast<ptrdiff_t>(row) * width() + ptrdiff_t{index} * d;
    std::vector<float> x(from, from + d);
    if (index >= case_.heads + case_.shape.kv_heads) return x;
    if (case_.norm) Normalize(index < case_.heads ? q_gain_ : k_gain_, x);
    for (int i = 0; i < half(); ++i) {
      const size_t turn = row * inverse_.size() + static_cast<size_t>(i);
      const float c = cosines_[turn] * 1.25f, s = sines_[turn] * 1.25f;
      float &a = x[static_cast<size_t>(i)], &b = x[static_cast<size_t>(i + half())];
      const float low = a * c - b * s;
      b = b * c + a * s;
      a = low;
    }
    return x;
  }

  // The sum in the order of the kernel: the lanes' pairs, then a tree over the lanes.
  void Normalize(const std::vector<float>& gain, std::vector<float>& x) const {
    std::vector<float> lanes(32);
    for (int i = 0; i < half(); ++i) {
      const float a = x[static_cast<size_t>(i)], b = x[static_cast<size_t>(i + half())];
      lanes[static_cast<size_t>(i % 32)] += a * a + b * b;
    }
    for (size_t step = 16; step > 0; step /= 2)
      for (size_t l = 0; l < step; ++l) lanes[l] += lanes[l + step];
    const float scale =
        1.0f / std::sqrt(lanes[0] / static_cast<float>(case_.shape.head_dim) + 1e-6f);
    for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] * scale * gain[i];
  }

  const Case case_;
  PagedKv kv_;
  std::vector<float> x_;
  std::vector<uint16_t> halves_;
  std::vector<float> inverse_, q_gain_, k_gain_;
  std::vector<float> sines_, cosines_;  // [rows][half]
  DeviceArray<float> x_device_;
  DeviceArray<uint16_t> halves_device_;
  DeviceArray<float> inverse_device_, q_gain_device_, k_gain_device_;
  DeviceArray<int32_t> positions_, sequences_;
  DeviceArray<uint16_t> q_;
};

void Check(const Case& c) {
  if (!WorldTakes(c.shape.type)) return;
  SCOPED_TRACE(testing::Message() << NameOf(c.shape.format) << " head_dim " << c.shape.head_dim
                                  << " heads " << c.heads << "/" << c.shape.kv_heads << " norm "
                                  << c.norm << " f32 " << c.f32);
  Rig rig(c);
  ASSERT_EQ(RopeAppendRefuses(rig.Args()), nullptr);
  ASSERT_EQ(Ran(RopeAppend(rig.Args(), {})), 0);
  const int d = c.shape.head_dim;
  for (size_t row = 0; row < kPositions.size(); ++row) {
    for (int h = 0; h < c.heads; ++h) {
      const auto expected = rig.Rotated(row, h);
      const size_t first =
          (row * static_cast<size_t>(c.heads) + static_cast<size_t>(h)) * static_cast<size_t>(d);
      for (size_t i = 0; i < expected.size(); ++i) {
        const uint16_t want =
            kPositions[row] < 0 ? uint16_t{0xffff} : ToHalf(c.shape.type, expected[i]);
        ASSERT_EQ(rig.q_[first + i], want) << "row " << row << " head " << h << " at " << i;
      }
    }
    if (kPositions[row] < 0) continue;
    // What the reference writes to the same places of a pool of its own.
    PagedKv reference(c.shape, kLengths);
    for (int h = 0; h < c.shape.kv_heads; ++h) {
      for (int k_or_v = 0; k_or_v < 2; ++k_or_v) {
        const PagedKv::Place at = {kSequences[row], kPositions[row], h, k_or_v};
        const auto x = rig.Rotated(row, c.heads + k_or_v * c.shape.kv_heads + h);
        reference.Store(at, x.data());
        const int64_t stored = reference.RowOf(at);
        const auto bytes = static_cast<size_t>(KvWidth(d) * KvCodeBytes(c.shape.format));
        ASSERT_EQ(std::memcmp(rig.kv_.codes_at(stored), reference.codes_at(stored), bytes), 0)
            << "row " << row << " head " << h << " value " << k_or_v;
        if (c.shape.format == KvCodes::kHalf) continue;
        ASSERT_EQ(rig.kv_.scale_at(stored), reference.scale_at(stored));
      }
    }
  }
}

class RopeTest : public testing::TestWithParam<Order> {
 protected:
  RopeTest() { SetWorldOrder(GetParam()); }
  ~RopeTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, RopeTest, testing::ValuesIn(WorldOrders()));

TEST_P(RopeTest, WritesWhatTheCpuWouldBitForBit) {
  for (const auto type : {Half::kF16, Half::kBf16}) {
    for (const auto format : {KvCodes::kHalf, KvCodes::kS8, KvCodes::kE4m3}) {
      for (const int head_dim : {2, 8, 10, 64, 80, 256})
        Check({{type, format, 2, head_dim}, /*heads=*/4});
    }
  }
}

TEST_P(RopeTest, NormalizesHeadsAndTakesSixteenBit) {
  for (const auto format : {KvCodes::kHalf, KvCodes::kS8, KvCodes::kE4m3}) {
    Check({{Half::kF16, format, 1, 128}, /*heads=*/3, /*norm=*/true, /*f32=*/true});
    Check({{Half::kBf16, format, 3, 64}, /*heads=*/3, /*norm=*/true, /*f32=*/false});
    Check({{Half::kF16, format, 1, 6}, /*heads=*/1, /*norm=*/false, /*f32=*/false});
  }
}

TEST_P(RopeTest, RowsThatAreNotFiniteGetAScaleOfNaN) {
  for (const auto format : {KvCodes::kS8, KvCodes::kE4m3}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      const Case c = {{Half::kF16, format, 1, 64}, /*heads=*/1};
      Rig rig(c);
      rig.x_device_[2 * 64 + 5] = bad;  // the value of row 0
      ASSERT_EQ(Ran(RopeAppend(rig.Args(), {})), 0);
      const int64_t value = rig.kv_.RowOf({0, 0, 0, 1}), key = rig.kv_.RowOf({0, 0, 0, 0});
      const float scale = rig.kv_.scale_at(value);
      uint32_t bits;
      std::memcpy(&bits, &scale, 4);
      EXPECT_EQ(bits, 0x7fc00000u);
      const std::vector<std::byte> zeros(64);
      EXPECT_EQ(std::memcmp(rig.kv_.codes_at(value), zeros.data(), 64), 0);
      EXPECT_TRUE(std::isfinite(rig.kv_.scale_at(key)));
    }
  }
}

TEST_P(RopeTest, ZerosStayZeros) {
  const Case c = {{Half::kF16, KvCodes::kS8, 1, 64}, /*heads=*/1};
  Rig rig(c);
  std::fill_n(rig.x_device_.data(), 3 * 64, 0.0f);
  ASSERT_EQ(Ran(RopeAppend(rig.Args(), {})), 0);
  EXPECT_EQ(rig.kv_.scale_at(rig.kv_.RowOf({0, 0, 0, 0})), 0);
  EXPECT_EQ(rig.kv_.codes_at(rig.kv_.RowOf({0, 0, 0, 0}))[7], std::byte{0});
}

TEST(RopeRefusesTest, NamesWhatDoesNotFit) {
  const Rig rig({{Half::kF16, KvCodes::kS8, 1, 64}, /*heads=*/1});
  RopeAppendArgs args = rig.Args();
  args.kv.head_dim = 65;
  EXPECT_THAT(RopeAppendRefuses(args), HasSubstr("head_dim"));
  args = rig.Args();
  args.kv.scales = nullptr;
  EXPECT_THAT(RopeAppendRefuses(args), HasSubstr("scales"));
  args = rig.Args();
  args.q_gain = rig.q_gain_device_.data();
  EXPECT_THAT(RopeAppendRefuses(args), HasSubstr("gains"));
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
