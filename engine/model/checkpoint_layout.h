// What both containers come down to: tensors, each a run of blocks at an offset of a mapped file.
//
// Thread rule: plain data and pure functions.
#pragma once
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/tensor.h"
#include "engine/model/checkpoint.h"
#include "engine/model/ggml_blocks.h"

namespace assay {

struct StoredTensor {
  CheckpointTensor info;
  const BlockFormat* format = nullptr;
  size_t file = 0;      // index of its file in the checkpoint
  uint64_t offset = 0;  // of its first byte in that file
  // Heads whose rows the converter interleaved (GGUF, llama: pairs of RoPE adjacent); 0 = rows lie
  // as in `info.shape`.
  int64_t interleaved_heads = 0;
};

// A container as parsed: everything of a Checkpoint but its files.
struct CheckpointContents {
  std::vector<StoredTensor> tensors;
  nlohmann::json config = nlohmann::json::object();
  nlohmann::json tokenizer = nlohmann::json::object();
};

// Row-major shape [d0, d1, ...]; its bytes go to `stored_bytes`. InvalidArgument: more than 4
// dimensions, a product that overflows 2^62 bits, or rows that are not whole blocks (rank >= 1).
absl::Status SetShape(std::span<const uint64_t> dims, StoredTensor& tensor);

// Sorts by name. InvalidArgument for a name that occurs twice.
absl::Status SortByName(std::vector<StoredTensor>& tensors);

// All of one file; offsets relative to it. DataLoss for a tensor outside of [data_begin,
// file_bytes) or over another.
absl::Status CheckRanges(std::span<const StoredTensor> tensors, uint64_t data_begin,
                         uint64_t file_bytes);

// Checkpoint::ReadRows on the bytes of the tensor's file, after CheckRanges.
absl::Status DecodeRows(const StoredTensor& tensor, std::span<const std::byte> file, int64_t row,
                        int64_t rows, std::span<float> out);

}  // namespace assay
