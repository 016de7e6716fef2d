// Kernels "avx512_int8" and "avx2_int8": weights of integers times scales (all with
// QuantScheme::has_integers, whatever their bits: int8_channel, int8_group, int4_group, ...) times
// integer or a16 activations on AVX2. One packed copy of the codes, a byte each, serves decode,
// which runs at memory speed, and prefill (panel_int8_micro.h).
//
// With one scale per row, a8_token is exact: the integer dot products and the f32 epilogue are
// those of "reference", bit for bit, for every m. A short list of the weights' excess makes many
// rows faster with AVX2 (avx2_int8_bounded.h). With a scale per group, the dots of groups are exact
// and their scaled sum is f32.
//
// a8_tensor, a8_mix and a4_token are exact in the same way, by the first of these loops.
//
// a16 rounds each row of x to 16-bit codes with a scale of its own,
//
//   scale = absmax(x) / A,  A = min(32767, (2^31 - 1) / max over groups of sum |code of W|),
//
// and is exact from there: A is the largest range whose sums fit 32 bit. Each x moves by at most
// scale / 2. Twice as fast as f32 (docs/performance.md). Refused where A < 4095.
#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/cpu_info.h"
#include "base/float16.h"
#include "quant/activation.h"
#include "quant/kernels/a8_token.h"
#include "quant/kernels/cpu/avx2_int8_bounded.h"
#include "quant/kernels/cpu/panel_tasks.h"
#include "quant/kernels/kernels.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

// k * 255 * 127 must fit 32 bit, where a row is one group.
constexpr int64_t kMaxK = (int64_t{1} << 31) / (255 * 127) - 1;
constexpr int64_t kMinA16Code = 4095;  // 13 bits with the sign
constexpr Int8TokenRange kA8Range = {kA8MaxCode, kA8Smallest};
constexpr float kA16Smallest = 0x1p-112f;  // 32767 / kA16Smallest is finite
// The bounded product pays from about so many rows on; a larger excess asks for more of them
// (docs/performance.md): 16 + 400 * (excess / weights).
constexpr int64_t kBoundedFromRows = 16;
constexpr double kRowsPerExcess = 400;
// Rows of x that one task multiplies by a panel before it takes the next panel.
constexpr int64_t kTaskBytes = 256 << 10;
constexpr int64_t kTaskChunks = 2;

struct Packed final : PackedWeight {
  int64_t n = 0, k = 0;
  Tensor panels;        // s8 [num_panels, 4 groups, 16, 2]
  Tensor scales;        // f32 [num_panels * 16], of rows
  int64_t group = 0;    // inputs that share a scale
  Tensor group_scales;  // bf16 [num_panels, k / group rounded up, 16], or empty
  int64_t largest = 1;  // of the sums of |code| over a group
  std::optional<Int8Excess> excess;
  int64_t bounded_from_rows = 0;
  Int8TokenRange range = kA8Range;
  ActivationMode mode = ActivationMode::kA8Token;
  ActivationParams params;  // of the other modes

  size_t bytes() const override {
    return panels.bytes() + scales.bytes() + group_scales.bytes() + (excess ? excess->bytes() : 0);
  }
  int64_t num_panels() const { return (n + kInt8PanelColumns - 1) / kInt8PanelColumns; }
  int64_t groups() const { return (k + kInt8PanelGroup - 1) / kInt8PanelGroup; }
  int64_t row_groups() const { return (k + group - 1) / group; }
  int64_t padded_k() const { return groups() * kInt8PanelGroup; }
};

int64_t NumGroups(const QuantizedTensor& w) {  // of a row
  const int64_t group = w.scheme->group(w.shape);
  return (w.shape[1] + group - 1) / group;
}

// Some rows of the weight in integers.
struct Rows {
  std::vector<int8_t> codes;
  std::vector<uint16_t> group_scales;
  std::vector<float> row_scales;
};

