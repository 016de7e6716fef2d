// Against f64 sums over what the scheme decodes.
//
// Tolerance. A product of x and a code is exact, so only sums round: at most k / 16 + 16 of them
// (16 products at a time, units, warps, parts of k, scale, bias, y), each by 2^-22 at most (tensor
// cores cut off) of what it adds, at most S = sum |x w|. nf4's values are rounded to T before:
// by 2^-11 (f16), 2^-8 (bf16) of S. y in T: likewise of |y|.
#include "quant/kernels/cuda/skinny.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "tests/quant/kernels/cuda/device_weight.h"
#include "tests/support/scheme_testing.h"

namespace assay::ASSAY_WORLD {
namespace {

template <typename T>
constexpr double kHalfUlp = sizeof(T) == 4 ? 0 : 0x1p-11;
template <>
constexpr double kHalfUlp<Bf16> = 0x1p-8;

struct Problem {
  std::string spelling;
  int m, n, k;
  bool bias = false, accumulate = false, y_is_t = false;
  int x_pad = 0, y_pad = 0;  // behind the rows
};

template <typename T>
class SkinnyRun {
 public:
  explicit SkinnyRun(const Problem& p)
      : p_(p),
        w_(MakeWeight(p.spelling, p.n, p.k, 7)),
        x_(RandomOf<T>(static_cast<size_t>(p.m) * p.k, 8)),
        bias_(RandomNormal(p.n, 9)),
        old_y_(RandomNormal(static_cast<int64_t>(p.m) * p.n, 10)) {}

  // y [m, n], from the first m rows of x; what lies behind the rows of y is still NaN.
  std::vector<double> Run(int m) const {
    const size_t x_stride = static_cast<size_t>(p_.k) + p_.x_pad;
    const size_t y_stride = static_cast<size_t>(p_.n) + p_.y_pad;
    const DeviceArray<T> x(m * x_stride), y_in_t(m * y_stride);
    const DeviceArray<float> bias(bias_), y(m * y_stride);
    for (int row = 0; row < m; ++row) {
      std::copy_n(x_.begin() + ptrdiff_t{row} * p_.k, p_.k, x.data() + row * x_stride);
      if (p_.accumulate)
        std::copy_n(old_y_.begin() + ptrdiff_t{row} * p_.n, p_.n, y.data() + row * y_stride);
    }
    const DeviceArray<float> workspace(SkinnyWorkspaceFloats(m, p_.n, p_.k));
    const DeviceArray<int> counters(std::vector<int>(static_cast<size_t>(SkinnyCounters(m, p_.n))));
    SkinnyArgs args = {.x = x.data(), .w = w_.stored, .m = m};
    args.x_stride = static_cast<int>(x_stride);
    args.y_stride = static_cast<int>(y_stride);
    args.t = kHalfOf<T>;
    args.bias = p_.bias ? bias.data() : nullptr;
    args.y = p_.y_is_t ? static_cast<void*>(y_in_t.data()) : y.data();
    args.y_is_t = p_.y_is_t;
    args.accumulate = p_.accumulate;
    args.workspace = workspace.data();
    args.counters = counters.data();
    EXPECT_EQ(SkinnyRefuses(args, WorldCompute()), nullptr);
    EXPECT_EQ(Ran(Skinny(args, {})), 0);
    EXPECT_THAT(counters.values(), testing::Each(0));
    std::vector<double> out;
    for (size_t i = 0; i < m * y_stride; ++i) {
      const float v = p_.y_is_t ? ToFloat(y_in_t[i]) : y[i];
      if (i % y_stride < static_cast<size_t>(p_.n)) {
        out.push_back(v);
      } else {
        EXPECT_TRUE(std::isnan(v)) << "written behind row " << i / y_stride;
      }
    }
    return out;
  }

