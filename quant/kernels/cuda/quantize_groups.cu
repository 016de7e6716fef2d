#include "quant/kernels/cuda/quantize_groups.h"
#include "quant/kernels/cuda/weight_codes.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// Codes of kBits, as quant/schemes/affine_group.h has them.
template <int kBits>
struct Codes {
  static constexpr int kTop = (1 << kBits) - 1;          // steps of asym
  static constexpr int kSide = (1 << (kBits - 1)) - 1;   // steps of sym, each side
  static constexpr int kMiddle = kBits == 8 ? 0 : 8;     // zero point of sym and full
  static constexpr int kLowest = kBits == 8 ? -127 : 1;  // of sym
  static constexpr int kHighest = kBits == 8 ? 127 : 15;
};

// The grid of a group: w ~ (c - zero) * scale.
struct GroupStep {
  uint16_t bits;  // of scale, in bf16
  float scale;
  int zero;
};

template <int kBits>
ASSAY_DEVICE GroupStep FitGroup(GroupGrid grid, float low, float high) {
  using C = Codes<kBits>;
  if (grid != GroupGrid::kAsym) {
    const float absmax = fmaxf(-low, high);
    if (absmax <= kSmallestNormal / 2) return {0, 0, C::kMiddle};
    const uint16_t bits =
        grid == GroupGrid::kSym
            ? GroupScale(absmax / static_cast<float>(C::kSide), C::kSide)
            : GroupScale(absmax / (static_cast<float>(C::kTop) / 2), C::kSide + 1);
    return {bits, ToFloat(Bf16{bits}), C::kMiddle};
  }
  constexpr auto kTop = static_cast<float>(C::kTop);
  const float width = high - low;
  if (width <= kSmallestNormal / 2) return {0, 0, 0};
  const float quotient = BitsOf(width) == kInfinity ? high / kTop - low / kTop : width / kTop;
  const float below = -low / quotient;
  const uint16_t bits = GroupScale(quotient, static_cast<int>(ceilf(fmaxf(below, kTop - below))));
  const float scale = ToFloat(Bf16{bits});
  return {bits, scale, static_cast<int>(fminf(Round(-low / scale), kTop))};
}

// The ends of the grid, in steps from its zero point.
struct Ends {
  float low, high;
};
template <int kBits>
ASSAY_DEVICE Ends EndsOf(GroupGrid grid, int zero) {
  using C = Codes<kBits>;
  const bool sym = grid == GroupGrid::kSym;
  return {static_cast<float>((sym ? C::kLowest : 0) - zero),
          static_cast<float>((sym ? C::kHighest : C::kTop) - zero)};
}

ASSAY_DEVICE uint32_t GroupCodeOf(float w, const GroupStep& step, const Ends& ends) {
  if (step.scale == 0) return static_cast<uint32_t>(step.zero);
  const float v = w / step.scale;
  const float clamped = v < ends.low ? ends.low : (v > ends.high ? ends.high : v);
  return static_cast<uint32_t>(static_cast<int>(Round(clamped)) + step.zero);
}

// Inputs [begin, end) of a row.
struct Group {
  int begin, end;
};

// A warp's group.
template <int kBits, typename Of>
ASSAY_DEVICE GroupStep QuantizeGroup(GroupGrid grid, const Of* row, uint8_t* codes,
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
  const GroupStep step = FitGroup<kBits>(grid, low, high);
  const Ends ends = EndsOf<kBits>(grid, step.zero);
  for (int i = begin + 2 * lane; i < end; i += 2 * kWarp) {
    const uint32_t first = GroupCodeOf(ToFloat(row[i]), step, ends);
    const uint32_t second = i + 1 < end ? GroupCodeOf(ToFloat(row[i + 1]), step, ends) : 0;
    if constexpr (kBits == 4) {
      codes[i / 2] = static_cast<uint8_t>(first | (second << 4));
    } else {
      codes[i] = static_cast<uint8_t>(first);
      if (i + 1 < end) codes[i + 1] = static_cast<uint8_t>(second);
    }
  }
  return step;
}

ASSAY_BOTH int GroupsOfRow(const QuantizeGroupsArgs& args) {
  return args.group >= args.k ? 1 : DivideUp(args.k, args.group);
}

// Groups of a warp: zero points of 4 bits share a byte.
template <int kBits>
constexpr int kTogether = kBits == 4 ? 2 : 1;