// Of rows [row, row + rows) the codes, and the sums that Packed::largest asks for.
absl::Status PackCodes(const Rows& from, int64_t row, Packed& packed) {
  const int64_t k = packed.k;
  int8_t* panel = packed.panels.data<int8_t>() + row / 16 * packed.groups() * 128;
  for (int64_t r = 0; r < std::ssize(from.row_scales); ++r) {
    const int8_t* codes = from.codes.data() + r * k;
    const int8_t* lowest = std::find(codes, codes + k, int8_t{-128});
    if (lowest != codes + k) {
      return absl::InvalidArgumentError(
          absl::StrCat("integer codes lie in [-127, 127]: row=", row + r,
                       " column=", lowest - codes, " code=-128"));
    }
    for (int64_t begin = 0; begin < k; begin += packed.group) {
      int32_t sum = 0;  // k <= kMaxK
      for (int64_t i = begin; i < std::min(k, begin + packed.group); ++i) sum += std::abs(codes[i]);
      packed.largest = std::max<int64_t>(packed.largest, sum);
    }
    for (int64_t i = 0; i + 1 < k; i += 2) std::memcpy(panel + Int8PanelOffset(r, i), codes + i, 2);
    if (k % 2 != 0) panel[Int8PanelOffset(r, k - 1)] = codes[k - 1];
  }
  return absl::OkStatus();
}

// Panel by panel, with packed.group as it is.
absl::Status PackRows(const QuantizedTensor& w, Packed& packed) {
  const auto k = static_cast<size_t>(packed.k), groups = static_cast<size_t>(packed.row_groups());
  Rows rows;
  for (int64_t row = 0; row < packed.n; row += 16) {
    const auto some = static_cast<size_t>(std::min<int64_t>(16, packed.n - row));
    rows.codes.resize(some * k);
    rows.group_scales.resize(some * static_cast<size_t>(NumGroups(w)));
    rows.row_scales.resize(some);
    RETURN_IF_ERROR(w.scheme->ReadIntegers(w, row, static_cast<int64_t>(some),
                                           {rows.codes, rows.group_scales, rows.row_scales}));
    RETURN_IF_ERROR(PackCodes(rows, row, packed));
    std::copy(rows.row_scales.begin(), rows.row_scales.end(), packed.scales.data<float>() + row);
    if (packed.group_scales.empty()) continue;
    uint16_t* scales = packed.group_scales.data<uint16_t>() + row * packed.row_groups();
    for (size_t i = 0; i < rows.group_scales.size(); ++i)
      scales[i % groups * 16 + i / groups] = rows.group_scales[i];
  }
  return absl::OkStatus();
}

// Groups are dropped where rows have the scales, and their scale is the row's where there is one.
absl::Status PackPanels(const QuantizedTensor& w, Packed& packed) {
  constexpr uint16_t kOne = 0x3f80;  // in bf16
  const int64_t group = w.scheme->group(w.shape), scales = packed.num_panels() * 16 * NumGroups(w);
  packed.group = group;
  ASSIGN_OR_RETURN(packed.group_scales, Tensor::Create(CpuDevice(), {scales}, DType::kBf16));
  std::memset(packed.panels.data<int8_t>(), 0, packed.panels.bytes());
  std::fill_n(packed.group_scales.data<uint16_t>(), scales, kOne);
  std::fill_n(packed.scales.data<float>(), packed.num_panels() * 16, 0.0f);
  RETURN_IF_ERROR(PackRows(w, packed));
  const std::span<const uint16_t> stored(packed.group_scales.data<uint16_t>(),
                                         static_cast<size_t>(scales));
  const bool ones = std::all_of(stored.begin(), stored.end(), [](uint16_t s) { return s == kOne; });
  if (!ones && group < packed.k) return absl::OkStatus();
  for (int64_t row = 0; group >= packed.k && row < packed.n; ++row)
    packed.scales.data<float>()[row] *= Bf16ToF32(stored[static_cast<size_t>(row)]);
  packed.group = packed.k;
  packed.group_scales = Tensor();
  // The sums of |code| are those of rows now.
  return group < packed.k ? PackRows(w, packed) : absl::OkStatus();
}

