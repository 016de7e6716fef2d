// The same product for many rows, half again as fast: bounded weights.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds two products in 16 bit, saturating. With
// activations as u = code + 128 in [1, 255], one 16-bit sum may take products with FOUR weights
// (two vpmaddubsw and one vpaddw) without saturating if, among the four, the positive ones sum to
// at most 128 and so do the negative ones: 255 * 128 < 2^15. So W = W' + E, where W' obeys that
// bound and E, the excess, has 1 to 4 % of the weights of real models:
//
//   sum x w  =  sum u w'  -  128 sum w'  +  sum x e           exactly, all in integers
//
// The packed weights stay exact (small batches read them). A panel is bounded on its way to L1,
// once for many rows, by subtracting its excess; sum x e comes from a short sparse loop over the
// channel's excess, vectorised over rows. Per 64 products: 5 instructions instead of 8 and loads of
// half the size.
//
// The four weights of a bound are k = 8 j + {0, 1, 4, 5} and 8 j + {2, 3, 6, 7}.
#pragma once
#include <optional>

#include "base/tensor.h"
#include "quant/kernels/cpu/avx2_int8_bounded_micro.h"

namespace assay {

// The excess of a weight, by channel. Immutable.
struct Int8Excess {
  Tensor first;    // s32 [channels + 1]: channel c has entries [first[c], first[c + 1])
  Tensor index;    // s16 (unsigned) [entries]: the input i
  Tensor value;    // s8 [entries]: e = w - w'
  Tensor offsets;  // s32 [channels]: -128 * sum of w'

  Int8ExcessView view() const {
    return {first.data<int32_t>(), index.data<uint16_t>(), value.data<int8_t>(),
            offsets.data<int32_t>()};
  }
  double fraction(const Shape& w) const {
    return first.data<int32_t>()[first.shape()[0] - 1] / static_cast<double>(w.elements());
  }
  size_t bytes() const { return first.bytes() + index.bytes() + value.bytes() + offsets.bytes(); }

  // Of codes [n, k], channels = n rounded up to 16. Empty when the excess is so large (more than 8
  // % of the weights, or sums that f32 cannot hold exactly) that bounding does not pay.
  // ResourceExhausted.
  static absl::StatusOr<std::optional<Int8Excess>> Find(const int8_t* codes, const Shape& shape);
};

}  // namespace assay
