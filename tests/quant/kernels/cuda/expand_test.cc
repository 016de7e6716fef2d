// Bit for bit T(what the scheme decodes).
#include "quant/kernels/cuda/expand.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/quant/kernels/cuda/device_weight.h"
#include "tests/support/scheme_testing.h"

namespace assay::ASSAY_WORLD {
namespace {

template <typename T>
std::vector<uint16_t> Expanded(const DeviceWeight& w, int row, int rows, int stride) {
  const DeviceArray<T> out(static_cast<size_t>(rows) * stride);
  const ExpandArgs args = {.w = w.stored,
                           .out = out.data(),
                           .row = row,
                           .rows = rows,
                           .out_stride = stride,
                           .t = kHalfOf<T>};
  EXPECT_EQ(ExpandRefuses(args, WorldCompute()), nullptr);
  EXPECT_EQ(Ran(Expand(args, {})), 0);
  std::vector<uint16_t> bits;
  for (const T v : out.values()) bits.push_back(v.bits);
  return bits;
}

// What is not written stays NaN: 0xffff.
template <typename T>
std::vector<uint16_t> Expected(const DeviceWeight& w, int row, int rows, int stride) {
  const int k = w.stored.k;
  std::vector<uint16_t> bits(static_cast<size_t>(rows) * stride, 0xffff);
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < k; ++i)
      bits[static_cast<size_t>(r) * stride + i] =
          FromFloat<T>(w.decoded[static_cast<size_t>(row + r) * k + i]).bits;
  }
  return bits;
}

class ExpandTest : public testing::TestWithParam<std::string> {
 protected:
  ~ExpandTest() override { SetWorldOrder(Order::kAscending); }
};
INSTANTIATE_TEST_SUITE_P(Schemes, ExpandTest,
                         testing::Values("f32", "bf16", "int4_group", "int4_group:g32,asym",
                                         "int4_group:g64,float", "int4_group:row,signed_max",
                                         "int8_channel", "int8_group:g32", "int8_group:g64,asym",
                                         "fp8_e4m3", "fp8_e4m3:tensor", "fp8_e4m3:block", "nf4",
                                         "nf4:b32", "nf4:double"),
                         [](const auto& info) { return TestName(info.param); });

TEST_P(ExpandTest, IsExact) {
  for (const Order order : WorldOrders()) {
    SetWorldOrder(order);
    for (const int k : {1, 17, 264, 331}) {
      const DeviceWeight w = MakeWeight(GetParam(), 131, k, 3);
      EXPECT_EQ(Expanded<F16>(w, 0, 131, k), Expected<F16>(w, 0, 131, k)) << k;
      if (!WorldTakes(Half::kBf16)) continue;
      EXPECT_EQ(Expanded<Bf16>(w, 126, 5, k + 8), Expected<Bf16>(w, 126, 5, k + 8)) << k;
    }
  }
}

TEST_P(ExpandTest, NoticesAnotherWeight) {
  const DeviceWeight w = MakeWeight(GetParam(), 3, 40, 3);
  const DeviceWeight other = MakeWeight(GetParam(), 3, 40, 4);
  EXPECT_NE(Expanded<F16>(w, 0, 3, 40), Expected<F16>(other, 0, 3, 40));
}

TEST(ExpandRefusalTest, SaysWhyNot) {
  const ExpandArgs sound = {
      .w = {.storage = Storage::kNf4, .n = 4, .k = 64, .group = 32}, .rows = 4, .out_stride = 64};
  EXPECT_EQ(ExpandRefuses(sound, 75), nullptr);
  const auto refused = [&](auto change, const char* why) {
    ExpandArgs changed = sound;
    change(changed);
    EXPECT_THAT(ExpandRefuses(changed, 75), testing::HasSubstr(why));
  };
  refused([](ExpandArgs& a) { a.row = 1; }, "lie in the weight");
  refused([](ExpandArgs& a) { a.rows = 0; }, "lie in the weight");
  refused([](ExpandArgs& a) { a.out_stride = 63; }, "hold k");
  refused([](ExpandArgs& a) { a.t = Half::kBf16; }, "8.0");
  refused([](ExpandArgs& a) { a.w.group = 12; }, "multiples of 8");
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