// Of a16: the largest A, see above.
absl::StatusOr<Int8TokenRange> A16Range(int64_t largest) {
  const int64_t max_code = std::min<int64_t>(32767, INT32_MAX / largest);
  if (max_code < kMinA16Code) {
    return absl::UnimplementedError(
        absl::StrCat("sums of |code| up to ", largest, " leave activations ", max_code,
                     " codes in 32-bit sums; at least ", kMinA16Code, " are wanted"));
  }
  return Int8TokenRange{static_cast<float>(max_code), kA16Smallest};
}

// How m rows are cut into chunks of at most kBoundedRows, nearly equal, a multiple of 16 each.
struct Chunks {
  int64_t rows, count;
};
Chunks ChunksOf(int64_t m) {
  const int64_t least = (m + kBoundedRows - 1) / kBoundedRows;
  const int64_t rows = ((m + least - 1) / least + 15) / 16 * 16;
  return {rows, (m + rows - 1) / rows};
}

// What differs between the instruction sets.
struct Loops {
  const char *name, *missing;
  bool supported;
  bool bounds;  // many rows of a8_token by the bounded product
  void (*panels)(const Int8PanelJob& job, const int16_t* x, int64_t panel_begin, int64_t panel_end);
  void (*group_panels)(const Int8GroupJob& job, const int16_t* x, int64_t panel_begin,
                       int64_t panel_end);
};

class PanelInt8 final : public LinearKernel {
 public:
  explicit PanelInt8(const Loops& loops) : loops_(loops) {}
  std::string_view name() const override { return loops_.name; }

