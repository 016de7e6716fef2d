// Storage of the paged KV cache: one allocation, blocks of kBlockTokens positions. Who owns which
// block is decided above (engine/runtime/kv_cache.h); attention reads and writes through block
// numbers.
#pragma once
#include <memory>
#include <vector>

#include "base/tensor.h"
#include "engine/ops/kv_row.h"

namespace assay {

// How keys enter pools of integer codes, as calibration found it (quant/linear_parts.h): rows hold
// (key - mean) / scale, and attention multiplies queries by the scale.
struct KvKeys {
  // [layers, kv_heads, head_dim] each
  std::vector<float> mean, scale, inverse_scale;
  std::vector<uint8_t> int8_scores;  // [layers] of 0 or 1: queries too are quantized (i8 pools)
};

class KvPool {
 public:
  static constexpr int kBlockTokens = 16;
  struct Layout {
    int layers = 0, kv_heads = 0, head_dim = 0;
    DType dtype = DType::kF16;  // f32 (reference), f16, i8 or u4: engine/ops/kv_row.h
    std::shared_ptr<const KvKeys> keys = nullptr;  // i8 and u4; null: keys as they are
    int first_layer = 0;  // layers [first_layer, first_layer + layers) of a model, for parts of it
    int64_t row_bytes() const { return KvRowBytes(dtype, head_dim); }
    size_t block_bytes() const {  // K and V of all layers
      return static_cast<size_t>(int64_t{2} * layers * kv_heads * kBlockTokens * row_bytes());
    }
  };
  // ResourceExhausted; InvalidArgument: sizes, an element type or keys that do not fit.
  static absl::StatusOr<KvPool> Create(Device& device, Layout layout, int num_blocks);

  const Layout& layout() const { return layout_; }
  int num_blocks() const { return num_blocks_; }
  size_t bytes() const { return storage_.bytes(); }
  // Keys of one layer and head in one block: kBlockTokens rows of row_bytes(). Values likewise.
  std::byte* keys(int layer, int block, int head) { return At(layer, block, 0, head); }
  std::byte* values(int layer, int block, int head) { return At(layer, block, 1, head); }
  const std::byte* keys(int layer, int block, int head) const {
    return const_cast<KvPool*>(this)->At(layer, block, 0, head);
  }
  const std::byte* values(int layer, int block, int head) const {
    return const_cast<KvPool*>(this)->At(layer, block, 1, head);
  }

 private:
  KvPool(Tensor storage, Layout layout, int num_blocks)
      : storage_(std::move(storage)), layout_(layout), num_blocks_(num_blocks) {}
  // storage_: [num_blocks, layers, 2, kv_heads, kBlockTokens, row_bytes]
  std::byte* At(int layer, int block, int k_or_v, int head) {
    const auto tile = static_cast<size_t>(kBlockTokens * layout_.row_bytes());
    const size_t index =
        ((static_cast<size_t>(block) * layout_.layers + (layer - layout_.first_layer)) * 2 +
         k_or_v) *
            layout_.kv_heads +
        head;
    return storage_.data<std::byte>() + index * tile;
  }
  Tensor storage_;
  Layout layout_;
  int num_blocks_ = 0;
};

}  // namespace assay
