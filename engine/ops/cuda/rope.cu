// A block is one row and up to kWarps of its heads, a head to a warp. Lane l holds the pairs l, l +
// 32, ... of the head.
#include "base/cuda/simt_math.h"
#include "engine/ops/cuda/rope.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kWarps = 4, kPairs = 4;  // pairs of a lane: head_dim <= 256

struct Head {
  float low[kPairs], high[kPairs];
};

template <typename In>
ASSAY_DEVICE Head LoadHead(const In* from, int half) {
  Head head;
  ASSAY_UNROLL
  for (int j = 0; j < kPairs; ++j) {
    const int i = ThreadIndex() % kWarp + j * kWarp;
    head.low[j] = i < half ? ToFloat(from[i]) : 0;
    head.high[j] = i < half ? ToFloat(from[i + half]) : 0;
  }
  return head;
}

ASSAY_DEVICE void Normalize(Head& head, const float* gain, float eps, int half) {
  float sum = 0;
  ASSAY_UNROLL
  for (int j = 0; j < kPairs; ++j) sum += head.low[j] * head.low[j] + head.high[j] * head.high[j];
  const float scale = 1.0f / sqrtf(WarpSum(sum) / static_cast<float>(2 * half) + eps);
  ASSAY_UNROLL
  for (int j = 0; j < kPairs; ++j) {
    const int i = ThreadIndex() % kWarp + j * kWarp;
    head.low[j] = i < half ? head.low[j] * scale * gain[i] : 0;
    head.high[j] = i < half ? head.high[j] * scale * gain[i + half] : 0;
  }
}

ASSAY_DEVICE void Rotate(Head& head, const RopeAppendArgs& args, int position, int half) {
  ASSAY_UNROLL
  for (int j = 0; j < kPairs; ++j) {
    const int i = ThreadIndex() % kWarp + j * kWarp;
    if (i >= half) continue;
    const Two turn = SinCos(static_cast<float>(position) * args.inv_freq[i]);
    const float sine = turn.low * args.attention_scale, cosine = turn.high * args.attention_scale;
    const float a = head.low[j], b = head.high[j];
    head.low[j] = a * cosine - b * sine;
    head.high[j] = b * cosine + a * sine;
  }
}

// Writes f(element) for every element of the head.
template <typename Code, typename F>
ASSAY_DEVICE void StoreHead(const Head& head, int half, Code* to, const F& f) {
  ASSAY_UNROLL
  for (int j = 0; j < kPairs; ++j) {
    const int i = ThreadIndex() % kWarp + j * kWarp;
    if (i >= half) continue;
    to[i] = f(head.low[j]);
    to[i + half] = f(head.high[j]);
  }
}

template <typename Code>
ASSAY_DEVICE void StorePadding(Code* to, int head_dim, Code zero) {
  const int i = head_dim + ThreadIndex() % kWarp;
  if (i < KvWidth(head_dim)) to[i] = zero;
}

struct RowScale {
  float scale, inverse;
  bool finite;
};
// Of a row whose largest code is `most`: EncodeKvI8 of engine/ops/kv_row.h.
ASSAY_DEVICE RowScale ScaleOf(const Head& head, float most) {
  float absmax = 0;
  bool finite = true;
  ASSAY_UNROLL
  for (int j = 0; j < kPairs; ++j) {
    const float low = fabsf(head.low[j]), high = fabsf(head.high[j]);
    finite = finite && low <= 3.402823466e38f && high <= 3.402823466e38f;
    absmax = fmaxf(absmax, fmaxf(low, high));
  }
  finite = Ballot(finite) == 0xffffffffu;
  absmax = WarpMax(absmax);
  const bool zero = absmax < 1e-30f;
  return {!finite ? FloatOf(0x7fc00000u)
          : zero  ? 0
                  : absmax / most,
          finite && !zero ? most / absmax : 0, finite};
}