template <int kBits, typename Of>
ASSAY_KERNEL(kThreads)
QuantizeGroupsKernel(const QuantizeGroupsArgs args) {
  const int groups = GroupsOfRow(args), pieces = DivideUp(groups, kTogether<kBits>);
  const int64_t index = static_cast<int64_t>(BlockX()) * kWarps + ThreadIndex() / kWarp;
  if (index >= static_cast<int64_t>(pieces) * args.n) return;  // the whole warp
  PdlWait();
  const auto row = static_cast<size_t>(index / pieces);
  const int piece = static_cast<int>(index % pieces);
  const Of* const from = static_cast<const Of*>(args.from) + row * args.k;
  uint8_t* const codes = args.codes + row * (kBits == 4 ? DivideUp(args.k, 2) : args.k);
  uint32_t zeros = 0;
  ASSAY_UNROLL_BY(1)
  for (int i = 0; i < kTogether<kBits>; ++i) {
    const int g = kTogether<kBits> * piece + i;
    if (g >= groups) break;
    const int begin = g * args.group;
    const int end = args.k - begin < args.group ? args.k : begin + args.group;
    const GroupStep step = QuantizeGroup<kBits>(args.grid, from, codes, {begin, end});
    zeros |= static_cast<uint32_t>(step.zero) << (4 * i);
    if (ThreadIndex() % kWarp == 0) args.scales[row * groups + g] = step.bits;
  }
  if (args.grid == GroupGrid::kAsym && ThreadIndex() % kWarp == 0)
    args.zeros[row * pieces + piece] = static_cast<uint8_t>(zeros);
}

template <int kBits>
int LaunchGroups(const QuantizeGroupsArgs& args, const LaunchContext& context) {
  const int64_t warps =
      static_cast<int64_t>(DivideUp(GroupsOfRow(args), kTogether<kBits>)) * args.n;
  const LaunchGrid grid = {.x = static_cast<int>((warps + kWarps - 1) / kWarps),
                           .threads = kThreads};
  switch (args.number) {
    case Number::kF32:
      return Launch(grid, context, QuantizeGroupsKernel<kBits, float>, args);
    case Number::kF16:
      return Launch(grid, context, QuantizeGroupsKernel<kBits, F16>, args);
    case Number::kBf16:
      return Launch(grid, context, QuantizeGroupsKernel<kBits, Bf16>, args);
  }
  return kInvalidLaunch;
}

// The code of the nearest value; of two, the lower one.
ASSAY_DEVICE uint32_t Nf4CodeOf(float v) {
  uint32_t above = 0;
  ASSAY_UNROLL
  for (int i = 0; i < 15; ++i) above += v > (Nf4Value(i) + Nf4Value(i + 1)) / 2 ? 1 : 0;
  return above;
}

// A warp per block.
template <typename Of>
ASSAY_KERNEL(kThreads)
QuantizeNf4Kernel(const QuantizeNf4Args args) {
  constexpr uint32_t kZeroCode = 7;
  const int blocks = DivideUp(args.k, args.block);
  const int64_t index = static_cast<int64_t>(BlockX()) * kWarps + ThreadIndex() / kWarp;
  if (index >= static_cast<int64_t>(blocks) * args.n) return;  // the whole warp
  PdlWait();
  const auto row = static_cast<size_t>(index / blocks);
  const Of* const from = static_cast<const Of*>(args.from) + row * args.k;
  uint8_t* const codes = args.codes + row * DivideUp(args.k, 2);
  const int begin = static_cast<int>(index % blocks) * args.block, lane = ThreadIndex() % kWarp;
  const int end = args.k - begin < args.block ? args.k : begin + args.block;
  uint32_t largest = 0;
  for (int i = begin + lane; i < end; i += kWarp) {
    const uint32_t bits = MagnitudeBits(ToFloat(from[i]));
    largest = bits > largest ? bits : largest;
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const uint32_t other = ShuffleXor(largest, mask);
    largest = other > largest ? other : largest;
  }
  const bool empty = FloatOf(largest) < kSmallestNormal;
  const float scale = empty ? 0 : FloatOf(largest), factor = empty ? 0 : 1 / scale;
  if (lane == 0) args.scales[index] = scale;
  for (int i = begin + 2 * lane; i < end; i += 2 * kWarp) {
    const uint32_t first = empty ? kZeroCode : Nf4CodeOf(ToFloat(from[i]) * factor);
    uint32_t second = 0;
    if (i + 1 < end) second = empty ? kZeroCode : Nf4CodeOf(ToFloat(from[i + 1]) * factor);
    codes[i / 2] = static_cast<uint8_t>(first | (second << 4));
  }
}

}  // namespace

int QuantizeGroups(const QuantizeGroupsArgs& args, const LaunchContext& context) {
  return args.bits == 4 ? LaunchGroups<4>(args, context) : LaunchGroups<8>(args, context);
}

int QuantizeNf4(const QuantizeNf4Args& args, const LaunchContext& context) {
  const int64_t warps = static_cast<int64_t>(DivideUp(args.k, args.block)) * args.n;
  const LaunchGrid grid = {.x = static_cast<int>((warps + kWarps - 1) / kWarps),
                           .threads = kThreads};
  switch (args.number) {
    case Number::kF32:
      return Launch(grid, context, QuantizeNf4Kernel<float>, args);
    case Number::kF16:
      return Launch(grid, context, QuantizeNf4Kernel<F16>, args);
    case Number::kBf16:
      return Launch(grid, context, QuantizeNf4Kernel<Bf16>, args);
  }
  return kInvalidLaunch;
}

}  // namespace assay::ASSAY_SIMT
