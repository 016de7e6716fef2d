// The rows of one forward pass: tokens of several sequences, concatenated (ragged), prefill chunks
// and single decode steps side by side.
#pragma once
#include <cstdint>
#include <span>

namespace assay {

struct SequenceSpan {
  int32_t first_row = 0;  // into ForwardBatch::tokens
  int32_t num_rows = 0;
  int32_t start_position = 0;  // of the first row; a row attends to [0, its own position]
  // Rows at or behind this position are decode steps, the others prefill: a property of the request
  // (its prompt's length), not of how its rows are batched.
  int32_t first_decode_position = INT32_MAX;
  std::span<const int32_t>
      blocks;         // KV blocks that cover [0, start_position + num_rows); empty for encoders
  int32_t slot = -1;  // of the sequence, where the KV pool has slots (engine/ops/kv_pool.h)
};

struct ForwardBatch {
  std::span<const int32_t> tokens;          // [rows]
  std::span<const SequenceSpan> sequences;  // cover all rows, in order
  std::span<const int32_t>
      logit_rows;  // decoders: rows whose logits are wanted, ascending; unused by encoders
  std::span<const int32_t> token_types;  // encoders: segment ids [rows], or empty = all 0
};

}  // namespace assay
