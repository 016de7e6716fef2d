#include "quant/kernels/cuda/expand.h"
#include "quant/kernels/cuda/skinny_format.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 256;
constexpr int kRun = 8;  // elements of a row that a thread takes; no group ends inside

// `count` bytes, at most 8, aligned to 8 or not.
ASSAY_DEVICE Pair LoadBytes(const unsigned char* from, int count) {
  if (count == 8 && reinterpret_cast<uintptr_t>(from) % 8 == 0) return Load8(from);
  uint32_t words[2] = {0, 0};
  ASSAY_UNROLL
  for (int i = 0; i < 8; ++i)
    if (i < count) words[i / 4] |= static_cast<uint32_t>(from[i]) << (8 * (i % 4));
  return {words[0], words[1]};
}

struct Run {
  int row, k, count;
};

// The codes of a run, of 4 or 8 bits.
template <int kBits>
ASSAY_DEVICE void LoadCodes(const StoredWeight& w, const Run& run, int (&codes)[kRun]) {
  const size_t row_bytes = (static_cast<size_t>(w.k) * kBits + 7) / 8;
  const Pair packed = LoadBytes(static_cast<const unsigned char*>(w.codes) + run.row * row_bytes +
                                    static_cast<size_t>(run.k) * kBits / 8,
                                (run.count * kBits + 7) / 8);
  ASSAY_UNROLL
  for (int i = 0; i < kRun; ++i) {
    const uint32_t word = kBits == 4 || i < 4 ? packed.x : packed.y;
    codes[i] = static_cast<int>((word >> (kBits * i % 32)) & ((1u << kBits) - 1));
  }
}

template <Storage kStorage>
ASSAY_DEVICE void DecodeRun(const StoredWeight& w, const Run& run, float (&out)[kRun]) {
  if constexpr (kStorage == Storage::kF32 || kStorage == Storage::kBf16 ||
                kStorage == Storage::kF16) {
    const size_t at = static_cast<size_t>(run.row) * w.k + run.k;
    ASSAY_UNROLL
    for (int i = 0; i < kRun; ++i) {
      if (i >= run.count) break;
      if constexpr (kStorage == Storage::kF32) {
        out[i] = static_cast<const float*>(w.codes)[at + i];
      } else {
        const uint16_t bits = static_cast<const uint16_t*>(w.codes)[at + i];
        out[i] = kStorage == Storage::kF16 ? ToFloat(F16{bits}) : ToFloat(Bf16{bits});
      }
    }
    return;
  }
  constexpr int kBits = StorageBits(kStorage) == 4 ? 4 : 8;
  int codes[kRun];
  LoadCodes<kBits>(w, run, codes);
  const int groups = GroupsOf(w);
  const GroupAt at = {run.row, groups == 1 ? 0 : run.k / w.group, groups};
  float scale = 0, base = 0;
  int zero = 0;
  if constexpr (kStorage == Storage::kInt4Group || kStorage == Storage::kInt4Float) {
    scale = ScaleBf16(w, at);
    zero = 8;
    if constexpr (kStorage == Storage::kInt4Float) {
      const auto* const zeros = static_cast<const uint16_t*>(w.zeros);
      base = ToFloat(Bf16{zeros[at.index()]});
    } else {
      zero = Int4Format::Zero(w, at);
    }
  } else if constexpr (kStorage == Storage::kInt8Group) {
    scale = ScaleBf16(w, at);
    if (w.zeros != nullptr) zero = ZeroOfByte(w, at);
  } else if constexpr (kStorage == Storage::kE4M3) {
    scale = ScaleF32(w, {run.row / w.scale_rows, at.group, groups});
  } else {
    scale = ScaleF32(w, at);
  }
  ASSAY_UNROLL
  for (int i = 0; i < kRun; ++i) {
    if constexpr (kStorage == Storage::kE4M3) {
      out[i] = FromE4M3(static_cast<uint8_t>(codes[i])) * scale;
    } else if constexpr (kStorage == Storage::kNf4) {
      out[i] = Nf4Value(codes[i]) * scale;
    } else {
      const bool is_signed = kStorage == Storage::kInt8Channel ||
                             (kStorage == Storage::kInt8Group && w.zeros == nullptr);
      const int code = is_signed ? (codes[i] ^ 128) - 128 : codes[i];
      out[i] = static_cast<float>(code - zero) * scale;
      if constexpr (kStorage == Storage::kInt4Float) out[i] += base;
    }
  }
}

