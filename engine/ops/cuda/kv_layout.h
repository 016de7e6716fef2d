// How the KV cache and a batch lie in device memory. Who owns which block is the host's business
// (engine/runtime/kv_cache.h); kernels read lengths and block numbers on the device, so that a
// captured graph serves every batch that fits its grid.
//
// A block holds kKvBlockTokens positions of all KV heads. Of one layer:
//
//   codes   [blocks][kv_heads][2][kKvBlockTokens][KvWidth]  keys, then values; T, s8 or e4m3
//   scales  [blocks][kv_heads][2][kKvBlockTokens]           f32, only beside s8 and e4m3
//
// Rows are padded with zeros to a multiple of 16 elements, so every row begins at 16 aligned bytes.
// x ~ scale * code, one scale per position and head: s8 as EncodeKvI8 of engine/ops/kv_row.h has
// it, absmax / 127; e4m3 absmax / 448. A row with NaN or infinity has scale NaN and codes 0.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/cuda/simt.h"

namespace assay {

enum class KvCodes : int { kHalf, kS8, kE4m3 };

// One layer of the pool. Device memory.
struct KvLayer {
  void* codes = nullptr;    // as drawn above
  float* scales = nullptr;  // nullptr: KvCodes::kHalf
  KvCodes format = KvCodes::kHalf;
  int kv_heads = 0, head_dim = 0;
};

// Rows of one forward pass, ragged. Device memory.
struct DeviceBatch {
  const int32_t* tokens = nullptr;           // [rows]
  const int32_t* positions = nullptr;        // [rows]; -1: padding, which kernels skip
  const int32_t* sequence_of_row = nullptr;  // [rows]
  // [sequences][max_blocks]; only entries that cover a sequence's length are valid.
  const int32_t* block_tables = nullptr;
  int rows = 0, max_blocks = 0;
};

// Up to kQueryTileRows rows of one sequence, in order; how a sequence is cut into tiles is free and
// changes no result. num_rows 0: padding.
struct QueryTile {
  int32_t first_row = 0, num_rows = 0;
  int32_t sequence = 0, start_position = 0;  // of the first row
};
constexpr int kQueryTileRows = 64;

constexpr int kKvBlockTokens = 16;

// Elements between two rows of a block.
ASSAY_BOTH constexpr int KvWidth(int head_dim) { return (head_dim + 15) / 16 * 16; }
// Bytes of one code.
ASSAY_BOTH constexpr int KvCodeBytes(KvCodes format) { return format == KvCodes::kHalf ? 2 : 1; }
// Of one layer. Bytes.
ASSAY_BOTH constexpr size_t KvCodesBytes(KvCodes format, int blocks, int kv_heads, int head_dim) {
  return size_t{2} * kKvBlockTokens * blocks * kv_heads * KvWidth(head_dim) * KvCodeBytes(format);
}
ASSAY_BOTH constexpr size_t KvScalesBytes(KvCodes format, int blocks, int kv_heads) {
  return format == KvCodes::kHalf ? 0
                                  : size_t{2} * kKvBlockTokens * blocks * kv_heads * sizeof(float);
}

// Row 0 of the keys (k_or_v = 0) or values (1) of one block and head, in rows.
ASSAY_BOTH int64_t KvFirstRow(int kv_heads, int block, int head, int k_or_v) {
  return ((static_cast<int64_t>(block) * kv_heads + head) * 2 + k_or_v) * kKvBlockTokens;
}

// Why kernels do not take such a pool, or nullptr.
inline const char* KvLayerRefuses(const KvLayer& kv) {
  if (kv.head_dim < 2 || kv.head_dim > 256 || kv.head_dim % 2 != 0)
    return "head_dim must be even, 2 to 256";
  if (kv.kv_heads < 1) return "there must be KV heads";
  if ((kv.scales != nullptr) != (kv.format != KvCodes::kHalf))
    return "s8 and e4m3 rows have scales, others none";
  return nullptr;
}

}  // namespace assay
