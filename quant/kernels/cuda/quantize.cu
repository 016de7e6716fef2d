#include "quant/kernels/cuda/quantize.h"
#include "quant/kernels/cuda/row_codes.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 256;
constexpr float kSmallestNormal = 0x1p-126f;  // FLT_MIN
constexpr uint32_t kInfinity = 0x7f800000u;

template <typename Of>
struct Row {
  const Of* from;
  int k;
  bool aligned;  // to 16 bytes
};

// Eight numbers from `at` on; zeros beyond k.
template <typename Of>
ASSAY_DEVICE void LoadEight(const Row<Of>& row, int at, float (&out)[8]) {
  if (row.aligned && at + 8 <= row.k) {
    if constexpr (sizeof(Of) == 2) {
      const Quad v = Load16(row.from + at);
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
      ASSAY_UNROLL
      for (int i = 0; i < 8; ++i) {
        const Two two = Unpack2<Of>(words[i / 2]);
        out[i] = i % 2 == 0 ? two.low : two.high;
      }
    } else {
      const Quad low = Load16(row.from + at), high = Load16(row.from + at + 4);
      const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      ASSAY_UNROLL
      for (int i = 0; i < 8; ++i) out[i] = FloatOf(words[i]);
    }
    return;
  }
  ASSAY_UNROLL
  for (int i = 0; i < 8; ++i) out[i] = at + i < row.k ? ToFloat(row.from[at + i]) : 0.0f;
}

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
  constexpr float kMax = HoldsIntegers(kTo) ? 127.0f : 448.0f;
  const float absmax = FloatOf(absmax_bits);
  if constexpr (IsWeight(kTo)) {
    if (absmax <= kSmallestNormal / 2) return {0, 0, true};
    float scale = fmaxf(absmax / kMax, kSmallestNormal);
    // Near the top of f32 the quotient may have rounded up to what overflows when multiplied.
    if (kTo == RowCodes::kE4M3Channel && BitsOf(scale * kMax) == kInfinity)
      scale = FloatOf(BitsOf(scale) - 1);
    return {scale, scale, false};
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

// The grid of a group: w ~ (c - zero) * scale.
struct Int4Step {
  uint16_t bits;  // of scale, in bf16
  float scale;
  int zero;
};

// GroupScale of quant/schemes/affine_group.cc: a scale whose `reach`-fold is finite.
ASSAY_DEVICE uint16_t GroupScale(float quotient, int reach) {
  uint16_t bits = FromFloat<Bf16>(fmaxf(quotient, kSmallestNormal)).bits;
  while (BitsOf(ToFloat(Bf16{bits}) * static_cast<float>(reach)) >= kInfinity) --bits;
  return bits;
}

ASSAY_DEVICE Int4Step FitInt4(Int4Grid grid, float low, float high) {
  if (grid != Int4Grid::kAsym) {
    const float absmax = fmaxf(-low, high);
    if (absmax <= kSmallestNormal / 2) return {0, 0, 8};
    const uint16_t bits =
        grid == Int4Grid::kSym ? GroupScale(absmax / 7.0f, 7) : GroupScale(absmax / 7.5f, 8);
    return {bits, ToFloat(Bf16{bits}), 8};
  }
  const float width = high - low;
  if (width <= kSmallestNormal / 2) return {0, 0, 0};
  const float quotient = BitsOf(width) == kInfinity ? high / 15.0f - low / 15.0f : width / 15.0f;
  const float below = -low / quotient;
  const uint16_t bits = GroupScale(quotient, static_cast<int>(ceilf(fmaxf(below, 15.0f - below))));
  const float scale = ToFloat(Bf16{bits});
  return {bits, scale, static_cast<int>(fminf(Round(-low / scale), 15.0f))};
}

ASSAY_DEVICE uint32_t Int4CodeOf(float w, const Int4Step& step, int lowest) {
  if (step.scale == 0) return static_cast<uint32_t>(step.zero);
  const auto low = static_cast<float>(lowest - step.zero),
             high = static_cast<float>(15 - step.zero);
  const float v = w / step.scale;
  const float clamped = v < low ? low : (v > high ? high : v);
  return static_cast<uint32_t>(static_cast<int>(Round(clamped)) + step.zero);
}

// Inputs [begin, end) of a row.
struct Group {
  int begin, end;
};

// A warp's group.
template <typename Of>
ASSAY_DEVICE Int4Step QuantizeGroup(const QuantizeInt4Args& args, const Of* row, uint8_t* codes,
                                    const Group& group) {
  const int begin = group.begin, end = group.end;
  const int lane = ThreadIndex() % kWarp;
  float low = 0, high = 0;
  for (int i = begin + lane; i < end; i += kWarp) {
    const float w = ToFloat(row[i]);
    low = fminf(low, w);
    high = fmaxf(high, w);
  }
  high = WarpMax(high);
  low = -WarpMax(-low);
  const Int4Step step = FitInt4(args.grid, low, high);
  const int lowest = args.grid == Int4Grid::kSym ? 1 : 0;
  for (int i = begin + 2 * lane; i < end; i += 2 * kWarp) {
    const uint32_t first = Int4CodeOf(ToFloat(row[i]), step, lowest);
    const uint32_t second = i + 1 < end ? Int4CodeOf(ToFloat(row[i + 1]), step, lowest) : 0;
    codes[i / 2] = static_cast<uint8_t>(first | (second << 4));
  }
  return step;
}

// A warp per two groups: their zero points share a byte.
template <typename Of>
ASSAY_KERNEL(kThreads)
QuantizeInt4Kernel(const QuantizeInt4Args args) {
  const int groups = args.group >= args.k ? 1 : DivideUp(args.k, args.group);
  const int pairs = DivideUp(groups, 2);
  const int64_t index = static_cast<int64_t>(BlockX()) * (kThreads / kWarp) + ThreadIndex() / kWarp;
  if (index >= static_cast<int64_t>(pairs) * args.n) return;  // the whole warp
  PdlWait();
  const auto row = static_cast<int>(index / pairs), pair = static_cast<int>(index % pairs);
  const Of* const from = static_cast<const Of*>(args.from) + static_cast<size_t>(row) * args.k;
  uint8_t* const codes = args.codes + static_cast<size_t>(row) * DivideUp(args.k, 2);
  uint32_t zeros = 0;
  for (int g = 2 * pair; g < 2 * pair + 2 && g < groups; ++g) {
    const int begin = g * args.group;
    const int end = args.k - begin < args.group ? args.k : begin + args.group;
    const Int4Step step = QuantizeGroup(args, from, codes, {begin, end});
    zeros |= static_cast<uint32_t>(step.zero) << (4 * (g % 2));
    if (ThreadIndex() % kWarp == 0) args.scales[static_cast<size_t>(row) * groups + g] = step.bits;
  }
  if (args.grid == Int4Grid::kAsym && ThreadIndex() % kWarp == 0)
    args.zeros[static_cast<size_t>(row) * pairs + pair] = static_cast<uint8_t>(zeros);
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

int QuantizeInt4(const QuantizeInt4Args& args, const LaunchContext& context) {
  const int groups = args.group >= args.k ? 1 : DivideUp(args.k, args.group);
  const int64_t warps = static_cast<int64_t>(DivideUp(groups, 2)) * args.n;
  constexpr int kWarps = kThreads / kWarp;
  const LaunchGrid grid = {.x = static_cast<int>((warps + kWarps - 1) / kWarps),
                           .threads = kThreads};
  switch (args.number) {
    case Number::kF32:
      return Launch(grid, context, QuantizeInt4Kernel<float>, args);
    case Number::kF16:
      return Launch(grid, context, QuantizeInt4Kernel<F16>, args);
    case Number::kBf16:
      return Launch(grid, context, QuantizeInt4Kernel<Bf16>, args);
  }
  return kInvalidLaunch;
}

}  // namespace assay::ASSAY_SIMT