  // The largest error of `y` [p.m, p.n] in units of its tolerance.
  double Error(const std::vector<double>& y) const {
    const bool nf4 = p_.spelling.starts_with("nf4");
    double worst = 0;
    for (int row = 0; row < p_.m; ++row) {
      for (int column = 0; column < p_.n; ++column) {
        const size_t at = static_cast<size_t>(row) * p_.n + column;
        double sum = 0, size = 0;
        for (int i = 0; i < p_.k; ++i) {
          const double product =
              static_cast<double>(ToFloat(x_[static_cast<size_t>(row) * p_.k + i])) *
              w_.decoded[static_cast<size_t>(column) * p_.k + i];
          sum += product;
          size += std::fabs(product);
        }
        if (p_.bias) sum += bias_[column];
        if (p_.accumulate) sum += old_y_[at];
        size += std::fabs(sum) + 3;
        const double tolerance = size * ((p_.k / 16.0 + 16) * 0x1p-22 + (nf4 ? kHalfUlp<T> : 0)) +
                                 (p_.y_is_t ? kHalfUlp<T> * std::fabs(sum) : 0);
        const double error = std::fabs(y[at] - sum) / tolerance;
        worst = error <= worst ? worst : error;
        if (!(error == error)) return 1e30;
      }
    }
    return worst;
  }
  DeviceWeight& weight() { return w_; }

