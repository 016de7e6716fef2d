// How tensor elements are stored in checkpoints (GGUF's blocks and the plain types of safetensors),
// and their conversion to f32. Byte layouts: ggml-common.h and ggml-quants.c of llama.cpp; they are
// drawn at each decoder in the .cc.
//
// Thread rule: constant tables and pure functions.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace assay {

struct BlockFormat {
  std::string_view name;  // "f32", "bf16", "q4_1", ... lower case
  int block_elements = 1;
  int block_bytes = 0;
  // Converts `num_blocks` adjacent blocks, at any alignment, to num_blocks * block_elements values.
  // Null where the size of a block is known but this build does not read its values.
  void (*decode)(const std::byte* blocks, int64_t num_blocks, float* out) = nullptr;
};

inline constexpr int kMaxBlockElements = 256;

// Null for a number that GGUF does not define.
const BlockFormat* FindGgmlFormat(uint32_t ggml_type);
// `dtype` as safetensors writes it ("BF16"). Null for a name that safetensors does not define.
const BlockFormat* FindSafetensorsFormat(std::string_view dtype);

// Elements [first, first + out.size()) of a run of blocks. REQUIRES: format.decode, and that the
// run holds them.
void DecodeElements(const BlockFormat& format, const std::byte* blocks, int64_t first,
                    std::span<float> out);

}  // namespace assay
