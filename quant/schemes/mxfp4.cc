// Scheme "mxfp4": OCP Microscaling Formats 1.0, MXFP4: blocks of 32 E2M1 elements that share a
// power of two. Conversion as microxcaling: e = floor(log2 absmax) - 2, elements rounded half to
// even, what exceeds 6 * 2^e saturates.
//
//   codes   u8 [n, ceil(k / 2)]   byte j of a row: element 2j in bits 0-3, 2j + 1 in bits 4-7
//           element: sign(1) exponent(2) mantissa(1): 0 .5 1 1.5 2 3 4 6
//   scales  u8 [n, blocks]        E8M0: 2^(s - 127); 255 is NaN. blocks = k / 32 rounded up: the
//                                 last block of a row may be short
//
// A block of zeros has s = 0. Scales are powers of two: no part of a range can be clipped.
#include <cmath>

#include "quant/schemes/code_book.h"
#include "quant/schemes/schemes.h"
#include "quant/schemes/value_range.h"

namespace assay {
namespace {

constexpr int64_t kBlock = 32;
constexpr int kLargestExponent = 2;  // of E2M1

class Mxfp4 final : public BlockScheme<CodeBookFormat<E2M1Book>> {
 public:
  Mxfp4() : BlockScheme("mxfp4", kBlock) {}

 private:
  WeightLayout Layout(const Shape& w) const override {
    WeightLayout layout;
    layout.codes = CodesSpec(w);
    layout.scales = {DType::kU8, {w[0], NumBlocks(w)}};
    return layout;
  }
  absl::Status CheckOptions(const Shape&, const FitOptions& options) const override {
    return CheckNoShrink(name(), options);
  }
  void FitSteps(TensorView w, std::span<const float>, QuantizedTensor& grid) const override {
    ForEachBlock(w, [&](int64_t index, const float* from, int64_t count) {
      const float absmax = AbsMax(from, count);
      grid.scales.data<uint8_t>()[index] =
          absmax == 0 ? 0 : E8M0Of(std::ilogb(absmax) - kLargestExponent);
    });
  }
  void Steps(const QuantizedTensor& q, const BlockRange& range, Step* out) const override {
    const int64_t blocks = q.scales.shape()[1];
    for (int64_t row = range.row; row < range.row + range.rows; ++row) {
      for (int64_t b = range.block; b < range.block + range.blocks; ++b, ++out)
        out->scale = E8M0ToF32(q.scales.data<uint8_t>()[row * blocks + b]);
    }
  }
  bool zero_rows_have_no_scale() const override { return false; }
};

}  // namespace

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeMxfp4(std::span<const std::string> options) {
  RETURN_IF_ERROR(CheckNoOptions(options));
  return std::make_unique<Mxfp4>();
}

}  // namespace assay