 private:
  Problem p_;
  DeviceWeight w_;
  std::vector<T> x_;
  std::vector<float> bias_, old_y_;
};

const std::vector<std::string>& Spellings() {
  static const std::vector<std::string> all = {"int4_group:g32",
                                               "int4_group:g64,asym",
                                               "int4_group",
                                               "int4_group:g32,asym",
                                               "int4_group:row,full",
                                               "int8_channel",
                                               "int8_group:g32",
                                               "int8_group:g64,asym",
                                               "fp8_e4m3",
                                               "fp8_e4m3:tensor",
                                               "fp8_e4m3:block",
                                               "nf4",
                                               "nf4:b32",
                                               "int4_group:signed_max",
                                               "int8_group:asym",
                                               "nf4:b128,double"};
  return all;
}

class SkinnyFormatTest : public testing::TestWithParam<std::string> {
 protected:
  ~SkinnyFormatTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Schemes, SkinnyFormatTest, testing::ValuesIn(Spellings()),
                         [](const auto& info) { return TestName(info.param); });

TEST_P(SkinnyFormatTest, MultipliesInF16) {
  for (const Order order : WorldOrders()) {
    SetWorldOrder(order);
    const Problem p = {.spelling = GetParam(), .m = 5, .n = 71, .k = 416, .bias = true};
    const SkinnyRun<F16> run(p);
    EXPECT_LE(run.Error(run.Run(p.m)), 1);
  }
}

TEST_P(SkinnyFormatTest, MultipliesInBf16) {
  if (!WorldTakes(Half::kBf16)) GTEST_SKIP() << kNoBf16;
  const bool bytes = GetParam().find("int8") == 0 || GetParam().find("fp8") == 0;
  const int k = bytes ? 176 : 160;  // the smallest steps that rows of 16-byte loads can make
  const Problem p = {.spelling = GetParam(), .m = 19, .n = 66, .k = k, .accumulate = true};
  const SkinnyRun<Bf16> run(p);
  EXPECT_LE(run.Error(run.Run(p.m)), 1);
}

TEST_P(SkinnyFormatTest, SharesKBetweenBlocks) {
  const Problem p = {
      .spelling = GetParam(), .m = 3, .n = 9, .k = 1312, .bias = true, .y_is_t = true};
  ASSERT_GT(SkinnySplits(p.n, p.k), 1);
  SetWorldOrder(Order::kShuffled);
  const SkinnyRun<F16> run(p);
  EXPECT_LE(run.Error(run.Run(p.m)), 1);
}

// A row comes out the same whatever rows are beside it: tiles of 16, 32, 48, 64 rows and several.
TEST_P(SkinnyFormatTest, RowsDoNotDependOnEachOther) {
  const Problem p = {.spelling = GetParam(), .m = 70, .n = 8, .k = 1056};
  const SkinnyRun<F16> run(p);
  const std::vector<double> all = run.Run(p.m);
  EXPECT_LE(run.Error(all), 1);
  for (const int m : {1, 20, 40}) {
    const std::vector<double> some = run.Run(m);
    EXPECT_THAT(some, testing::ElementsAreArray(all.data(), some.size())) << m;
  }
}

// Every code of 8 bits, against zero points at both ends.
TEST(SkinnyTest, WidensEveryCode) {
  for (const std::string spelling : {"int8_channel", "int8_group:g32,asym", "fp8_e4m3"}) {
    SkinnyRun<Bf16> in_bf16({.spelling = spelling, .m = 1, .n = 256, .k = 32});
    SkinnyRun<F16> in_f16({.spelling = spelling, .m = 1, .n = 256, .k = 32});
    const auto widen = [&](auto& run) {
      DeviceWeight& w = run.weight();
      for (int code = 0; code < 256; ++code) {
        const bool nan = spelling == "fp8_e4m3" && (code & 0x7f) == 0x7f;
        w.host.codes.template data<uint8_t>()[code * 32 + code % 32] =
            static_cast<uint8_t>(nan || (code == 0x80 && spelling == "int8_channel") ? 0 : code);
        if (!w.host.zeros.empty())
          w.host.zeros.template data<uint8_t>()[code] =
              static_cast<uint8_t>(code % 2 == 0 ? 0 : 255);
      }
      std::memcpy(w.codes.data(), w.host.codes.template data<std::byte>(), w.codes.size());
      if (!w.host.zeros.empty())
        std::memcpy(w.zeros.data(), w.host.zeros.template data<std::byte>(), w.zeros.size());
      ASSERT_TRUE(w.host.scheme->DecodeRows(w.host, 0, 256, w.decoded).ok());
      EXPECT_LE(run.Error(run.Run(1)), 1) << spelling;
    };
    if (WorldTakes(Half::kBf16)) widen(in_bf16);
    widen(in_f16);
  }
}

TEST(SkinnyTest, KeepsToRowsWithinOthers) {
  const Problem p = {.spelling = "int4_group", .m = 18, .n = 65, .k = 288, .x_pad = 24, .y_pad = 3};
  const SkinnyRun<F16> run(p);
  EXPECT_LE(run.Error(run.Run(p.m)), 1);
}

TEST(SkinnyTest, FindsTheScaleOfEachBlockOfRows) {
  if (!WorldTakes(Half::kBf16)) GTEST_SKIP() << kNoBf16;
  const Problem p = {.spelling = "fp8_e4m3:block", .m = 2, .n = 200, .k = 272};
  const SkinnyRun<Bf16> run(p);
  EXPECT_LE(run.Error(run.Run(p.m)), 1);
}

// What the tolerance is worth: one code of one weight, or the scale of the row beside, is noticed.
TEST(SkinnyTest, NoticesAWrongCodeAndAWrongScale) {
  const Problem p = {.spelling = "int4_group:g32", .m = 5, .n = 16, .k = 256};
  SkinnyRun<F16> code(p), scale(p);
  code.weight().codes[1000] ^= std::byte{0x10};
  EXPECT_GT(code.Error(code.Run(p.m)), 1);
  std::swap(scale.weight().scales[0], scale.weight().scales[16]);
  EXPECT_GT(scale.Error(scale.Run(p.m)), 1);
}

TEST(SkinnyTest, SaysWhyNot) {
  SkinnyArgs args = {.m = 1, .x_stride = 64, .y_stride = 8};
  args.w = {.storage = Storage::kInt4Group, .n = 8, .k = 64, .group = 32};
  EXPECT_EQ(SkinnyRefuses(args, 75), nullptr);
  const auto refused = [&](auto change, int capability, const char* why) {
    SkinnyArgs changed = args;
    change(changed);
    EXPECT_THAT(SkinnyRefuses(changed, capability), testing::HasSubstr(why));
  };
  refused([](SkinnyArgs& a) { a.m = 0; }, 80, "at least 1");
  refused([](SkinnyArgs& a) { a.t = Half::kBf16; }, 75, "8.0");
  refused([](SkinnyArgs& a) { a.x_stride = 68; }, 80, "aligned");
  refused([](SkinnyArgs& a) { a.y_stride = 7; }, 80, "hold n");
  refused([](SkinnyArgs& a) { a.w.k = 48; }, 80, "multiples of 16 bytes");
  refused([](SkinnyArgs& a) { a.w.group = 48; }, 80, "powers of two");
  refused([](SkinnyArgs& a) { a.w.storage = Storage::kBf16; }, 80, "other kernels");
  refused([](SkinnyArgs& a) { a.w.storage = Storage::kInt4Float; }, 80, "expanded");
  refused([](SkinnyArgs& a) { a.accumulate = a.y_is_t = true; }, 80, "f32");
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
