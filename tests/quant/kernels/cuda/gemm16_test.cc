// Against f64 sums. Tolerance: products are exact, at most k / 16 + 2 sums round, each by 2^-22 at
// most of S = sum |x w|; y in T by half an ulp more.
#include "quant/kernels/cuda/gemm16.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/quant/kernels/cuda/device_weight.h"

namespace assay::ASSAY_WORLD {
namespace {

struct Problem {
  int m, n, k, side = 0;
  bool bias = false, accumulate = false, y_is_t = false;
};

template <typename T>
struct Operands {
  explicit Operands(const Problem& p)
      : x(RandomOf<T>(static_cast<size_t>(p.m) * p.k, 1)),
        w(RandomOf<T>(static_cast<size_t>(p.n) * p.k, 2)),
        bias(RandomNormal(p.n, 3)),
        old_y(RandomNormal(static_cast<int64_t>(p.m) * p.n, 4)) {}
  std::vector<T> x, w;
  std::vector<float> bias, old_y;
};

template <typename T>
std::vector<float> Multiplied(const Problem& p, const Operands<T>& in) {
  const size_t count = static_cast<size_t>(p.m) * p.n;
  const DeviceArray<T> x(in.x), w(in.w), y_in_t(count);
  const DeviceArray<float> bias(in.bias), y(count);
  if (p.accumulate) std::copy(in.old_y.begin(), in.old_y.end(), y.data());
  Gemm16Args args = {.x = x.data(), .w = w.data(), .m = p.m, .n = p.n, .k = p.k};
  args.x_stride = args.w_stride = p.k;
  args.y_stride = p.n;
  args.bias = p.bias ? bias.data() : nullptr;
  args.y = p.y_is_t ? static_cast<void*>(y_in_t.data()) : y.data();
  args.y_is_t = p.y_is_t;
  args.accumulate = p.accumulate;
  args.side = p.side;
  args.t = kHalfOf<T>;
  EXPECT_EQ(Gemm16Refuses(args, WorldCompute()), nullptr);
  EXPECT_EQ(Ran(Gemm16(args, {})), 0);
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = p.y_is_t ? ToFloat(y_in_t[i]) : y[i];
  return out;
}

// The largest error in units of the tolerance.
template <typename T>
double Error(const Problem& p, const Operands<T>& in, const std::vector<float>& y) {
  const double half_ulp = !p.y_is_t ? 0 : std::is_same_v<T, F16> ? 0x1p-11 : 0x1p-8;
  double worst = 0;
  for (int row = 0; row < p.m; ++row) {
    for (int column = 0; column < p.n; ++column) {
      const size_t at = static_cast<size_t>(row) * p.n + column;
      double sum = 0, size = 0;
      for (int i = 0; i < p.k; ++i) {
        const double product =
            static_cast<double>(ToFloat(in.x[static_cast<size_t>(row) * p.k + i])) *
            ToFloat(in.w[static_cast<size_t>(column) * p.k + i]);
        sum += product;
        size += std::fabs(product);
      }
      if (p.bias) sum += in.bias[column];
      if (p.accumulate) sum += in.old_y[at];
      const double tolerance = (size + 4) * (p.k / 16.0 + 2) * 0x1p-22 + half_ulp * std::fabs(sum);
      const double error = std::fabs(y[at] - sum) / tolerance;
      if (!(error == error)) return 1e30;
      worst = std::max(worst, error);
    }
  }
  return worst;
}

template <typename T>
double Error(const Problem& p) {
  if (!WorldTakes(kHalfOf<T>)) return 0;
  const Operands<T> in(p);
  return Error(p, in, Multiplied(p, in));
}

class Gemm16Test : public testing::TestWithParam<Order> {
 protected:
  Gemm16Test() { SetWorldOrder(GetParam()); }
  ~Gemm16Test() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Orders, Gemm16Test, testing::ValuesIn(WorldOrders()));

TEST_P(Gemm16Test, MultipliesOddShapes) {
  EXPECT_LE(Error<F16>({.m = 1, .n = 1, .k = 8}), 1);
  EXPECT_LE(Error<F16>({.m = 17, .n = 65, .k = 264, .bias = true}), 1);
  EXPECT_LE(Error<Bf16>({.m = 65, .n = 31, .k = 136, .accumulate = true}), 1);
  EXPECT_LE(Error<Bf16>({.m = 3, .n = 70, .k = 200, .bias = true, .y_is_t = true}), 1);
}

TEST_P(Gemm16Test, MultipliesInLargeTiles) {
  EXPECT_LE(Error<F16>({.m = 131, .n = 70, .k = 72, .side = 128, .bias = true, .accumulate = true}),
            1);
  EXPECT_LE(Error<Bf16>({.m = 40, .n = 129, .k = 104, .side = 128, .y_is_t = true}), 1);
}

TEST(Gemm16InvarianceTest, RowsDoNotDependOnEachOtherNorOnTheTile) {
  const Problem p = {.m = 70, .n = 40, .k = 328, .side = 64};
  const Operands<F16> in(p);
  const std::vector<float> all = Multiplied(p, in);
  Problem large = p, few = p;
  large.side = 128;
  few.m = 3;
  EXPECT_EQ(Multiplied(large, in), all);
  Operands<F16> first = in;
  first.x.resize(size_t{3} * 328);
  EXPECT_THAT(Multiplied(few, first), testing::ElementsAreArray(all.data(), size_t{3} * 40));
}

TEST(Gemm16MistakeTest, ATransposedPairIsNoticed) {
  const Problem p = {.m = 5, .n = 9, .k = 64};
  Operands<F16> in(p);
  const std::vector<float> y = Multiplied(p, in);
  std::swap(in.w[130], in.w[131]);
  EXPECT_GT(Error(p, in, y), 1);
}

TEST(Gemm16RefusalTest, SaysWhyNot) {
  const Gemm16Args sound = {.m = 1, .n = 1, .k = 8, .x_stride = 8, .w_stride = 8, .y_stride = 1};
  EXPECT_EQ(Gemm16Refuses(sound, 75), nullptr);
  const auto refused = [&](auto change, const char* why) {
    Gemm16Args changed = sound;
    change(changed);
    EXPECT_THAT(Gemm16Refuses(changed, 75), testing::HasSubstr(why));
  };
  refused([](Gemm16Args& a) { a.n = 0; }, "at least 1");
  refused([](Gemm16Args& a) { a.k = 12; }, "multiple of 8");
  refused([](Gemm16Args& a) { a.t = Half::kBf16; }, "8.0");
  refused([](Gemm16Args& a) { a.w_stride = 12; }, "aligned");
  refused([](Gemm16Args& a) { a.y_stride = 0; }, "hold n");
  refused([](Gemm16Args& a) { a.side = 32; }, "64 or 128");
  refused([](Gemm16Args& a) { a.accumulate = a.y_is_t = true; }, "f32");
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
