// Scheme "w4a8[:g32|g64]": progressive 4 bit of QServe (QoQ, Lin et al. 2024): rows are quantized
// to 8 bit within the protective range of +-119, groups of those to 4 bit with integer scales, so
// that a product needs nothing but int8 until its end. Default: groups of 128.
//
//   codes   u8 [n, ceil(k / 2)]   byte j of a row: code 2j in bits 0-3, code 2j + 1 in bits 4-7
//   scales  u8 [n, groups]        s2 in [1, 16]; groups = k / group rounded up, the last of a row
//                                 may be short
//   zeros   u8 [n, ceil(groups / 2)]  z, 4 bits each, the even group in the low half
//   extra   "row_scales" f32 [n]      s1
//
//   v = (c - z) * s2, exactly, in [-127, 127]       w ~ v * s1
//
//   s1 = absmax of the row / 119
//   lo = min(0, min v8), hi = max(0, max v8) over v8 = rint(w / s1) of the group
//   s2 = max(1, rint((hi - lo) / 15)), z = clamp(rint(-lo / s2), 0, 15)
//   c  = clamp(rint(w / (s1 * s2)) + z, 0, 15)
// |v| <= 119 + s2 / 2 <= 127: why the range of the first step is 119. Codes round the weight
// itself, not its 8-bit value, which would round twice.
#include <cfloat>

#include "quant/schemes/affine_group.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

constexpr float kProtectiveRange = 119;

// scale = s1, base = s2, zero = z.
struct ProgressiveFormat {
  using Codes = AffineFormat<4, 0, false>;
  static constexpr int kBits = 4;
  static void Encode(const Step& step, const float* w, int64_t count, uint8_t* codes) {
    Codes::Encode({step.scale * step.base, step.zero, 0}, w, count, codes);
  }
  static void Decode(const Step& step, const uint8_t* codes, int64_t count, float* out) {
    const auto zero = static_cast<int>(step.zero), factor = static_cast<int>(step.base);
    const float scale = step.scale;
    for (int64_t i = 0; i < count; ++i)
      out[i] = static_cast<float>((codes[i] - zero) * factor) * scale;
  }
  static constexpr bool kHasIntegers = true, kRowScale = true;
  static int8_t Integer(const Step& step, uint8_t code) {
    return static_cast<int8_t>((code - static_cast<int>(step.zero)) * static_cast<int>(step.base));
  }
  static bool IsZero(const Step& step, uint8_t code) { return Codes::IsZero(step, code); }
  static bool IsEnd(const Step& step, uint8_t code) { return Codes::IsEnd(step, code); }
  static const char* Forbidden(const Step& step, uint8_t code) {
    if (step.base < 1 || step.base > 16) return "group scale is outside [1, 16]";
    const float value = (static_cast<float>(code) - step.zero) * step.base;
    return value < -127 || value > 127 ? "8-bit value is outside [-127, 127]" : nullptr;
  }
};

class W4A8 final : public BlockScheme<ProgressiveFormat> {
 public:
  explicit W4A8(const GroupOptions& options)
      : BlockScheme(GroupSpelling("w4a8", options), options.group) {}

 private:
  WeightLayout Layout(const Shape& w) const override {
    const int64_t n = w[0], blocks = NumBlocks(w);
    WeightLayout layout;
    layout.codes = CodesSpec(w);
    layout.scales = {DType::kU8, {n, blocks}};
    layout.zeros = {DType::kU8, {n, PackedBytes<4>(blocks)}};
    layout.extra[0] = {"row_scales", {DType::kF32, {n}}};
    return layout;
  }

  void FitSteps(TensorView w, std::span<const float> shrink, QuantizedTensor& grid) const override {
    const int64_t k = w.shape[1], blocks = NumBlocks(w.shape), stride = PackedBytes<4>(blocks);
    float* row_scales = grid.extra["row_scales"].data<float>();
    for (int64_t row = 0; row < w.shape[0]; ++row) {
      const float absmax = AbsMax(w.as<float>() + row * k, k);
      row_scales[row] = absmax <= FLT_MIN / 2 ? 0 : std::max(absmax / kProtectiveRange, FLT_MIN);
    }
    ForEachBlock(w, [&](int64_t index, const float* from, int64_t count) {
      const int64_t row = index / blocks, block = index % blocks;
      const float scale = row_scales[row], part = shrink.empty() ? 1 : shrink[index];
      ValueRange range = RangeOf(from, count);
      range = {std::min(0.0f, range.min), std::max(0.0f, range.max)};
      if (scale != 0) {
        range = {RoundHalfEven(part * RoundHalfEven(range.min / scale)),
                 RoundHalfEven(part * RoundHalfEven(range.max / scale))};
      } else {
        range = {0, 0};
      }
      const float factor = std::max(1.0f, RoundHalfEven((range.max - range.min) / 15));
      grid.scales.data<uint8_t>()[index] = static_cast<uint8_t>(factor);
      const auto zero = static_cast<int>(std::min(15.0f, RoundHalfEven(-range.min / factor)));
      grid.zeros.data<uint8_t>()[row * stride + block / 2] |=
          static_cast<uint8_t>(zero << (4 * (block % 2)));
    });
  }

  void Steps(const QuantizedTensor& q, const BlockRange& range, Step* out) const override {
    const int64_t blocks = q.scales.shape()[1], stride = q.zeros.shape()[1];
    const float* row_scales = q.extra.find("row_scales")->second.data<float>();
    for (int64_t row = range.row; row < range.row + range.rows; ++row) {
      for (int64_t b = range.block; b < range.block + range.blocks; ++b, ++out) {
        out->scale = row_scales[row];
        out->base = q.scales.data<uint8_t>()[row * blocks + b];
        out->zero =
            static_cast<float>(q.zeros.data<uint8_t>()[row * stride + b / 2] >> (4 * (b % 2)) & 15);
      }
    }
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeW4A8(std::span<const std::string> options) {
  static constexpr std::array<int64_t, 3> kGroups = {32, 64, 128};
  ASSIGN_OR_RETURN(const GroupOptions parsed, ParseGroupOptions(options, kGroups, {}));
  return std::make_unique<W4A8>(parsed);
}

}  // namespace assay
