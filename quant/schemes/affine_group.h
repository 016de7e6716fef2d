// Integer codes on an affine grid per group of a row: what int8_group, int4_group and int3_group
// share. w ~ (c - z) * s, in f32: the difference is exact, the product rounds once.
//
// How a group's scale and zero point are found, b bits (reference/quantization 1.0; all quotients
// in f32, s rounded to bf16, half to even):
//
//   sym         s = absmax / (2^(b-1) - 1), z = 2^(b-1), c in [1, 2^b - 1]
//   full        s = absmax / ((2^b - 1) / 2), z = 2^(b-1), c in [0, 2^b - 1]    compressed-tensors
//   signed_max  s = m / -2^(b-1), m the element of largest |w| with its sign, z = 2^(b-1)   Q4_0
//   asym        lo = min(0, min w), hi = max(0, max w), s = (hi - lo) / (2^b - 1),
//               z = clamp(rint(-lo / s), 0, 2^b - 1)
//   c = clamp(rint(w / s) + z)
//
// A scale is never subnormal; a group whose range is at most FLT_MIN / 2 has s = 0 and codes z.
// Thread-safe.
#pragma once
#include <cfloat>
#include <string>

#include "base/float16.h"
#include "quant/schemes/block_scheme.h"
#include "quant/schemes/value_range.h"

namespace assay {

enum class AffineGrid { kSym, kFull, kSignedMax, kAsym, kFloat };

// What a spelling of a group scheme says.
struct GroupOptions {
  int64_t group = 128;  // 0 = the whole row
  AffineGrid grid = AffineGrid::kSym;
};
// Options in any order, each kind once; `grids` and `groups` ("row" = 0) are those that the family
// takes. InvalidArgument names the one at fault.
absl::StatusOr<GroupOptions> ParseGroupOptions(std::span<const std::string> options,
                                               std::span<const int64_t> groups,
                                               std::span<const AffineGrid> grids);
// The canonical spelling: "int4_group:g32,asym".
std::string GroupSpelling(std::string_view family, const GroupOptions& options);

// A scale in bf16 for codes at most `reach` steps from zero, all of whose multiples are finite.
uint16_t GroupScale(float quotient, float reach);

// kSigned: codes are stored as two's complement and z is 0, else they count from 0.
template <int kCodeBits, int kLow, bool kSigned>
struct AffineFormat {
  static constexpr int kBits = kCodeBits;
  static constexpr int kHigh = kSigned ? (1 << (kBits - 1)) - 1 : (1 << kBits) - 1;

  static void Encode(const Step& step, const float* w, int64_t count, uint8_t* codes) {
    if (step.scale == 0) {
      std::fill_n(codes, count, static_cast<uint8_t>(step.zero));
      return;
    }
    // Clamped before rounding: beyond 2^22 the rounding is not one. The bounds are integers.
    const float low = kLow - step.zero, high = kHigh - step.zero, scale = step.scale;
    const auto zero = static_cast<int>(step.zero);
    for (int64_t i = 0; i < count; ++i) {
      const float v = w[i] / scale;
      const float clamped = v < low ? low : (v > high ? high : v);
      codes[i] = static_cast<uint8_t>(static_cast<int>(RoundHalfEven(clamped)) + zero);
    }
  }
  static constexpr int Value(uint8_t code) { return kSigned ? static_cast<int8_t>(code) : code; }
  static void Decode(const Step& step, const uint8_t* codes, int64_t count, float* out) {
    const float scale = step.scale;
    const auto zero = static_cast<int>(step.zero);
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(Value(codes[i]) - zero) * scale;
  }
  // w = Integer * scale. Unsigned codes of 8 bits may lie 255 from their zero point.
  static constexpr bool kHasIntegers = kBits < 8 || kSigned;
  static constexpr bool kRowScale = false;
  static int8_t Integer(const Step& step, uint8_t code) {
    return static_cast<int8_t>(Value(code) - static_cast<int>(step.zero));
  }
  static bool IsZero(const Step& step, uint8_t code) {
    return Value(code) == static_cast<int>(step.zero);
  }
  static bool IsEnd(const Step&, uint8_t code) {
    return Value(code) <= kLow || Value(code) >= kHigh;
  }
  static const char* Forbidden(const Step& step, uint8_t code) {
    if (Value(code) < kLow) return "code is below the symmetric range";
    if (step.zero > kHigh) return "zero point is beyond the codes";
    return nullptr;
  }
};

template <class Format>
class AffineGroup final : public BlockScheme<Format> {
 public:
  AffineGroup(std::string_view family, const GroupOptions& options)
      : BlockScheme<Format>(GroupSpelling(family, options), options.group), grid_(options.grid) {}

