#include "engine/model/ggml_blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/float16.h"

namespace assay {
namespace {

constexpr uint32_t kF16 = 1, kQ4_0 = 2, kQ6_K = 14;

std::span<const std::byte> AsBytes(std::span<const uint8_t> bytes) { return std::as_bytes(bytes); }

TEST(GgmlBlocksTest, ReadsEveryF16AsTheScalarConversionDoes) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> values(halves.size());
  DecodeElements(*FindGgmlFormat(kF16), std::as_bytes(std::span(halves)).data(), 0, values);
  for (size_t i = 0; i < halves.size(); ++i) {
    const float expected = F16ToF32(halves[i]);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(values[i])) << i;
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(expected)) << i;
    }
  }
}

// By hand from the layout: byte j of the codes holds q[j] | q[j + 16] << 4; d = 2.
std::array<uint8_t, 18> HandMadeQ4_0() {
  std::array<uint8_t, 18> block{};
  const uint16_t d = F32ToF16(2.0f);
  std::memcpy(block.data(), &d, sizeof d);
  for (int j = 0; j < 16; ++j) block[2 + j] = static_cast<uint8_t>(j | (15 - j) << 4);
  return block;
}

TEST(GgmlBlocksTest, DecodesAHandMadeQ4_0Block) {
  const auto block = HandMadeQ4_0();
  std::array<float, 32> values;
  DecodeElements(*FindGgmlFormat(kQ4_0), AsBytes(block).data(), 0, values);
  for (int j = 0; j < 16; ++j) {
    EXPECT_EQ(values[j], 2.0f * static_cast<float>(j - 8));
    EXPECT_EQ(values[j + 16], 2.0f * static_cast<float>(7 - j));
  }
}

TEST(GgmlBlocksTest, SeesASwappedNibble) {
  auto block = HandMadeQ4_0();
  block[5] = static_cast<uint8_t>(block[5] << 4 | block[5] >> 4);
  std::array<float, 32> values;
  DecodeElements(*FindGgmlFormat(kQ4_0), AsBytes(block).data(), 0, values);
  EXPECT_NE(values[3], 2.0f * (3 - 8));
}

TEST(GgmlBlocksTest, ReadsARangeThatBeginsAndEndsInsideBlocks) {
  const BlockFormat& format = *FindGgmlFormat(kQ6_K);
  std::vector<uint8_t> bytes(3 * 210);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 37 + i / 7);
  for (size_t block = 0; block < 3; ++block) bytes[block * 210 + 209] = 0x3c;  // scales stay finite
  std::vector<float> all(3 * 256);
  DecodeElements(format, AsBytes(bytes).data(), 0, all);
  for (const auto& [first, count] : std::vector<std::pair<size_t, size_t>>{
           {0, 0}, {5, 3}, {255, 2}, {100, 600}, {256, 256}, {700, 68}}) {
    std::vector<float> part(count);
    DecodeElements(format, AsBytes(bytes).data(), static_cast<int64_t>(first), part);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + static_cast<int64_t>(first)))
        << first << "+" << count;
  }
}

TEST(GgmlBlocksTest, KnowsSizesOfTypesThatItDoesNotRead) {
  const BlockFormat* iq4 = FindGgmlFormat(20);
  ASSERT_NE(iq4, nullptr);
  EXPECT_EQ(iq4->name, "iq4_nl");
  EXPECT_EQ(iq4->decode, nullptr);
  EXPECT_EQ(FindGgmlFormat(4), nullptr);  // Q4_2, withdrawn
  EXPECT_EQ(FindSafetensorsFormat("F31"), nullptr);
  EXPECT_EQ(FindSafetensorsFormat("I64")->block_bytes, 8);
}

}  // namespace
}  // namespace assay
