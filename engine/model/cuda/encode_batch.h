// A batch of whole sequences as kernels of encoders read it: one block of int32 in device memory.
// Pure; any thread.
#pragma once
#include <cstdint>
#include <span>

#include "engine/ops/batch.h"
#include "engine/ops/cuda/kv_layout.h"

namespace assay {

struct EncodeSizes {
  int rows = 0;  // EvenRows (cuda_batch.h) of those of the batch
  int sequences = 0, tiles = 0;
};
EncodeSizes EncodeSizesOf(const ForwardBatch& batch);

// Where things lie, in int32 from the block's beginning.
struct EncodeLayout {
  explicit EncodeLayout(const EncodeSizes& sizes);
  size_t tokens, positions, types;  // [rows]; tokens and positions of padding: -1
  size_t first_rows, lengths;       // [sequences]
  size_t tiles;                     // QueryTile [tiles]
  size_t end;
};
// Positions count from `position_offset`. REQUIRES: sizes = EncodeSizesOf(batch); out
// [EncodeLayout(sizes).end].
void FillEncodeBatch(const ForwardBatch& batch, int position_offset, std::span<int32_t> out);

}  // namespace assay