  absl::Status Supports(const LinearProblem& p) const override {
    if (!p.scheme->has_integers() || p.activation == ActivationMode::kInt8Outlier ||
        HasFp8Codes(p.activation)) {
      return absl::UnimplementedError(
          "multiplies weights of integers times scales by integer activations without columns of "
          "their own");
    }
    if (!loops_.supported) return absl::UnimplementedError(loops_.missing);
    if (p.shape[1] > kMaxK) {
      return absl::UnimplementedError(
          absl::StrCat("32-bit sums are exact up to k=", kMaxK, ": k=", p.shape[1]));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<const PackedWeight>> Pack(const QuantizedTensor& w,
                                                           ActivationMode mode) const override {
    auto packed = std::make_unique<Packed>();
    packed->n = w.shape[0];
    packed->k = w.shape[1];
    packed->mode = mode;
    ASSIGN_OR_RETURN(packed->params, ReadActivationParams(w, mode));
    const int64_t panels = packed->num_panels();
    ASSIGN_OR_RETURN(packed->panels,
                     Tensor::Create(CpuDevice(), {panels * packed->groups() * 128}, DType::kI8));
    ASSIGN_OR_RETURN(packed->scales, Tensor::Create(CpuDevice(), {panels * 16}, DType::kF32));
    RETURN_IF_ERROR(PackPanels(w, *packed));
    if (mode == ActivationMode::kA16) {
      ASSIGN_OR_RETURN(packed->range, A16Range(packed->largest));
    }
    if (loops_.bounds && mode == ActivationMode::kA8Token && w.scheme == &Int8ChannelScheme()) {
      ASSIGN_OR_RETURN(packed->excess, Int8Excess::Find(w.codes.data<int8_t>(), w.shape));
    }
    if (packed->excess) {
      packed->bounded_from_rows =
          kBoundedFromRows +
          static_cast<int64_t>(kRowsPerExcess * packed->excess->fraction(w.shape));
    }
    return packed;
  }

  size_t scratch_bytes(const LinearProblem& p, int64_t m) const override {
    const int64_t padded_k = (p.shape[1] + kInt8PanelGroup - 1) / kInt8PanelGroup * kInt8PanelGroup;
    int64_t bytes = m * (padded_k * 2 + 4) + 256;
    if (loops_.bounds && p.activation == ActivationMode::kA8Token && m >= kBoundedFromRows) {
      bytes += ChunksOf(m).count * padded_k * kBoundedRows * 2;
      bytes += MaxPanelWorkers() * WorkerBytes(padded_k);
    }
    return static_cast<size_t>(bytes);
  }

  void Run(const PackedWeight& w, const LinearArgs& args, ComputeContext& context) const override {
    const auto& packed = static_cast<const Packed&>(w);
    const Arena::Scope scope(context.scratch);
    if (packed.excess && args.x.shape[0] >= packed.bounded_from_rows) {
      RunBounded(packed, args, context);
    } else {
      RunExact(packed, args, context);
    }
  }

  void DecodeRow(const PackedWeight& w, int64_t row, std::span<float> out) const override {
    const auto& packed = static_cast<const Packed&>(w);
    const int8_t* panel = packed.panels.data<int8_t>() + row / 16 * packed.groups() * 128;
    const float scale = packed.scales.data<float>()[row];
    const uint16_t* steps =
        packed.group_scales.empty()
            ? nullptr
            : packed.group_scales.data<uint16_t>() + row / 16 * packed.row_groups() * 16 + row % 16;
    for (int64_t i = 0; i < packed.k; ++i) {
      const float step = steps == nullptr ? 1 : Bf16ToF32(steps[i / packed.group * 16]);
      out[i] = static_cast<float>(panel[Int8PanelOffset(row % 16, i)]) * step * scale;
    }
  }

 private:
  static int64_t WorkerBytes(int64_t padded_k) {
    return padded_k * 16 + 2 * kBoundedRows * 16 * static_cast<int64_t>(sizeof(int32_t));
  }

  // The job of rows [row, row_end).
  static Int8PanelJob Job(const Packed& packed, const LinearArgs& args, const float* x_scales,
                          int64_t row, int64_t row_end) {
    return {.panels = packed.panels.data<int8_t>(),
            .weight_scales = packed.scales.data<float>(),
            .groups = packed.groups(),
            .x_scales = x_scales + row,
            .m = row_end - row,
            .bias = args.bias.empty() ? nullptr : args.bias.as<float>(),
            .y = args.y.as<float>() + row * packed.n,
            .n = packed.n,
            .accumulate = args.accumulate};
  }

  static double Work(const Packed& packed, int64_t m) {
    return static_cast<double>(m) * static_cast<double>(packed.n * packed.k);
  }

  // One row of x as s16 codes, padded; returns its scale.
  static float Quantize(const Packed& packed, const uint8_t* decode_rows, int64_t row,
                        const float* x, int16_t* codes) {
    if (packed.mode == ActivationMode::kA16 || packed.mode == ActivationMode::kA8Token)
      return Avx2QuantizeToken(x, packed.k, packed.range, codes);
    std::fill(codes + packed.k, codes + packed.padded_k(), int16_t{0});
    const auto k = static_cast<size_t>(packed.k);
    return QuantizeRow(packed.mode, packed.params,
                       {decode_rows != nullptr && decode_rows[row] != 0}, {x, k}, {codes, k});
  }

  void RunExact(const Packed& packed, const LinearArgs& args, ComputeContext& context) const {
    const int64_t m = args.x.shape[0], k = packed.k, padded_k = packed.padded_k();
    auto* codes = context.scratch.Allocate<int16_t>(static_cast<size_t>(m * padded_k));
    auto* scales = context.scratch.Allocate<float>(static_cast<size_t>(m));
    const float* x = args.x.as<float>();
    const uint8_t* decode_rows = context.decode_rows;
    // About 0.1 us per thousand elements: small batches are not worth a fork of their own.
    context.pool.ParallelFor(m, std::max<int64_t>(1, 24000 / k), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        scales[row] = Quantize(packed, decode_rows, row, x + row * k, codes + row * padded_k);
    });
    const PanelGrid grid = {m, packed.num_panels(),
                            std::max<int64_t>(12, kTaskBytes / (padded_k * 2)), 12,
                            Work(packed, m)};
    ForPanelTasks(context.pool, grid, [&](int, const PanelTask& task) {
      const Int8PanelJob job = Job(packed, args, scales, task.row, task.row_end);
      const int16_t* x_codes = codes + task.row * padded_k;
      if (packed.group_scales.empty()) {
        loops_.panels(job, x_codes, task.panel, task.panel_end);
      } else {
        loops_.group_panels({job, packed.group_scales.data<uint16_t>(), packed.group}, x_codes,
                            task.panel, task.panel_end);
      }
    });
  }

  static void RunBounded(const Packed& packed, const LinearArgs& args, ComputeContext& context) {
    const int64_t m = args.x.shape[0], padded_k = packed.padded_k();
    const Chunks chunks = ChunksOf(m);
    auto* codes = context.scratch.Allocate<uint8_t>(static_cast<size_t>(m * padded_k));
    auto* scales = context.scratch.Allocate<float>(static_cast<size_t>(m));
    auto* columns = context.scratch.Allocate<uint16_t>(
        static_cast<size_t>(chunks.count * padded_k * kBoundedRows));
    auto* per_worker = context.scratch.Allocate<std::byte>(
        static_cast<size_t>(PanelWorkers(context.pool) * WorkerBytes(padded_k)));

    const auto chunk_job = [&](int64_t chunk) {
      const int64_t row = chunk * chunks.rows;
      return Int8BoundedJob{.panel = Job(packed, args, scales, row, std::min(m, row + chunks.rows)),
                            .x = codes + row * padded_k,
                            .x_columns = columns + chunk * padded_k * kBoundedRows};
    };
    const float* x = args.x.as<float>();
    const auto quantize = [&](int64_t begin, int64_t end) {  // in blocks of 16 rows
      for (int64_t row = begin * 16; row < std::min(m, end * 16); row += 16) {
        for (int64_t r = row; r < std::min(m, row + 16); ++r) {
          scales[r] = Avx2QuantizeA8TokenU8(x + r * packed.k, packed.k, codes + r * padded_k, true);
        }
        const int64_t chunk = row / chunks.rows;
        Avx2TransposeCodes(chunk_job(chunk), row - chunk * chunks.rows,
                           columns + chunk * padded_k * kBoundedRows);
      }
    };
    context.pool.ParallelFor((m + 15) / 16, 1, quantize);

    const Int8ExcessView excess = packed.excess->view();
    const PanelGrid grid = {chunks.count, packed.num_panels(), kTaskChunks, 1, Work(packed, m)};
    ForPanelTasks(context.pool, grid, [&](int worker, const PanelTask& task) {
      auto* bounded = reinterpret_cast<int8_t*>(per_worker + worker * WorkerBytes(padded_k));
      auto* sums = reinterpret_cast<int32_t*>(bounded + padded_k * 16);
      for (int64_t panel = task.panel; panel < task.panel_end; ++panel) {
        Avx2BoundPanel(chunk_job(0).panel, excess, panel, bounded);
        for (int64_t chunk = task.row; chunk < task.row_end; ++chunk)
          Avx2BoundedPanel(chunk_job(chunk), excess, panel, bounded, sums);
      }
    });
  }

  Loops loops_;
};

}  // namespace

const LinearKernel& Avx512Int8Kernel() {
  static const PanelInt8 kernel(
      {"avx512_int8", "CPU has no AVX512-VNNI",
       HostCpu().avx512f && HostCpu().avx512bw && HostCpu().avx512_vnni && HostCpu().avx2, false,
       &Avx512Int8Panels, &Avx512Int8GroupPanels});
  return kernel;
}

const LinearKernel& Avx2Int8Kernel() {
  static const PanelInt8 kernel({"avx2_int8", "CPU has no AVX2 and FMA",
                                 HostCpu().avx2 && HostCpu().fma, true, &Avx2Int8Panels,
                                 &Avx2Int8GroupPanels});
  return kernel;
}

}  // namespace assay
