// Scheme "nvfp4": blocks of 16 E2M1 elements with an E4M3 scale each and one f32 scale for the
// weight, as compressed-tensors stores it (nvfp4-pack-quantized).
//
//   codes   u8 [n, ceil(k / 2)]   byte j of a row: element 2j in bits 0-3, 2j + 1 in bits 4-7
//   scales  E4M3 [n, blocks]      blocks = k / 16 rounded up: the last of a row may be short
//   extra   "global_scale" f32 [1]: G, which divides (ModelOpt's weight_scale_2 is 1 / G)
//
//   w ~ element * (scale / G)     G = 448 * 6 / absmax of the weight (1 if that is 0)
//   scale = E4M3(G * (absmax of the block / 6)); 0.125 where that is 0
//
// G is at most FLT_MAX: weights below 8e-36 throughout lose precision.
#include <cfloat>

#include "quant/schemes/code_book.h"
#include "quant/schemes/schemes.h"
#include "quant/schemes/value_range.h"

namespace assay {
namespace {

constexpr int64_t kBlock = 16;
constexpr float kLargestElement = 6, kLargestScale = 448;

class Nvfp4 final : public BlockScheme<CodeBookFormat<E2M1Book>> {
 public:
  Nvfp4() : BlockScheme("nvfp4", kBlock) {}
  int64_t scale_rows(const Shape& w) const override { return w[0]; }

 private:
  WeightLayout Layout(const Shape& w) const override {
    WeightLayout layout;
    layout.codes = CodesSpec(w);
    layout.scales = {DType::kF8E4M3, {w[0], NumBlocks(w)}};
    layout.extra[0] = {"global_scale", {DType::kF32, {1}}};
    return layout;
  }
  void FitSteps(TensorView w, std::span<const float> shrink, QuantizedTensor& grid) const override {
    const float absmax = AbsMax(w.as<float>(), w.shape.elements());
    const float global =
        absmax == 0 ? 1 : std::min(kLargestScale * kLargestElement / absmax, FLT_MAX);
    *grid.extra["global_scale"].data<float>() = global;
    ForEachBlock(w, [&](int64_t index, const float* from, int64_t count) {
      const float most = (shrink.empty() ? 1 : shrink[index]) * AbsMax(from, count);
      const uint8_t scale = F32ToE4M3(global * (most / kLargestElement));
      grid.scales.data<uint8_t>()[index] = scale == 0 ? F32ToE4M3(0.125f) : scale;
    });
  }
  void Steps(const QuantizedTensor& q, const BlockRange& range, Step* out) const override {
    const int64_t blocks = q.scales.shape()[1];
    const float global = *Global(q);
    for (int64_t row = range.row; row < range.row + range.rows; ++row) {
      for (int64_t b = range.block; b < range.block + range.blocks; ++b, ++out)
        out->scale = E4M3ToF32(q.scales.data<uint8_t>()[row * blocks + b]) / global;
    }
  }
  bool zero_rows_have_no_scale() const override { return false; }
  static const float* Global(const QuantizedTensor& q) {
    return q.extra.find("global_scale")->second.data<float>();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeNvfp4(std::span<const std::string> options) {
  RETURN_IF_ERROR(CheckNoOptions(options));
  return std::make_unique<Nvfp4>();
}

}  // namespace assay
