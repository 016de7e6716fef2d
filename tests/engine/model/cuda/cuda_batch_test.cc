// The block of numbers that kernels read a batch from, and the plan of a step's memory.
#include "engine/model/cuda/cuda_batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <numeric>
#include <vector>

#include "engine/model/cuda/step_candidates.h"
#include "engine/model/cuda/step_memory.h"

namespace assay {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

// A prompt of 70 rows from position 5 on, a decode step, and a prompt's end with what was answered
// to it, as after a preemption.
struct Mixed {
  std::vector<int32_t> tokens = std::vector<int32_t>(75);
  std::vector<int32_t> blocks[3] = {{9, 8, 7, 6, 5}, {1, 2}, {3}};
  std::vector<int32_t> logit_rows = {69, 70, 74};
  std::vector<SequenceSpan> sequences;
  ForwardBatch batch;

  Mixed() {
    std::iota(tokens.begin(), tokens.end(), 100);
    sequences = {{.first_row = 0, .num_rows = 70, .start_position = 5, .blocks = blocks[0]},
                 {.first_row = 70,
                  .num_rows = 1,
                  .start_position = 20,
                  .first_decode_position = 18,
                  .blocks = blocks[1]},
                 {.first_row = 71,
                  .num_rows = 4,
                  .start_position = 2,
                  .first_decode_position = 4,
                  .blocks = blocks[2]}};
    batch = {.tokens = tokens, .sequences = sequences, .logit_rows = logit_rows};
  }
};

TEST(CudaBatchTest, CountsWhatABatchNeeds) {
  const Mixed mixed;
  const CudaStepSizes sizes = StepSizesOf(mixed.batch);
  EXPECT_EQ(sizes.rows, 75);
  EXPECT_EQ(sizes.sequences, 3);
  EXPECT_EQ(sizes.logit_rows, 3);
  EXPECT_EQ(sizes.tiles, 3);  // 64 and 6 rows, then 2
  EXPECT_TRUE(sizes.decode);
  EXPECT_EQ(sizes.max_blocks, 16);
  CudaStepSizes even = sizes;
  even.rows = 76;
  EXPECT_EQ(Bucketed(sizes, 256), even);  // prompts are not captured
}

TEST(CudaBatchTest, WritesEveryRowWhereKernelsLook) {
  const Mixed mixed;
  const CudaStepSizes sizes = Bucketed(StepSizesOf(mixed.batch), 256);
  const CudaBatchLayout at(sizes);
  std::vector<int32_t> ints(at.end + 1, 77);
  FillCudaBatch(mixed.batch, sizes, ints);
  EXPECT_EQ(ints[at.end], 77);
  for (size_t row = 0; row < 75; ++row) {
    const size_t sequence = row < 70 ? 0 : row < 71 ? 1 : 2;
    const int32_t position = static_cast<int32_t>(row < 70 ? 5 + row : row < 71 ? 20 : row - 69);
    const bool decode = row == 70 || row >= 73;
    EXPECT_EQ(ints[at.tokens + row], 100 + static_cast<int32_t>(row));
    EXPECT_EQ(ints[at.positions + row], position);
    EXPECT_EQ(ints[at.decode_positions + row], decode ? position : -1) << row;
    EXPECT_EQ(ints[at.sequence_of_row + row], static_cast<int32_t>(sequence));
  }
  EXPECT_EQ(ints[at.tokens + 75], -1);
  EXPECT_EQ(ints[at.positions + 75], -1);
  EXPECT_EQ(ints[at.decode_positions + 75], -1);
  EXPECT_EQ(ints[at.block_tables + 1], 8);
  EXPECT_EQ(ints[at.block_tables + 16], 1);
  EXPECT_EQ(ints[at.block_tables + 32], 3);
  EXPECT_THAT(std::vector<int32_t>(ints.begin() + static_cast<ptrdiff_t>(at.logit_rows),
                                   ints.begin() + static_cast<ptrdiff_t>(at.logit_rows) + 3),
              ElementsAre(69, 70, 74));
  const auto* const tiles = reinterpret_cast<const QueryTile*>(ints.data() + at.tiles);
  EXPECT_EQ(tiles[1].first_row, 64);
  EXPECT_EQ(tiles[1].num_rows, 6);
  EXPECT_EQ(tiles[1].start_position, 69);
  EXPECT_EQ(tiles[2].first_row, 71);
  EXPECT_EQ(tiles[2].num_rows, 2);
  EXPECT_EQ(tiles[2].sequence, 2);
}

TEST(CudaBatchTest, DecodeStepsFillTheirBucketWithPadding) {
  const std::vector<int32_t> tokens = {4, 5, 6}, blocks(20, 3), logit_rows = {0, 1, 2};
  std::vector<SequenceSpan> sequences;
  for (int32_t i = 0; i < 3; ++i) {
    sequences.push_back({.first_row = i,
                         .num_rows = 1,
                         .start_position = 300,
                         .first_decode_position = 10,
                         .blocks = blocks});
  }
  const ForwardBatch batch{.tokens = tokens, .sequences = sequences, .logit_rows = logit_rows};
  const CudaStepSizes sizes = Bucketed(StepSizesOf(batch), 256);
  EXPECT_EQ(sizes.rows, 4);
  EXPECT_EQ(sizes.sequences, 4);
  EXPECT_EQ(sizes.logit_rows, 4);
  EXPECT_EQ(sizes.max_blocks, 32);
  const CudaBatchLayout at(sizes);
  std::vector<int32_t> ints(at.end, 77);
  FillCudaBatch(batch, sizes, ints);
  EXPECT_EQ(ints[at.tokens + 3], -1);
  EXPECT_EQ(ints[at.positions + 3], -1);
  EXPECT_EQ(ints[at.decode_positions + 3], -1);
  EXPECT_EQ(ints[at.logit_rows + 3], 0);
  EXPECT_EQ(Bucketed(StepSizesOf(batch), 3).rows, 3);  // the largest that is allowed
  EXPECT_EQ(Bucketed(StepSizesOf(batch), 0), StepSizesOf(batch));
}

// Two rows of candidates among four: one of all, one of its head.
TEST(StepCandidatesTest, TellTheDeviceWhatIsWantedAndTakeThatAlone) {
  std::vector<RankedLogit> room(kMostCandidates + 1);
  std::vector<RowCandidates> candidates(4);
  candidates[1] = {.room = std::span(room).first(kMostCandidates), .scale = 2.5f};
  candidates[2] = {.room = std::span(room).last(1)};
  const CudaStepSizes sizes = {.rows = 8, .sequences = 8, .logit_rows = 8, .max_blocks = 16};
  const CudaBatchLayout at(sizes);
  std::vector<int32_t> ints(at.end);
  FillCudaBatch({}, sizes, ints);
  FillWanted(candidates, sizes, ints);
  EXPECT_THAT(std::span(ints).subspan(at.wanted, 8), ElementsAre(0, 256, 1, 0, 0, 0, 0, 0));
  EXPECT_EQ(std::bit_cast<float>(ints[at.scales + 1]), 2.5f);
  EXPECT_EQ(CountWanted(candidates).heads, 3u);
  EXPECT_EQ(CountWanted(candidates).ranked, 2u);

  const std::vector<RowHead> heads = {{}, {{5, 6}, {9, 77}}, {{7, 7}, {8, 4}}, {{1, 1}, {2, 2}}};
  std::vector<RankedLogit> ranked(2 * kMostCandidates);
  ranked[kMostCandidates] = {9, 77};
  ranked[kMostCandidates + 2] = {3, 5};
  const std::vector<float> logits(4 * 3);
  TakeCandidates({heads.data(), ranked.data(), logits.data(), 3}, candidates);
  EXPECT_EQ(candidates[0].count, 0u);
  ASSERT_EQ(candidates[1].count, 3u);  // the vocabulary
  EXPECT_EQ(candidates[1].ranked()[2].token, 5);
  EXPECT_EQ(candidates[1].sums.scaled, 6);
  EXPECT_EQ(candidates[1].logits, reinterpret_cast<const std::byte*>(logits.data() + 3));
  ASSERT_EQ(candidates[2].count, 1u);
  EXPECT_EQ(candidates[2].ranked()[0].token, 4);
  EXPECT_EQ(candidates[2].sums.plain, 7);
  EXPECT_FALSE(candidates[2].undecided);
}

TEST(StepCandidatesTest, ABrokenRowIsWantedAsItIs) {
  std::vector<RankedLogit> room(1);
  std::vector<RowCandidates> candidates = {{.room = room}};
  const RowHead broken = {{}, {0, -1}};
  const float logits[3] = {};
  TakeCandidates({&broken, nullptr, logits, 3}, candidates);
  EXPECT_EQ(candidates[0].count, 0u);
  EXPECT_TRUE(candidates[0].undecided);
  EXPECT_NE(candidates[0].logits, nullptr);
}

TEST(StepMemoryTest, PiecesDoNotOverlapAndHoldWhatTheyMust) {
  const StepWidths widths = {.hidden = 64,
                             .q = 64,
                             .kv = 32,
                             .ffn = 172,
                             .vocab = 512,
                             .heads = 8,
                             .kv_heads = 4,
                             .splits = 2};
  CudaStepSizes sizes = {
      .rows = 4, .sequences = 4, .logit_rows = 8, .max_blocks = 16, .decode = true};
  StepMemory at(widths, sizes);
  at.Need({.expanded_bytes = 100, .padded_bytes = 70, .partial_floats = 10, .counters = 3});
  at.Need({.expanded_bytes = 50, .partial_floats = 20, .counters = 2, .workspace_bytes = 1024});
  at.Need({.workspace_bytes = 512});
  at.Close();
  const std::vector<std::pair<size_t, size_t>> pieces = {
      {at.ints, CudaBatchLayout(sizes).end * 4},
      {at.stream, 4u * 4 * 64},
      {at.normed, 2u * 8 * 172},
      {at.row_scales, 4u * 8},
      {at.wide, 4u * 4 * 344},
      {at.q, 2u * 4 * 64},
      {at.attended, 2u * 4 * 64},
      {at.logits, 4u * 8 * 512},
      {at.heads, sizeof(RowHead) * 8},
      {at.ranked, 8u * 256 * 8},
      {at.attention_partial, 4u * 4 * 8 * 2 * 10},
      {at.expanded, 100},
      {at.padded, 70},
      {at.workspace, 1024},
      {at.partial, 80},
      {at.counters, 12},
      {at.arrived, 4u * 4 * 4}};
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto [begin, bytes] = pieces[i];
    const size_t next = i + 1 < pieces.size() ? pieces[i + 1].first : at.end;
    EXPECT_EQ(begin % 256, 0u);
    EXPECT_LE(begin + bytes, next) << i;
    EXPECT_LT(next, begin + bytes + 512) << i;  // nothing is wasted either
  }
  EXPECT_GE(at.counters + at.counter_bytes, at.arrived + 4u * 4 * 4);  // both are zeroed
}

}  // namespace
}  // namespace assay
