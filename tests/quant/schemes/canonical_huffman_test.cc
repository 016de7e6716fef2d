#include "quant/schemes/canonical_huffman.h"

#include <algorithm>
#include <cmath>

#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

std::array<int64_t, 256> Counts(std::span<const uint8_t> text) {
  std::array<int64_t, 256> counts{};
  for (const uint8_t symbol : text) ++counts[symbol];
  return counts;
}

std::vector<uint8_t> GaussianText(size_t size, float stddev) {
  std::vector<uint8_t> text;
  for (const float v : RandomNormal(static_cast<int64_t>(size), 4, stddev))
    text.push_back(static_cast<uint8_t>(std::clamp(std::lround(v), -127L, 127L) + 128));
  return text;
}

struct Coded {
  CodeLengths lengths;
  std::vector<uint8_t> bytes;
};
Coded Code(std::span<const uint8_t> text) {
  Coded coded{OptimalLengths(Counts(text)), {}};
  AppendTile(text, coded.lengths, CanonicalCodes(coded.lengths), coded.bytes);
  return coded;
}

TEST(CanonicalHuffmanTest, DecodesWhatItEncoded) {
  for (const size_t size : {size_t{1}, size_t{2}, size_t{17}, size_t{100000}}) {
    for (const float stddev : {0.01f, 1.0f, 40.0f}) {
      const std::vector<uint8_t> text = GaussianText(size, stddev);
      const Coded coded = Code(text);
      HuffmanDecoder decoder;
      ASSERT_OK(decoder.Init(coded.lengths));
      std::vector<uint8_t> back(size);
      EXPECT_TRUE(decoder.DecodeTile(coded.bytes, std::span(back)));
      EXPECT_EQ(text, back);
    }
  }
}

// RFC 1951, 3.2.2: the alphabet ABCDEFGH with lengths 3, 3, 3, 3, 3, 2, 4, 4.
TEST(CanonicalHuffmanTest, CodesAreThoseOfTheStandard) {
  CodeLengths lengths{};
  const int of_letters[] = {3, 3, 3, 3, 3, 2, 4, 4};
  for (size_t i = 0; i < 8; ++i) lengths['A' + i] = static_cast<uint8_t>(of_letters[i]);
  const std::array<uint16_t, 256> codes = CanonicalCodes(lengths);
  EXPECT_EQ(codes['A'], 0b010);
  EXPECT_EQ(codes['E'], 0b110);
  EXPECT_EQ(codes['F'], 0b00);
  EXPECT_EQ(codes['G'], 0b1110);
  EXPECT_EQ(codes['H'], 0b1111);
}

// The source's entropy bounds the mean length from both sides: H <= L < H + 1; for a Gaussian with
// a step of 0.37 standard deviations the excess is a few hundredths.
TEST(CanonicalHuffmanTest, LengthsAreCloseToTheEntropy) {
  const std::vector<uint8_t> text = GaussianText(200000, 2.7f);
  const std::array<int64_t, 256> counts = Counts(text);
  const CodeLengths lengths = OptimalLengths(counts);
  double entropy = 0, mean = 0;
  for (size_t s = 0; s < 256; ++s) {
    const double p = static_cast<double>(counts[s]) / static_cast<double>(text.size());
    if (p > 0) entropy -= p * std::log2(p);
    mean += p * lengths[s];
  }
  EXPECT_GE(mean, entropy);
  EXPECT_LE(mean, entropy + 0.06);
}

// Fibonacci counts want codes as long as the alphabet; the limit holds and the code is complete.
TEST(CanonicalHuffmanTest, NoCodeIsLongerThanTwelveBits) {
  std::array<int64_t, 256> counts{};
  int64_t a = 1, b = 1;
  for (size_t s = 0; s < 60; ++s) {
    counts[s] = a;
    b += a;
    std::swap(a, b);
  }
  const CodeLengths lengths = OptimalLengths(counts);
  double kraft = 0;
  for (size_t s = 0; s < 60; ++s) {
    EXPECT_GE(lengths[s], 1);
    EXPECT_LE(lengths[s], kMaxCodeLength);
    kraft += std::exp2(-lengths[s]);
  }
  EXPECT_EQ(kraft, 1);
}

TEST(CanonicalHuffmanTest, RefusesLengthsThatAreNoPrefixCode) {
  HuffmanDecoder decoder;
  CodeLengths lengths{};
  lengths[1] = lengths[2] = lengths[3] = 1;
  EXPECT_THAT(decoder.Init(lengths),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("symbol=3 length=1")));
  lengths = {};
  lengths[9] = 13;
  EXPECT_THAT(decoder.Init(lengths),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("symbol=9 length=13")));
}

TEST(CanonicalHuffmanTest, SeesATileThatIsCutOrTooLong) {
  const std::vector<uint8_t> text = GaussianText(1000, 3);
  Coded coded = Code(text);
  HuffmanDecoder decoder;
  ASSERT_OK(decoder.Init(coded.lengths));
  std::vector<uint8_t> back(text.size());
  for (size_t size = 0; size < coded.bytes.size(); ++size)
    ASSERT_FALSE(decoder.DecodeTile(std::span(coded.bytes).first(size), std::span(back))) << size;
  coded.bytes.push_back(0);
  EXPECT_FALSE(decoder.DecodeTile(coded.bytes, std::span(back)));
}

}  // namespace
}  // namespace assay
