#include "engine/model/cuda/encode_batch.h"

#include <algorithm>
#include <cstring>

#include "engine/model/cuda/cuda_batch.h"

namespace assay {
namespace {

constexpr size_t kTileInts = sizeof(QueryTile) / sizeof(int32_t);

}  // namespace

EncodeSizes EncodeSizesOf(const ForwardBatch& batch) {
  EncodeSizes sizes = {.rows = EvenRows(static_cast<int>(batch.tokens.size())),
                       .sequences = static_cast<int>(batch.sequences.size())};
  for (const SequenceSpan& s : batch.sequences)
    sizes.tiles += (s.num_rows + kQueryTileRows - 1) / kQueryTileRows;
  return sizes;
}

EncodeLayout::EncodeLayout(const EncodeSizes& sizes) {
  end = 0;
  const auto take = [&](size_t count) {
    const size_t begin = end;
    end += (count + 3) / 4 * 4;  // 16 bytes
    return begin;
  };
  const auto rows = static_cast<size_t>(sizes.rows);
  const auto sequences = static_cast<size_t>(sizes.sequences);
  tokens = take(rows);
  positions = take(rows);
  types = take(rows);
  first_rows = take(sequences);
  lengths = take(sequences);
  tiles = take(kTileInts * static_cast<size_t>(sizes.tiles));
}

void FillEncodeBatch(const ForwardBatch& batch, int position_offset, std::span<int32_t> out) {
  const EncodeSizes sizes = EncodeSizesOf(batch);
  const EncodeLayout at(sizes);
  std::fill(out.begin(), out.begin() + static_cast<ptrdiff_t>(at.end), 0);
  int32_t* const ints = out.data();
  std::fill_n(ints + at.tokens, at.types - at.tokens, -1);
  std::copy(batch.tokens.begin(), batch.tokens.end(), ints + at.tokens);
  std::copy(batch.token_types.begin(), batch.token_types.end(), ints + at.types);
  int32_t* tile = ints + at.tiles;
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const SequenceSpan& s = batch.sequences[i];
    for (int32_t row = 0; row < s.num_rows; ++row)
      ints[at.positions + static_cast<size_t>(s.first_row + row)] = position_offset + row;
    ints[at.first_rows + i] = s.first_row;
    ints[at.lengths + i] = s.num_rows;
    for (int32_t row = 0; row < s.num_rows; row += kQueryTileRows, tile += kTileInts) {
      const QueryTile next = {s.first_row + row, std::min(kQueryTileRows, s.num_rows - row),
                              static_cast<int32_t>(i), row};
      std::memcpy(tile, &next, sizeof(next));
    }
  }
}

}  // namespace assay
