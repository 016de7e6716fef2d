// Schemes "fp8_e4m3[:tensor|block]" and "fp8_e5m2[:tensor|block]": 8-bit floats (base/float8.h)
// with f32 scales. Default: one scale per output channel (row).
//
//   codes   f8 [n, k] row-major, 1 byte each     w ~ value(c) * s
//   scales  f32 channel: [n]
//               tensor:  [1]
//               block:   [ceil(n / 128), ceil(k / 128)], one per 128 x 128 block, row-major;
//                        w[i, j] has scale [i / 128, j / 128], as weight_scale_inv of DeepSeek's
//                        checkpoints (which multiplies)
//
// s = absmax / 448 (E4M3) or / 57344 (E5M2), never subnormal; 0 where absmax is at most
// FLT_MIN / 2. Narrowing rounds half to even and saturates.
#include <cfloat>

#include "base/float8.h"
#include "quant/schemes/block_scheme.h"
#include "quant/schemes/schemes.h"
#include "quant/schemes/value_range.h"

namespace assay {
namespace {

struct E4M3 {
  static constexpr DType kType = DType::kF8E4M3;
  static constexpr float kMax = 448;
  static constexpr uint8_t kMaxCode = 0x7e;
  static uint8_t Narrow(float v) { return F32ToE4M3(v); }
  static float Widen(uint8_t code) { return kE4M3Values[code]; }
};
struct E5M2 {
  static constexpr DType kType = DType::kF8E5M2;
  static constexpr float kMax = 57344;
  static constexpr uint8_t kMaxCode = 0x7b;
  static uint8_t Narrow(float v) { return F32ToE5M2(v); }
  static float Widen(uint8_t code) { return kE5M2Values[code]; }
};

template <class Float>
struct Float8Format {
  static constexpr int kBits = 8;
  static void Encode(const Step& step, const float* w, int64_t count, uint8_t* codes) {
    if (step.scale == 0) {
      std::fill_n(codes, count, uint8_t{0});
      return;
    }
    const float scale = step.scale;
    for (int64_t i = 0; i < count; ++i) codes[i] = Float::Narrow(w[i] / scale);
  }
  static void Decode(const Step& step, const uint8_t* codes, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = Float::Widen(codes[i]) * step.scale;
  }
  static bool IsZero(const Step&, uint8_t code) { return (code & 0x7f) == 0; }
  static bool IsEnd(const Step&, uint8_t code) { return (code & 0x7f) == Float::kMaxCode; }
  static const char* Forbidden(const Step&, uint8_t code) {
    return (code & 0x7f) > Float::kMaxCode ? "code is NaN or infinite" : nullptr;
  }
};

enum class Scope { kTensor, kChannel, kBlock };
constexpr int64_t kSide = 128;

std::string Spelling(std::string_view family, Scope scope) {
  const char* option = scope == Scope::kTensor ? ":tensor" : scope == Scope::kBlock ? ":block" : "";
  return absl::StrCat(std::string(family), option);
}

template <class Float>
class Fp8 final : public BlockScheme<Float8Format<Float>> {
 public:
  Fp8(std::string_view family, Scope scope)
      : BlockScheme<Float8Format<Float>>(Spelling(family, scope),
                                         scope == Scope::kBlock ? kSide : 0),
        scope_(scope) {}
  int64_t scale_rows(const Shape& w) const override {
    return scope_ == Scope::kTensor ? w[0] : scope_ == Scope::kBlock ? kSide : 1;
  }

 private:
  WeightLayout Layout(const Shape& w) const override {
    WeightLayout layout;
    layout.codes = {Float::kType, {w[0], w[1]}};
    layout.scales = {DType::kF32, {1}};
    if (scope_ == Scope::kChannel) layout.scales.shape = {w[0]};
    if (scope_ == Scope::kBlock)
      layout.scales.shape = {(w[0] + kSide - 1) / kSide, (w[1] + kSide - 1) / kSide};
    return layout;
  }

  absl::Status CheckOptions(const Shape& w, const FitOptions& options) const override {
    if (scope_ == Scope::kChannel) return CheckShrink(this->name(), options, w[0]);
    return CheckNoShrink(this->name(), options);
  }

  int64_t ScaleIndex(int64_t row, int64_t block, int64_t blocks) const {
    if (scope_ == Scope::kTensor) return 0;
    return scope_ == Scope::kChannel ? row : row / kSide * blocks + block;
  }

  void FitSteps(TensorView w, std::span<const float> shrink, QuantizedTensor& grid) const override {
    const int64_t blocks = this->NumBlocks(w.shape);
    float* scales = grid.scales.template data<float>();
    this->ForEachBlock(w, [&](int64_t index, const float* from, int64_t count) {
      const int64_t row = index / blocks;
      float& most = scales[ScaleIndex(row, index % blocks, blocks)];
      most = std::max(most, (shrink.empty() ? 1 : shrink[row]) * AbsMax(from, count));
    });
    for (int64_t i = 0; i < grid.scales.shape().elements(); ++i) scales[i] = ScaleOf(scales[i]);
  }

  static float ScaleOf(float absmax) {
    if (absmax <= FLT_MIN / 2) return 0;
    const float scale = std::max(absmax / Float::kMax, FLT_MIN);
    return std::isinf(scale * Float::kMax) ? std::nextafter(scale, 0.0f) : scale;
  }

  void Steps(const QuantizedTensor& q, const BlockRange& range, Step* out) const override {
    const int64_t blocks = this->NumBlocks(q.shape);
    for (int64_t row = range.row; row < range.row + range.rows; ++row) {
      for (int64_t b = range.block; b < range.block + range.blocks; ++b, ++out)
        out->scale = q.scales.template data<float>()[ScaleIndex(row, b, blocks)];
    }
  }

  bool zero_rows_have_no_scale() const override { return scope_ == Scope::kChannel; }

  const Scope scope_;
};

template <class Float>
absl::StatusOr<std::unique_ptr<const QuantScheme>> Make(std::string_view family,
                                                        std::span<const std::string> options) {
  Scope scope = Scope::kChannel;
  for (const std::string& option : options) {
    if (options.size() == 1 && option == "channel") continue;
    if (options.size() > 1 || (option != "tensor" && option != "block")) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown or second option of its kind \"", option, "\""));
    }
    scope = option == "tensor" ? Scope::kTensor : Scope::kBlock;
  }
  return std::make_unique<Fp8<Float>>(family, scope);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeFp8E4M3(
    std::span<const std::string> options) {
  return Make<E4M3>("fp8_e4m3", options);
}
absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeFp8E5M2(
    std::span<const std::string> options) {
  return Make<E5M2>("fp8_e5m2", options);
}

}  // namespace assay
