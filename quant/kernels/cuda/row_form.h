// The form in which rows of activations enter a product.
#pragma once

namespace assay {

enum class RowForm {
  kHalf,   // [width] 16 bit
  kS8,     // [width] codes and a scale per row: a8_token (quant/activation.h)
  kE4M3,   // the same: fp8_token
  kFloat,  // [width] f32; no product takes it
};

}  // namespace assay
