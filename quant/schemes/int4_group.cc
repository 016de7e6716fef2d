// Scheme "int4_group[:g32|g64|row][,asym|float|full|signed_max]": 4 bit, one bf16 scale per group
// of a row. Default: groups of 128, symmetric. The grids: quant/schemes/affine_group.h.
//
//   codes   u8 [n, ceil(k / 2)]  byte j of a row: code 2j in bits 0-3, code 2j + 1 in bits 4-7
//           | c1 c0 | c3 c2 | ... | (0) c[k-1] if k is odd |
//   scales  bf16 [n, groups]     groups = k / group rounded up: the last group may be short
//   zeros   asym:  u8 [n, ceil(groups / 2)]  4 bits each, the even group in the low half
//           float: bf16 [n, groups]
//
//   sym         w ~ (c - 8) * s, c in [1, 15]
//   full        w ~ (c - 8) * s, c in [0, 15], s = absmax / 7.5
//   signed_max  w ~ (c - 8) * s, c in [0, 15], s of either sign
//   asym        w ~ (c - z) * s
//   float       w ~ (c - 8) * s + zero: torchao's tinygemm grid, operation for operation:
//               s = max((max - min) / 15, 1e-6), zero = min + 8 s, both stored in bf16;
//               c = clamp(rint((w - bf16(zero - 8 s)) / s), 0, 15). The rounding of the lower end
//               is torchao's: codes may be off the nearest by 2^-8 of the group's largest |w|.
#include <array>

#include "quant/schemes/affine_group.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

struct FloatZeroFormat {
  static constexpr int kBits = 4;
  static void Encode(const Step& step, const float* w, int64_t count, uint8_t* codes) {
    const float scale = step.scale, low = step.base;
    for (int64_t i = 0; i < count; ++i) {
      const float v = (w[i] - low) / scale;
      codes[i] = static_cast<uint8_t>(RoundHalfEven(v < 0 ? 0.0f : (v > 15 ? 15.0f : v)));
    }
  }
  static void Decode(const Step& step, const uint8_t* codes, int64_t count, float* out) {
    const float scale = step.scale, zero = step.zero;
    for (int64_t i = 0; i < count; ++i)
      out[i] = static_cast<float>(static_cast<int>(codes[i]) - 8) * scale + zero;
  }
  static bool IsZero(const Step& step, uint8_t code) {
    return static_cast<float>(static_cast<int>(code) - 8) * step.scale + step.zero == 0;
  }
  static bool IsEnd(const Step&, uint8_t code) { return code == 0 || code == 15; }
  static const char* Forbidden(const Step& step, uint8_t) {
    return step.scale == 0 ? "scale is zero" : nullptr;
  }
};

class FloatZeroGroup final : public BlockScheme<FloatZeroFormat> {
 public:
  explicit FloatZeroGroup(const GroupOptions& options)
      : BlockScheme(GroupSpelling("int4_group", options), options.group) {}

 private:
  WeightLayout Layout(const Shape& w) const override {
    WeightLayout layout;
    layout.codes = CodesSpec(w);
    layout.scales = layout.zeros = {DType::kBf16, {w[0], NumBlocks(w)}};
    return layout;
  }

  void FitSteps(TensorView w, std::span<const float> shrink, QuantizedTensor& grid) const override {
    constexpr float kSmallest = 1e-6f;  // torchao: get_groupwise_affine_qparams
    ForEachBlock(w, [&](int64_t index, const float* from, int64_t count) {
      const float part = shrink.empty() ? 1 : shrink[index];
      ValueRange range = RangeOf(from, count);
      range = {part * range.min, part * range.max};
      const float width = range.max - range.min;
      const float quotient = std::isinf(width) ? range.max / 15 - range.min / 15 : width / 15;
      const float scale = std::max(quotient, kSmallest);
      // 16: the largest multiple on the way, 8 s beside a zero of at most 8 s.
      grid.scales.data<uint16_t>()[index] = GroupScale(scale, 8);
      grid.zeros.data<uint16_t>()[index] = F32ToBf16(range.min + scale * 8);
    });
  }

  void Steps(const QuantizedTensor& q, const BlockRange& range, Step* out) const override {
    const int64_t blocks = q.scales.shape()[1];
    for (int64_t row = range.row; row < range.row + range.rows; ++row) {
      for (int64_t b = range.block; b < range.block + range.blocks; ++b, ++out) {
        out->scale = Bf16ToF32(q.scales.data<uint16_t>()[row * blocks + b]);
        out->zero = Bf16ToF32(q.zeros.data<uint16_t>()[row * blocks + b]);
        out->base = Bf16ToF32(F32ToBf16(out->zero - out->scale * 8));
      }
    }
  }

  bool zero_rows_have_no_scale() const override { return false; }
};

}  // namespace

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeInt4Group(
    std::span<const std::string> options) {
  static constexpr std::array<int64_t, 4> kGroups = {32, 64, 128, 0};
  static constexpr std::array kGrids = {AffineGrid::kSym, AffineGrid::kFull, AffineGrid::kSignedMax,
                                        AffineGrid::kAsym, AffineGrid::kFloat};
  ASSIGN_OR_RETURN(const GroupOptions parsed, ParseGroupOptions(options, kGroups, kGrids));
  if (parsed.grid == AffineGrid::kFloat) return std::make_unique<FloatZeroGroup>(parsed);
  if (parsed.grid == AffineGrid::kSym)
    return std::make_unique<AffineGroup<AffineFormat<4, 1, false>>>("int4_group", parsed);
  return std::make_unique<AffineGroup<AffineFormat<4, 0, false>>>("int4_group", parsed);
}

}  // namespace assay
