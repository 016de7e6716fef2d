// A batch as kernels read it: one block of int32 in device memory, whose places depend on sizes
// alone, so that a captured graph serves every batch that fits its sizes. Pure; any thread.
#pragma once
#include <cstdint>
#include <span>
#include <tuple>

#include "engine/ops/batch.h"
#include "engine/ops/cuda/kv_layout.h"
#include "quant/kernels/cuda/cuda_linear.h"

namespace assay {

// What a step is launched for; the batch has at most so much of each, the rest is padding.
struct CudaStepSizes {
  int rows = 0, sequences = 0, logit_rows = 0;
  int max_blocks = 0;   // of a sequence
  int tiles = 0;        // of prefill rows
  bool decode = false;  // there may be decode rows

  bool operator==(const CudaStepSizes&) const = default;
  bool operator<(const CudaStepSizes& other) const {
    const auto all = [](const CudaStepSizes& s) {
      return std::tie(s.rows, s.sequences, s.logit_rows, s.max_blocks, s.tiles, s.decode);
    };
    return all(*this) < all(other);
  }
};

// Entries of a table that holds so many blocks: a power of two, at least 16, so that few graphs
// serve all lengths.
int TableWidth(int64_t blocks);

// Exactly what a batch needs, but for max_blocks, which is a TableWidth: rows at or behind a
// sequence's first decode position are decode rows whatever they are batched with, all others go
// into tiles.
CudaStepSizes StepSizesOf(const ForwardBatch& batch);
// The same with rows and logits rounded up to the next bucket of at most `most_rows` rows, for
// batches of decode rows alone; of others, and of those that fit no bucket, to EvenRows.
CudaStepSizes Bucketed(CudaStepSizes sizes, int most_rows);
// So many rows or up to three more: products of many rows with scales in blocks take them in fours
// (quant/kernels/cuda/cuda_linear.h), and all rows of a step are to be multiplied alike.
constexpr int EvenRows(int rows) { return rows <= kFewRows ? rows : (rows + 3) / 4 * 4; }

// Where things lie, in int32 from the block's beginning.
struct CudaBatchLayout {
  explicit CudaBatchLayout(const CudaStepSizes& sizes);
  size_t tokens, positions;  // [rows]; -1: padding
  size_t decode_positions;   // [rows]; -1: not a decode row
  size_t sequence_of_row;    // [rows]
  size_t block_tables;       // [sequences][max_blocks]
  size_t logit_rows;         // [logit_rows]; padding: row 0
  size_t wanted, scales;     // [logit_rows]: how many candidates, and f32 (TopCandidatesArgs)
  size_t tiles;              // QueryTile [tiles]
  size_t end;
};
// No candidates are wanted. REQUIRES: the batch fits `sizes`; out [CudaBatchLayout(sizes).end].
void FillCudaBatch(const ForwardBatch& batch, const CudaStepSizes& sizes, std::span<int32_t> out);

}  // namespace assay
