// Bit for bit what the reference kernel makes of a8_token and int8_channel.
#include "quant/kernels/cuda/gemm_s8.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/quant/kernels/cuda/device_weight.h"

namespace assay::ASSAY_WORLD {
namespace {

struct Problem {
  int m, n, k, side = 0;
  bool bias = false, accumulate = false, y_is_t = false;
};

std::vector<int8_t> Codes(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int8_t> out(count);
  for (int8_t& v : out) v = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  return out;
}

struct Operands {
  explicit Operands(const Problem& p)
      : x(Codes(static_cast<size_t>(p.m) * p.k, 1)),
        w(Codes(static_cast<size_t>(p.n) * p.k, 2)),
        x_scales(RandomNormal(p.m, 3)),
        w_scales(RandomNormal(p.n, 4)),
        bias(RandomNormal(p.n, 5)),
        old_y(RandomNormal(static_cast<int64_t>(p.m) * p.n, 6)) {}
  std::vector<int8_t> x, w;
  std::vector<float> x_scales, w_scales, bias, old_y;
};

std::vector<float> Multiplied(const Problem& p, const Operands& in) {
  const size_t count = static_cast<size_t>(p.m) * p.n;
  const DeviceArray<int8_t> x(in.x), w(in.w);
  const DeviceArray<float> x_scales(in.x_scales), w_scales(in.w_scales), bias(in.bias), y(count);
  const DeviceArray<uint16_t> y_in_t(count);
  if (p.accumulate) std::copy(in.old_y.begin(), in.old_y.end(), y.data());
  GemmS8Args args = {.x = x.data(), .x_scales = x_scales.data(), .w = w.data()};
  args.w_scales = w_scales.data();
  args.bias = p.bias ? bias.data() : nullptr;
  args.y = p.y_is_t ? static_cast<void*>(y_in_t.data()) : y.data();
  args.m = p.m;
  args.n = args.y_stride = p.n;
  args.k = args.x_stride = args.w_stride = p.k;
  args.y_is_t = p.y_is_t;
  args.t = Half::kBf16;
  args.accumulate = p.accumulate;
  args.side = p.side;
  EXPECT_EQ(GemmS8Refuses(args), nullptr);
  EXPECT_EQ(Ran(GemmS8(args, {})), 0);
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = p.y_is_t ? Bf16ToF32(y_in_t[i]) : y[i];
  return out;
}

std::vector<float> Expected(const Problem& p, const Operands& in) {
  std::vector<float> y;
  for (int row = 0; row < p.m; ++row) {
    for (int column = 0; column < p.n; ++column) {
      int64_t sum = 0;
      for (int i = 0; i < p.k; ++i) {
        sum += int64_t{in.x[static_cast<size_t>(row) * p.k + i]} *
               in.w[static_cast<size_t>(column) * p.k + i];
      }
      float value = (in.x_scales[row] * in.w_scales[column]) * static_cast<float>(sum);
      if (p.bias) value += in.bias[column];
      if (p.accumulate) value = in.old_y[y.size()] + value;
      y.push_back(p.y_is_t ? Bf16ToF32(F32ToBf16(value)) : value);
    }
  }
  return y;
}

class GemmS8Test : public testing::TestWithParam<Order> {
 protected:
  GemmS8Test() { SetWorldOrder(GetParam()); }
  ~GemmS8Test() override { SetWorldOrder(Order::kAscending); }
  static void ExpectExact(const Problem& p) {
    const Operands in(p);
    EXPECT_EQ(Multiplied(p, in), Expected(p, in)) << p.m << " " << p.n << " " << p.k;
  }
};
INSTANTIATE_TEST_SUITE_P(Orders, GemmS8Test, testing::ValuesIn(WorldOrders()));

TEST_P(GemmS8Test, IsExactOnOddShapes) {
  ExpectExact({.m = 1, .n = 1, .k = 16});
  ExpectExact({.m = 17, .n = 65, .k = 528, .bias = true});
  ExpectExact({.m = 65, .n = 31, .k = 144, .bias = true, .accumulate = true});
  ExpectExact({.m = 4, .n = 70, .k = 272, .y_is_t = true});
}

TEST_P(GemmS8Test, IsExactInLargeTiles) {
  ExpectExact({.m = 131, .n = 70, .k = 80, .side = 128, .bias = true, .accumulate = true});
  ExpectExact({.m = 40, .n = 129, .k = 208, .side = 128});
}

// Sums beyond 2^24 round once on their way to f32.
TEST(GemmS8RangeTest, IsExactWhereSumsAreLarge) {
  const Problem p = {.m = 2, .n = 3, .k = 4096};
  Operands in(p);
  std::fill(in.x.begin(), in.x.end(), int8_t{127});
  std::fill(in.w.begin(), in.w.end(), int8_t{-127});
  in.w[5] = 3;
  EXPECT_EQ(Multiplied(p, in), Expected(p, in));
}

TEST(GemmS8RangeTest, ABrokenRowStaysVisible) {
  const Problem p = {.m = 2, .n = 3, .k = 16};
  Operands in(p);
  in.x_scales[1] = std::nanf("");
  const std::vector<float> y = Multiplied(p, in);
  EXPECT_TRUE(std::isfinite(y[2]));
  EXPECT_TRUE(std::isnan(y[3]) && std::isnan(y[5]));
}

TEST(GemmS8RangeTest, AWrongScaleIsNoticed) {
  const Problem p = {.m = 2, .n = 3, .k = 16};
  Operands in(p);
  const std::vector<float> y = Multiplied(p, in);
  std::swap(in.w_scales[0], in.w_scales[1]);
  EXPECT_NE(y, Expected(p, in));
}

TEST(GemmS8RefusalTest, SaysWhyNot) {
  const GemmS8Args sound = {.m = 1, .n = 1, .k = 16, .x_stride = 16, .w_stride = 16, .y_stride = 1};
  EXPECT_EQ(GemmS8Refuses(sound), nullptr);
  const auto refused = [&](auto change, const char* why) {
    GemmS8Args changed = sound;
    change(changed);
    EXPECT_THAT(GemmS8Refuses(changed), testing::HasSubstr(why));
  };
  refused([](GemmS8Args& a) { a.m = 0; }, "at least 1");
  refused([](GemmS8Args& a) { a.k = 24; }, "multiple of 16");
  refused([](GemmS8Args& a) { a.k = 262144; }, "at most 131072");
  refused([](GemmS8Args& a) { a.x_stride = 24; }, "aligned");
  refused([](GemmS8Args& a) { a.y_stride = 0; }, "hold n");
  refused([](GemmS8Args& a) { a.side = 96; }, "64 or 128");
  refused([](GemmS8Args& a) { a.accumulate = a.y_is_t = true; }, "f32");
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
