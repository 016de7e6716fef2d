// Both ends of an encoder. What is only added is compared bit for bit; sums of
// products with f64: of k terms in f32, in any order, k 2^-24 of the sum of their magnitudes.
#include "engine/ops/cuda/encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/device_array.h"
#include "tests/support/random_tensor.h"

namespace assay {
namespace {

using emulated::Order;
using ::testing::FloatNear;
using ::testing::Pointwise;
using world::DeviceArray;

class EncoderEndsTest : public testing::TestWithParam<Order> {
 protected:
  EncoderEndsTest() { SetWorldOrder(GetParam()); }
  ~EncoderEndsTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, EncoderEndsTest,
                         testing::Values(Order::kAscending, Order::kDescending, Order::kShuffled));

TEST_P(EncoderEndsTest, EmbedAddsTypesAndPositionsAndLeavesPaddingZero) {
  constexpr size_t kWidth = 12, kStride = 32;  // words are looked up in rows of 32
  const std::vector<float> words = RandomNormal(3 * kStride, 10), places = RandomNormal(48, 11),
                           types = RandomNormal(2 * kWidth, 12);
  DeviceArray<float> word(words), place(places), type(types), out(3 * kWidth);
  DeviceArray<int32_t> at(std::vector<int32_t>{3, 0, -1}), kind(std::vector<int32_t>{1, 0, 0});
  EmbedArgs args = {.words = word.data(),
                    .words_stride = kStride,
                    .positions = at.data(),
                    .types = kind.data(),
                    .position_table = place.data(),
                    .type_table = type.data(),
                    .rows = 3,
                    .width = kWidth,
                    .stream = out.data()};
  ASSERT_EQ(world::Embed(args, {}), 0);
  for (size_t i = 0; i < kWidth; ++i) {
    EXPECT_EQ(out.values()[i], words[i] + types[kWidth + i] + places[3 * kWidth + i]);
    EXPECT_EQ(out.values()[kWidth + i], words[kStride + i] + types[i] + places[i]);
    EXPECT_EQ(out.values()[2 * kWidth + i], 0);
  }
  args.type_table = nullptr;
  ASSERT_EQ(world::Embed(args, {}), 0);
  EXPECT_EQ(out.values()[0], words[0] + places[3 * kWidth]);
}

// Three sequences of 5, 1 and 20 rows; rows of no sequence are NaN.
class PoolCase {
 public:
  static constexpr size_t kWidth = 300;
  std::vector<float> Run(bool first, bool normalize) const {
    DeviceArray<float> out(lengths_.size() * kWidth), in(stream_);
    DeviceArray<int32_t> first_rows(first_rows_), lengths(lengths_);
    EXPECT_EQ(world::Pool({.stream = in.data(),
                           .first_rows = first_rows.data(),
                           .lengths = lengths.data(),
                           .first = first,
                           .normalize = normalize,
                           .sequences = static_cast<int>(lengths_.size()),
                           .width = kWidth,
                           .out = out.data()},
                          {}),
              0);
    return out.values();
  }
  // As the CPU adds it up.
  float Mean(size_t sequence, size_t column) const {
    const auto from = static_cast<size_t>(first_rows_[sequence]);
    float sum = stream_[from * kWidth + column];
    for (size_t row = 1; row < static_cast<size_t>(lengths_[sequence]); ++row)
      sum += stream_[(from + row) * kWidth + column];
    return sum * (1.0f / static_cast<float>(lengths_[sequence]));
  }
  float First(size_t sequence, size_t column) const {
    return stream_[static_cast<size_t>(first_rows_[sequence]) * kWidth + column];
  }
  PoolCase() {
    for (size_t row : {5, 7}) std::fill_n(stream_.begin() + row * kWidth, kWidth, NAN);
  }

