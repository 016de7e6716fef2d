#include "quant/schemes/packed_codes.h"

#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace assay {
namespace {

using testing::ElementsAre;

template <int kBits>
std::vector<uint8_t> Packed(const std::vector<uint8_t>& codes) {
  const auto count = static_cast<int64_t>(codes.size());
  std::vector<uint8_t> out(static_cast<size_t>(PackedBytes<kBits>(count)), 0xee);
  PackCodes<kBits>(codes.data(), count, out.data());
  return out;
}

TEST(PackedCodesTest, FourBitsGoLowHalfFirst) {
  EXPECT_THAT(Packed<4>({0, 1, 2, 3, 4, 5, 6, 7}), ElementsAre(0x10, 0x32, 0x54, 0x76));
  EXPECT_THAT(Packed<4>({1, 2, 15}), ElementsAre(0x21, 0x0f));
}

// 0, 1, ..., 7 as a little-endian bit string is octal 76543210.
TEST(PackedCodesTest, ThreeBitsFillThreeBytesWithEightCodes) {
  EXPECT_THAT(Packed<3>({0, 1, 2, 3, 4, 5, 6, 7}),
              ElementsAre(076543210 & 255, 076543210 >> 8 & 255, 076543210 >> 16));
  EXPECT_THAT(Packed<3>({7, 7, 7}), ElementsAre(0xff, 0x01));
}

template <int kBits>
void ExpectRoundTrips() {
  for (int64_t count = 1; count < 70; ++count) {
    std::vector<uint8_t> codes(static_cast<size_t>(count)), back(codes.size());
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = (i * 37 + 11) % (1 << kBits);
    UnpackCodes<kBits>(Packed<kBits>(codes).data(), count, back.data());
    EXPECT_EQ(codes, back) << kBits << " bits, " << count;
  }
}
TEST(PackedCodesTest, UnpackingUndoesPackingAtEveryLength) {
  ExpectRoundTrips<3>();
  ExpectRoundTrips<4>();
  ExpectRoundTrips<8>();
}

}  // namespace
}  // namespace assay
