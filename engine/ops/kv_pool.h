// Storage of the paged KV cache: blocks of kBlockTokens positions. Who owns which block is decided
// above (engine/runtime/kv_cache.h); attention reads and writes through block numbers.
//
// Beside blocks of integer codes a recipe may ask for rows in 16 bit (KvFormat): a query at
// position p reads key and value j in f16 where j > p - window or j < sinks, in codes elsewhere.
// That depends on positions alone, so on no chunk and no batch. The blocks hold codes of every
// position; the f16 rows lie in a slot that a sequence has while it runs, `sinks` rows followed by
// a ring of `window`: position j of the last `window` in row sinks + j % window.
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

// What of the cache a recipe chooses.
struct KvFormat {
  // f32 (reference), f16, i8 or u4: engine/ops/kv_row.h; on a GPU f16, i8 or f8_e4m3
  DType dtype = DType::kF16;
  int window = 0, sinks = 0;  // positions in 16 bit, of i8 and u4 pools: see above

  KvFormat() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): a type alone is a format
  KvFormat(DType type, int window_tokens = 0, int sink_tokens = 0)
      : dtype(type), window(window_tokens), sinks(sink_tokens) {}
};

class KvPool {
 public:
  static constexpr int kBlockTokens = 16;
  struct Layout {
    int layers = 0, kv_heads = 0, head_dim = 0;
    DType dtype = DType::kF16;  // f32 (reference), f16, i8 or u4: engine/ops/kv_row.h
    std::shared_ptr<const KvKeys> keys = nullptr;  // i8 and u4; null: keys as they are
    int window = 0, sinks = 0;                     // i8 and u4: KvFormat
    int first_layer = 0;  // layers [first_layer, first_layer + layers) of a model, for parts of it
    // Of a GPU: f16, i8 or f8_e4m3, lies as engine/ops/cuda/kv_layout.h has it; f16 is the 16-bit
    // type of the model there. keys(), values() and slots are the CPU's.
    bool on_gpu = false;
    int64_t row_bytes() const {
      if (!on_gpu) return KvRowBytes(dtype, head_dim);
      const int64_t width = (head_dim + 15) / 16 * 16;
      return dtype == DType::kI8 || dtype == DType::kF8E4M3 ? width + 4 : 2 * width;
    }
    size_t block_bytes() const {  // K and V of all layers
      return static_cast<size_t>(int64_t{2} * layers * kv_heads * kBlockTokens * row_bytes());
    }
    bool holds(DType type) const { return IsKvDType(type) || (on_gpu && type == DType::kF8E4M3); }
    bool has_slots() const { return window + sinks > 0; }
    size_t slot_bytes() const {  // K and V of all layers, f16
      return static_cast<size_t>(int64_t{2} * layers * kv_heads * (sinks + window) * head_dim * 2);
    }
  };
  // `num_slots`: sequences that run at once; only has_slots() asks for any. ResourceExhausted;
  // InvalidArgument: sizes, an element type or keys that do not fit.
  static absl::StatusOr<KvPool> Create(Device& device, Layout layout, int num_blocks,
                                       int num_slots = 0);

  const Layout& layout() const { return layout_; }
  int num_blocks() const { return num_blocks_; }
  int num_slots() const { return num_slots_; }
  size_t bytes() const { return storage_.bytes() + slots_.bytes(); }
  std::byte* storage() { return storage_.data<std::byte>(); }
  // Keys of one layer and head in one block: kBlockTokens rows of row_bytes(). Values likewise.
  std::byte* keys(int layer, int block, int head) { return At(layer, block, 0, head); }
  std::byte* values(int layer, int block, int head) { return At(layer, block, 1, head); }
  const std::byte* keys(int layer, int block, int head) const {
    return const_cast<KvPool*>(this)->At(layer, block, 0, head);
  }
  const std::byte* values(int layer, int block, int head) const {
    return const_cast<KvPool*>(this)->At(layer, block, 1, head);
  }
  // [sinks + window, head_dim] f16: what one layer and head keeps in a slot.
  uint16_t* slot_keys(int layer, int slot, int head) { return InSlot(layer, slot, 0, head); }
  uint16_t* slot_values(int layer, int slot, int head) { return InSlot(layer, slot, 1, head); }
  const uint16_t* slot_keys(int layer, int slot, int head) const {
    return const_cast<KvPool*>(this)->InSlot(layer, slot, 0, head);
  }
  const uint16_t* slot_values(int layer, int slot, int head) const {
    return const_cast<KvPool*>(this)->InSlot(layer, slot, 1, head);
  }

 private:
  KvPool(Tensor storage, Tensor slots, Layout layout)
      : storage_(std::move(storage)), slots_(std::move(slots)), layout_(std::move(layout)) {}
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
  // slots_: [num_slots, layers, 2, kv_heads, sinks + window, head_dim]
  uint16_t* InSlot(int layer, int slot, int k_or_v, int head) {
    const auto tile = static_cast<size_t>(layout_.sinks + layout_.window) * layout_.head_dim;
    const size_t index =
        ((static_cast<size_t>(slot) * layout_.layers + (layer - layout_.first_layer)) * 2 +
         k_or_v) *
            layout_.kv_heads +
        head;
    return slots_.data<uint16_t>() + index * tile;
  }
  Tensor storage_, slots_;
  Layout layout_;
  int num_blocks_ = 0, num_slots_ = 0;
};

}  // namespace assay
