#include "engine/ops/kv_pool.h"

#include "absl/strings/str_cat.h"

namespace assay {

absl::StatusOr<KvPool> KvPool::Create(Device& device, Layout layout, int num_blocks) {
  if (layout.layers <= 0 || layout.kv_heads <= 0 || layout.head_dim <= 0 || num_blocks <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "KV pool needs positive sizes: layers=", layout.layers, " kv_heads=", layout.kv_heads,
        " head_dim=", layout.head_dim, " blocks=", num_blocks));
  }
  if (layout.dtype != DType::kF32 && layout.dtype != DType::kF16) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV pool holds f32 or f16: dtype=", std::string(Name(layout.dtype))));
  }
  const int64_t elements = static_cast<int64_t>(layout.block_bytes() / (Bits(layout.dtype) / 8));
  ASSIGN_OR_RETURN(Tensor storage,
                   Tensor::Create(device, Shape{num_blocks, elements}, layout.dtype));
  return KvPool(std::move(storage), layout, num_blocks);
}

}  // namespace assay