 private:
  static constexpr bool kSigned = Format::Value(0xff) < 0;
  static constexpr int kLevels = 1 << Format::kBits;
  static constexpr int kMiddle = kSigned ? 0 : kLevels / 2;  // z of the symmetric grids

  WeightLayout Layout(const Shape& w) const override {
    const int64_t n = w[0], blocks = this->NumBlocks(w);
    WeightLayout layout;
    layout.codes = this->CodesSpec(w);
    if (kSigned) layout.codes.dtype = DType::kI8;
    layout.scales = {DType::kBf16, {n, blocks}};
    if (grid_ == AffineGrid::kAsym)
      layout.zeros = {DType::kU8, {n, Format::kBits == 8 ? blocks : PackedBytes<4>(blocks)}};
    return layout;
  }

  void FitSteps(TensorView w, std::span<const float> shrink, QuantizedTensor& grid) const override {
    const int64_t blocks = this->NumBlocks(w.shape);
    this->ForEachBlock(w, [&](int64_t index, const float* from, int64_t count) {
      const float part = shrink.empty() ? 1 : shrink[index];
      uint16_t& scale = grid.scales.template data<uint16_t>()[index];
      if (grid_ != AffineGrid::kAsym) {
        scale = FitSymmetric(from, count, part);
        return;
      }
      const ValueRange range = RangeOf(from, count);
      const int zero = FitAsymmetric(
          {part * std::min(0.0f, range.min), part * std::max(0.0f, range.max)}, scale);
      SetZero(grid.zeros, index / blocks, index % blocks, zero);
    });
  }

  uint16_t FitSymmetric(const float* w, int64_t count, float part) const {
    constexpr int kTop = kLevels / 2 - 1;
    const float absmax = part * AbsMax(w, count);
    if (absmax <= FLT_MIN / 2) return 0;
    if (grid_ == AffineGrid::kSym) return GroupScale(absmax / kTop, kTop);
    if (grid_ == AffineGrid::kFull)
      return GroupScale(absmax / (static_cast<float>(kLevels - 1) / 2), kTop + 1);
    const uint16_t scale = GroupScale(absmax / (kTop + 1), kTop + 1);
    // The first element of the largest magnitude decides the sign: it gets code 0.
    const float most = AbsMax(w, count);
    const float* first = std::find_if(w, w + count, [&](float v) { return std::fabs(v) == most; });
    return *first > 0 ? scale | 0x8000u : scale;
  }

  static int FitAsymmetric(const ValueRange& range, uint16_t& scale) {
    constexpr float kTop = kLevels - 1;
    const float width = range.max - range.min;
    if (width <= FLT_MIN / 2) return 0;
    const float quotient = std::isinf(width) ? range.max / kTop - range.min / kTop : width / kTop;
    // The zero point splits the steps: about -min / width of them lie below zero.
    const float below = -range.min / quotient;
    scale = GroupScale(quotient, std::max(below, kTop - below));
    const float zero = RoundHalfEven(-range.min / Bf16ToF32(scale));
    return static_cast<int>(zero > kTop ? kTop : zero);
  }

  void SetZero(Tensor& zeros, int64_t row, int64_t block, int zero) const {
    const int64_t stride = zeros.shape()[1];
    auto* row_zeros = zeros.data<uint8_t>() + row * stride;
    if constexpr (Format::kBits == 8) {
      row_zeros[block] = static_cast<uint8_t>(zero);
    } else {
      row_zeros[block / 2] |= static_cast<uint8_t>(zero << (4 * (block % 2)));
    }
  }
  int ZeroAt(const uint8_t* row_zeros, int64_t block) const {
    if (Format::kBits == 8) return row_zeros[block];
    return (row_zeros[block / 2] >> (4 * (block % 2))) & 15;
  }

  void Steps(const QuantizedTensor& q, const BlockRange& range, Step* out) const override {
    const int64_t blocks = q.scales.shape()[1];
    const uint16_t* scales = q.scales.template data<uint16_t>();
    for (int64_t row = range.row; row < range.row + range.rows; ++row) {
      for (int64_t b = range.block; b < range.block + range.blocks; ++b, ++out) {
        out->scale = Bf16ToF32(scales[row * blocks + b]);
        out->zero = kMiddle;
        if (grid_ == AffineGrid::kAsym) {
          out->zero = static_cast<float>(
              ZeroAt(q.zeros.template data<uint8_t>() + row * q.zeros.shape()[1], b));
        }
      }
    }
  }

  bool may_be_negative() const override { return grid_ == AffineGrid::kSignedMax; }

  const AffineGrid grid_;
};

}  // namespace assay