 private:
  const std::vector<int32_t> first_rows_ = {0, 6, 8}, lengths_ = {5, 1, 20};
  std::vector<float> stream_ = RandomNormal(28 * kWidth, 13);
};

TEST_P(EncoderEndsTest, PoolsTheMeanInTheOrderOfRowsOrTheFirst) {
  const PoolCase pool;
  const auto mean = pool.Run(false, false), first = pool.Run(true, false);
  for (size_t s = 0; s < 3; ++s) {
    for (size_t i = 0; i < PoolCase::kWidth; ++i) {
      EXPECT_EQ(mean[s * PoolCase::kWidth + i], pool.Mean(s, i));
      EXPECT_EQ(first[s * PoolCase::kWidth + i], pool.First(s, i));
    }
  }
}

TEST_P(EncoderEndsTest, NormalizedVectorsHaveLengthOne) {
  const PoolCase pool;
  const auto plain = pool.Run(false, false), unit = pool.Run(false, true);
  for (size_t s = 0; s < 3; ++s) {
    double squares = 0;
    const size_t begin = s * PoolCase::kWidth;
    for (size_t i = begin; i < begin + PoolCase::kWidth; ++i)
      squares += plain[i] * double{plain[i]};
    for (size_t i = begin; i < begin + PoolCase::kWidth; ++i)
      EXPECT_NEAR(unit[i], plain[i] / std::sqrt(squares), 1e-6);
  }
}

// Zeros have no direction: they stay, and are no NaN.
TEST(EncoderEndsZeroTest, NormalizingZerosGivesZeros) {
  DeviceArray<float> in(std::vector<float>(8, 0.0f)), out(8);
  DeviceArray<int32_t> first(std::vector<int32_t>{0}), length(std::vector<int32_t>{1});
  ASSERT_EQ(world::Pool({.stream = in.data(),
                         .first_rows = first.data(),
                         .lengths = length.data(),
                         .normalize = true,
                         .sequences = 1,
                         .width = 8,
                         .out = out.data()},
                        {}),
            0);
  EXPECT_EQ(out.values(), std::vector<float>(8, 0.0f));
}

TEST_P(EncoderEndsTest, DenseRowsDoNotDependOnTheirNumber) {
  constexpr int kN = 19, kK = 77;
  const std::vector<float> x = RandomNormal(4 * kK, 14), w = RandomNormal(kN * kK, 15),
                           bias = RandomNormal(kN, 16);
  const std::vector<int32_t> picked = {3, 0};
  DeviceArray<float> xs(x), ws(w), biases(bias), y(2 * kN), alone(kN);
  DeviceArray<int32_t> pick(picked), last(std::vector<int32_t>{0});
  DenseArgs args = {.x = xs.data(),
                    .pick = pick.data(),
                    .w = ws.data(),
                    .bias = biases.data(),
                    .rows = 2,
                    .n = kN,
                    .k = kK,
                    .gate = Gate::kTanh,
                    .y = y.data()};
  ASSERT_EQ(world::Dense(args, {}), 0);
  std::vector<float> expected;
  for (const int32_t row : picked) {
    for (size_t n = 0; n < kN; ++n) {
      double sum = bias[n];
      for (size_t k = 0; k < kK; ++k)
        sum += double{x[static_cast<size_t>(row) * kK + k]} * w[n * kK + k];
      expected.push_back(static_cast<float>(std::tanh(sum)));
    }
  }
  // |x w| is 0.64 on average: 77 of them 50, times 77 2^-24.
  EXPECT_THAT(y.values(), Pointwise(FloatNear(2.3e-4f), expected));
  args.rows = 1;
  args.pick = last.data();
  args.y = alone.data();
  ASSERT_EQ(world::Dense(args, {}), 0);
  const std::vector<float> both = y.values();
  EXPECT_EQ(alone.values(), std::vector<float>(both.begin() + kN, both.end()));
  args.pick = nullptr;  // row 0 itself
  DeviceArray<float> again(kN);
  args.y = again.data();
  ASSERT_EQ(world::Dense(args, {}), 0);
  EXPECT_EQ(again.values(), alone.values());
}

}  // namespace
}  // namespace assay
