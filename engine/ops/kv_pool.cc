#include "engine/ops/kv_pool.h"

#include "absl/strings/str_cat.h"

namespace assay {

absl::StatusOr<KvPool> KvPool::Create(Device& device, Layout layout, int num_blocks,
                                      int num_slots) {
  if (layout.layers <= 0 || layout.kv_heads <= 0 || layout.head_dim <= 0 || num_blocks <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "KV pool needs positive sizes: layers=", layout.layers, " kv_heads=", layout.kv_heads,
        " head_dim=", layout.head_dim, " blocks=", num_blocks));
  }
  if (!layout.holds(layout.dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV pool holds f32, f16, i8 or u4 (f8_e4m3 on a GPU): dtype=",
                     std::string(Name(layout.dtype))));
  }
  const bool codes = layout.dtype == DType::kI8 || layout.dtype == DType::kU4;
  if (layout.window < 0 || layout.sinks < 0 || (layout.has_slots() && (!codes || num_slots <= 0))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rows in 16 bit lie beside a pool of i8 or u4, in slots: window=", layout.window,
        " sinks=", layout.sinks, " slots=", num_slots, " dtype=", std::string(Name(layout.dtype))));
  }
  const size_t channels = static_cast<size_t>(layout.layers) * layout.kv_heads * layout.head_dim;
  if (layout.keys != nullptr &&
      (layout.keys->mean.size() != channels || layout.keys->scale.size() != channels ||
       layout.keys->inverse_scale.size() != channels ||
       layout.keys->int8_scores.size() != static_cast<size_t>(layout.layers))) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV pool needs a mean and a scale for every channel of its keys: means=",
                     layout.keys->mean.size(), " expected=", channels));
  }
  ASSIGN_OR_RETURN(
      Tensor storage,
      Tensor::Create(device, Shape{num_blocks, static_cast<int64_t>(layout.block_bytes())},
                     DType::kU8));
  Tensor slots;
  if (layout.has_slots()) {
    ASSIGN_OR_RETURN(
        slots,
        Tensor::Create(device, Shape{num_slots, static_cast<int64_t>(layout.slot_bytes() / 2)},
                       DType::kF16));
  }
  KvPool pool(std::move(storage), std::move(slots), std::move(layout));
  pool.num_blocks_ = num_blocks;
  pool.num_slots_ = pool.layout_.has_slots() ? num_slots : 0;
  return pool;
}

}  // namespace assay