template <Storage kStorage, typename T>
ASSAY_KERNEL(kThreads)
ExpandKernel(const ExpandArgs args) {
  const int runs = DivideUp(args.w.k, kRun);
  const int64_t index = static_cast<int64_t>(BlockX()) * kThreads + ThreadIndex();
  if (index >= static_cast<int64_t>(runs) * args.rows) return;
  const auto row = static_cast<int>(index / runs), k = static_cast<int>(index % runs) * kRun;
  const int count = args.w.k - k < kRun ? args.w.k - k : kRun;
  float values[kRun];
  ASSAY_UNROLL
  for (int i = 0; i < kRun; ++i) values[i] = 0;
  if (args.pick != nullptr) PdlWait();  // it may be of the kernel before
  const int from = args.pick == nullptr ? args.row + row : args.pick[row];
  if (from >= 0 && from < args.w.n) DecodeRun<kStorage>(args.w, {from, k, count}, values);
  if (args.pick == nullptr) PdlWait();
  T* const out = static_cast<T*>(args.out) + static_cast<size_t>(row) * args.out_stride + k;
  if constexpr (sizeof(T) == 4) {
    ASSAY_UNROLL
    for (int i = 0; i < kRun; ++i)
      if (i < count) out[i] = values[i];
    return;
  } else if (count == kRun && args.out_stride % 8 == 0) {
    Store16(out, {Pack2<T>(values[0], values[1]), Pack2<T>(values[2], values[3]),
                  Pack2<T>(values[4], values[5]), Pack2<T>(values[6], values[7])});
  } else {
    ASSAY_UNROLL
    for (int i = 0; i < kRun; ++i)
      if (i < count) out[i] = FromFloat<T>(values[i]);
  }
}

template <Storage kStorage>
int LaunchExpand(const ExpandArgs& args, const LaunchContext& context) {
  const int64_t runs = static_cast<int64_t>(DivideUp(args.w.k, kRun)) * args.rows;
  const LaunchGrid grid = {.x = static_cast<int>((runs + kThreads - 1) / kThreads),
                           .threads = kThreads};
  if (args.float_out) return Launch(grid, context, ExpandKernel<kStorage, float>, args);
  return args.t == Half::kF16 ? Launch(grid, context, ExpandKernel<kStorage, F16>, args)
                              : Launch(grid, context, ExpandKernel<kStorage, Bf16>, args);
}

}  // namespace

int Expand(const ExpandArgs& args, const LaunchContext& context) {
  switch (args.w.storage) {
    case Storage::kF32:
      return LaunchExpand<Storage::kF32>(args, context);
    case Storage::kBf16:
      return LaunchExpand<Storage::kBf16>(args, context);
    case Storage::kF16:
      return LaunchExpand<Storage::kF16>(args, context);
    case Storage::kInt4Group:
      return LaunchExpand<Storage::kInt4Group>(args, context);
    case Storage::kInt4Float:
      return LaunchExpand<Storage::kInt4Float>(args, context);
    case Storage::kInt8Channel:
      return LaunchExpand<Storage::kInt8Channel>(args, context);
    case Storage::kInt8Group:
      return LaunchExpand<Storage::kInt8Group>(args, context);
    case Storage::kE4M3:
      return LaunchExpand<Storage::kE4M3>(args, context);
    case Storage::kNf4:
      return LaunchExpand<Storage::kNf4>(args, context);
  }
  return kInvalidLaunch;
}

}  // namespace assay::ASSAY_SIMT
