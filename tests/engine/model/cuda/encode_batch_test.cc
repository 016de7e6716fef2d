// What kernels of encoders read, and where a step's operands lie.
#include "engine/model/cuda/encode_batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "engine/model/cuda/step_memory.h"

namespace assay {
namespace {

using ::testing::ElementsAre;

TEST(EncodeBatchTest, WritesEveryRowWhereKernelsLook) {
  std::vector<int32_t> tokens(73), types(73, 1);
  std::iota(tokens.begin(), tokens.end(), 100);
  const std::vector<SequenceSpan> sequences = {{.first_row = 0, .num_rows = 70},
                                               {.first_row = 70, .num_rows = 3}};
  ForwardBatch batch{.tokens = tokens, .sequences = sequences, .logit_rows = {}, .token_types = {}};
  const EncodeSizes sizes = EncodeSizesOf(batch);
  EXPECT_EQ(sizes.rows, 76);  // more than 64: in fours
  EXPECT_EQ(sizes.sequences, 2);
  EXPECT_EQ(sizes.tiles, 3);  // 64 and 6 rows, then 3
  const EncodeLayout at(sizes);
  std::vector<int32_t> ints(at.end + 1, 77);
  FillEncodeBatch(batch, /*position_offset=*/2, ints);
  EXPECT_EQ(ints[at.end], 77);
  for (size_t row = 0; row < 76; ++row) {
    const bool padding = row >= 73;
    const auto position = static_cast<int32_t>(2 + (row < 70 ? row : row - 70));
    EXPECT_EQ(ints[at.tokens + row], padding ? -1 : 100 + static_cast<int32_t>(row));
    EXPECT_EQ(ints[at.positions + row], padding ? -1 : position);
    EXPECT_EQ(ints[at.types + row], 0);
  }
  EXPECT_THAT(std::span(ints).subspan(at.first_rows, 2), ElementsAre(0, 70));
  EXPECT_THAT(std::span(ints).subspan(at.lengths, 2), ElementsAre(70, 3));
  EXPECT_THAT(std::span(ints).subspan(at.tiles, 12),
              ElementsAre(0, 64, 0, 0, 64, 6, 0, 64, 70, 3, 1, 0));
  batch.token_types = types;
  FillEncodeBatch(batch, 2, ints);
  EXPECT_EQ(ints[at.types + 72], 1);
  EXPECT_EQ(ints[at.types + 73], 0);
}

TEST(EncodeMemoryTest, PiecesDoNotOverlapAndHoldWhatTheyMust) {
  const EncodeSizes sizes = {.rows = 5, .sequences = 3, .tiles = 3};
  EncodeMemory at({.hidden = 40, .ffn = 72, .words = 64, .out = 7}, sizes);
  at.Need({.expanded_bytes = 100, .padded_bytes = 70, .partial_floats = 10, .counters = 3});
  at.Need({.workspace_bytes = 512});
  at.Close();
  const std::vector<std::pair<size_t, size_t>> pieces = {{at.ints, EncodeLayout(sizes).end * 4},
                                                         {at.stream, 4u * 5 * 40},
                                                         {at.normed, 2u * 5 * 72},
                                                         {at.row_scales, 4u * 5},
                                                         {at.wide, 4u * 5 * 120},
                                                         {at.qkv, 2u * 5 * 120},
                                                         {at.attended, 2u * 5 * 40},
                                                         {at.dense, 4u * 3 * 40},
                                                         {at.out, 4u * 3 * 7},
                                                         {at.expanded, 100},
                                                         {at.padded, 70},
                                                         {at.workspace, 512},
                                                         {at.partial, 40},
                                                         {at.counters, 12}};
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto [begin, bytes] = pieces[i];
    const size_t next = i + 1 < pieces.size() ? pieces[i + 1].first : at.end;
    EXPECT_EQ(begin % 256, 0u);
    EXPECT_LE(begin + bytes, next) << i;
    EXPECT_LT(next, begin + bytes + 512) << i;  // nothing is wasted either
  }
  EXPECT_GE(at.counter_bytes, 12u);  // they are zeroed
}

// Rows of the table may be wider than all else.
TEST(EncodeMemoryTest, WideRowsHoldPaddedWords) {
  const EncodeSizes sizes = {.rows = 4, .sequences = 1, .tiles = 1};
  const EncodeMemory at({.hidden = 4, .ffn = 4, .words = 32, .out = 4}, sizes);
  EXPECT_GE(at.qkv - at.wide, 4u * 4 * 32);
}

}  // namespace
}  // namespace assay
