#include "quant/kernels/cuda/quantize.h"
#include "quant/kernels/cuda/weight_codes.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 256;

ASSAY_BOTH constexpr bool HoldsIntegers(RowCodes to) {
  return to == RowCodes::kA8Token || to == RowCodes::kInt8Channel;
}
ASSAY_BOTH constexpr bool IsWeight(RowCodes to) {
  return to == RowCodes::kInt8Channel || to == RowCodes::kE4M3Channel;
}

struct RowStep {
  float scale;   // what is stored
  float factor;  // x: times this; weights: divided by it
  bool empty;    // all codes are 0
};

template <RowCodes kTo>
ASSAY_DEVICE RowStep StepOf(uint32_t absmax_bits) {
  if constexpr (IsWeight(kTo)) {
    const float absmax = FloatOf(absmax_bits);
    float scale = E4M3ScaleOf(absmax);
    if constexpr (kTo == RowCodes::kInt8Channel)
      scale = absmax <= kSmallestNormal / 2 ? 0 : fmaxf(absmax / 127.0f, kSmallestNormal);
    return {scale, scale, scale == 0};
  }
  const RowScale row =
      ScaleOfRow(absmax_bits, kTo == RowCodes::kA8Token ? RowCode::kS8 : RowCode::kE4M3);
  return {row.scale, row.inverse, row.inverse == 0.0f};
}

template <RowCodes kTo>
ASSAY_DEVICE uint32_t CodeOf(float v, const RowStep& step) {
  if (step.empty) return 0;
  const float quotient = IsWeight(kTo) ? v / step.factor : v * step.factor;
  if constexpr (!HoldsIntegers(kTo)) return E4M3Of(quotient);
  const float clamped = fminf(fmaxf(quotient, -127.0f), 127.0f);
  return static_cast<uint32_t>(static_cast<int>(Round(clamped))) & 0xffu;
}

// A block per row.
template <RowCodes kTo, typename Of>
ASSAY_KERNEL(kThreads)
QuantizeRowsKernel(const QuantizeRowsArgs args) {
  ASSAY_SHARED(uint32_t, partial, kThreads / kWarp);
  const auto* const from =
      static_cast<const Of*>(args.from) + static_cast<size_t>(BlockX()) * args.from_stride;
  const Row<Of> row = {from, args.k, reinterpret_cast<uintptr_t>(from) % 16 == 0};
  uint8_t* const codes = args.codes + static_cast<size_t>(BlockX()) * args.codes_stride;
  const bool codes_aligned = reinterpret_cast<uintptr_t>(codes) % 8 == 0;
  PdlWait();
  uint32_t bits = 0;
  float v[8];
  for (int at = 8 * ThreadIndex(); at < args.k; at += 8 * kThreads) {
    LoadEight(row, at, v);
    ASSAY_UNROLL
    for (int i = 0; i < 8; ++i) {
      const uint32_t magnitude = MagnitudeBits(v[i]);
      bits = magnitude > bits ? magnitude : bits;
    }
  }
  const RowStep step = StepOf<kTo>(BlockLargest(bits, partial));
  if (ThreadIndex() == 0) args.scales[BlockX()] = step.scale;
  for (int at = 8 * ThreadIndex(); at < args.k; at += 8 * kThreads) {
    LoadEight(row, at, v);
    uint32_t words[2] = {0, 0};
    ASSAY_UNROLL
    for (int i = 0; i < 8; ++i) words[i / 4] |= CodeOf<kTo>(v[i], step) << (8 * (i % 4));
    if (codes_aligned && at + 8 <= args.k) {
      Store8(codes + at, {words[0], words[1]});
      continue;
    }
    ASSAY_UNROLL
    for (int i = 0; i < 8; ++i)
      if (at + i < args.k) codes[at + i] = static_cast<uint8_t>(words[i / 4] >> (8 * (i % 4)));
  }
  PdlTrigger();
}

template <RowCodes kTo>
int LaunchRows(const QuantizeRowsArgs& args, const LaunchContext& context) {
  const LaunchGrid grid = {.x = args.rows, .threads = kThreads};
  switch (args.number) {
    case Number::kF32:
      return Launch(grid, context, QuantizeRowsKernel<kTo, float>, args);
    case Number::kF16:
      return Launch(grid, context, QuantizeRowsKernel<kTo, F16>, args);
    case Number::kBf16:
      return Launch(grid, context, QuantizeRowsKernel<kTo, Bf16>, args);
  }
  return kInvalidLaunch;
}

}  // namespace

int QuantizeRows(const QuantizeRowsArgs& args, const LaunchContext& context) {
  switch (args.to) {
    case RowCodes::kA8Token:
      return LaunchRows<RowCodes::kA8Token>(args, context);
    case RowCodes::kFp8Token:
      return LaunchRows<RowCodes::kFp8Token>(args, context);
    case RowCodes::kInt8Channel:
      return LaunchRows<RowCodes::kInt8Channel>(args, context);
    case RowCodes::kE4M3Channel:
      return LaunchRows<RowCodes::kE4M3Channel>(args, context);
  }
  return kInvalidLaunch;
}

}  // namespace assay::ASSAY_SIMT
