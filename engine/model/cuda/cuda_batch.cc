#include "engine/model/cuda/cuda_batch.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace assay {
namespace {

constexpr size_t kTileInts = sizeof(QueryTile) / sizeof(int32_t);

// Graphs are captured for so many rows (reference: every step of a GPU costs the same up to the
// next tile of its products).
constexpr std::array kBuckets = {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256};

int FirstDecodeRow(const SequenceSpan& s) {
  return std::clamp(s.first_decode_position - s.start_position, 0, s.num_rows);
}
int TilesOf(const SequenceSpan& s) {
  return (FirstDecodeRow(s) + kQueryTileRows - 1) / kQueryTileRows;
}

}  // namespace

int TableWidth(int64_t blocks) {
  int width = 16;
  while (width < blocks) width *= 2;
  return width;
}

CudaStepSizes StepSizesOf(const ForwardBatch& batch) {
  CudaStepSizes sizes = {.rows = static_cast<int>(batch.tokens.size()),
                         .sequences = static_cast<int>(batch.sequences.size()),
                         .logit_rows = static_cast<int>(batch.logit_rows.size()),
                         .max_blocks = TableWidth(0)};
  for (const SequenceSpan& s : batch.sequences) {
    sizes.tiles += TilesOf(s);
    sizes.decode |= FirstDecodeRow(s) < s.num_rows;
    sizes.max_blocks = std::max(sizes.max_blocks, TableWidth(std::ssize(s.blocks)));
  }
  return sizes;
}

CudaStepSizes Bucketed(CudaStepSizes sizes, int most_rows) {
  for (const int bucket : kBuckets) {
    if (sizes.tiles > 0) break;
    if (bucket < sizes.rows) continue;
    const int rows = std::min(bucket, most_rows);
    if (rows < sizes.rows) break;
    return {.rows = rows,
            .sequences = rows,
            .logit_rows = rows,
            .max_blocks = sizes.max_blocks,
            .decode = true};
  }
  sizes.rows = EvenRows(sizes.rows);
  sizes.logit_rows = EvenRows(sizes.logit_rows);
  return sizes;
}

CudaBatchLayout::CudaBatchLayout(const CudaStepSizes& sizes) {
  end = 0;
  const auto take = [&](int64_t count) {
    const size_t begin = end;
    end += (static_cast<size_t>(count) + 3) / 4 * 4;  // 16 bytes
    return begin;
  };
  tokens = take(sizes.rows);
  positions = take(sizes.rows);
  decode_positions = take(sizes.rows);
  sequence_of_row = take(sizes.rows);
  block_tables = take(int64_t{sizes.sequences} * sizes.max_blocks);
  logit_rows = take(sizes.logit_rows);
  wanted = take(sizes.logit_rows);
  scales = take(sizes.logit_rows);
  tiles = take(static_cast<int64_t>(kTileInts) * sizes.tiles);
}

void FillCudaBatch(const ForwardBatch& batch, const CudaStepSizes& sizes, std::span<int32_t> out) {
  const CudaBatchLayout at(sizes);
  std::fill(out.begin(), out.begin() + static_cast<ptrdiff_t>(at.end), 0);
  int32_t* const ints = out.data();
  std::fill_n(ints + at.tokens, sizes.rows, -1);
  std::fill_n(ints + at.positions, 2 * (at.decode_positions - at.positions), -1);
  std::copy(batch.tokens.begin(), batch.tokens.end(), ints + at.tokens);
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), ints + at.logit_rows);
  size_t tile = at.tiles;
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const SequenceSpan& s = batch.sequences[i];
    const auto index = static_cast<int32_t>(i);
    const int first_decode = FirstDecodeRow(s);
    for (int row = 0; row < s.num_rows; ++row) {
      const int at_row = s.first_row + row;
      ints[at.positions + at_row] = s.start_position + row;
      if (row >= first_decode) ints[at.decode_positions + at_row] = s.start_position + row;
      ints[at.sequence_of_row + at_row] = index;
    }
    std::copy(s.blocks.begin(), s.blocks.end(), ints + at.block_tables + i * sizes.max_blocks);
    for (int row = 0; row < first_decode; row += kQueryTileRows, tile += kTileInts) {
      const QueryTile next = {s.first_row + row, std::min(kQueryTileRows, first_decode - row),
                              index, s.start_position + row};
      std::memcpy(ints + tile, &next, sizeof(next));
    }
  }
}

}  // namespace assay