template <typename T>
ASSAY_DEVICE void Append(const Head& head, const KvLayer& kv, int64_t row) {
  const int half = kv.head_dim / 2;
  const int64_t first = row * KvWidth(kv.head_dim);
  if (kv.format == KvCodes::kHalf) {
    T* const to = static_cast<T*>(kv.codes) + first;
    StoreHead(head, half, to, [](float v) { return FromFloat<T>(v); });
    StorePadding(to, kv.head_dim, T{0});
    return;
  }
  const bool s8 = kv.format == KvCodes::kS8;
  const RowScale scale = ScaleOf(head, s8 ? 127.0f : 448.0f);
  auto* const to = static_cast<uint8_t*>(kv.codes) + first;
  StoreHead(head, half, to, [&](float v) -> uint8_t {
    if (!scale.finite) return 0;
    const float scaled = v * scale.inverse;
    return s8 ? static_cast<uint8_t>(static_cast<int8_t>(static_cast<int>(Round(scaled))))
              : E4M3Of(scaled);
  });
  StorePadding(to, kv.head_dim, uint8_t{0});
  if (ThreadIndex() % kWarp == 0) kv.scales[row] = scale.scale;
}

template <typename T, typename In>
ASSAY_KERNEL(kWarps* kWarp)
RopeAppendKernel(RopeAppendArgs args) {
  PdlWait();
  const int row = BlockX(), position = args.batch.positions[row];
  const int head = BlockY() * kWarps + ThreadIndex() / kWarp;
  const int heads = args.heads + 2 * args.kv.kv_heads;
  if (position < 0 || head >= heads) return;
  const int head_dim = args.kv.head_dim, half = head_dim / 2;
  Head x = LoadHead(
      static_cast<const In*>(args.qkv) + (static_cast<int64_t>(row) * heads + head) * head_dim,
      half);
  PdlTrigger();
  const bool is_q = head < args.heads, is_v = head >= args.heads + args.kv.kv_heads;
  if (!is_v && args.q_gain != nullptr)
    Normalize(x, is_q ? args.q_gain : args.k_gain, args.eps, half);
  if (!is_v && args.inv_freq != nullptr) Rotate(x, args, position, half);
  if (is_q) {
    T* const q =
        static_cast<T*>(args.q) + (static_cast<int64_t>(row) * args.heads + head) * head_dim;
    StoreHead(x, half, q, [](float v) { return FromFloat<T>(v); });
    return;
  }
  const int kv_head = (head - args.heads) % args.kv.kv_heads;
  const int64_t table =
      static_cast<int64_t>(args.batch.sequence_of_row[row]) * args.batch.max_blocks;
  const int block = args.batch.block_tables[table + position / kKvBlockTokens];
  Append<T>(x, args.kv,
            KvFirstRow(args.kv.kv_heads, block, kv_head, is_v ? 1 : 0) + position % kKvBlockTokens);
}

}  // namespace

const char* RopeAppendRefuses(const RopeAppendArgs& args) {
  if (const char* const reason = KvLayerRefuses(args.kv)) return reason;
  if (args.heads < 1) return "there must be query heads";
  if ((args.q_gain == nullptr) != (args.k_gain == nullptr))
    return "q and k have gains, or neither has";
  return nullptr;
}

int RopeAppend(const RopeAppendArgs& args, const LaunchContext& context) {
  if (args.batch.rows == 0) return 0;
  const int heads = args.heads + 2 * args.kv.kv_heads;
  const LaunchGrid grid = {
      .x = args.batch.rows, .y = (heads + kWarps - 1) / kWarps, .threads = kWarps * kWarp};
  if (args.type == Half::kF16) {
    return args.qkv_is_f32 ? Launch(grid, context, RopeAppendKernel<F16, float>, args)
                           : Launch(grid, context, RopeAppendKernel<F16, F16>, args);
  }
  return args.qkv_is_f32 ? Launch(grid, context, RopeAppendKernel<Bf16, float>, args)
                         : Launch(grid, context, RopeAppendKernel<Bf16, Bf16>, args);
}

}  // namespace assay::ASSAY_SIMT
