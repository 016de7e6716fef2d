#include "quant/kernels/cuda/cuda_encode.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "quant/schemes/absmax_block.h"
#include "quant/schemes/affine_group.h"

namespace assay {
namespace {

constexpr int kEverything = std::numeric_limits<int>::max();
constexpr int kTile = 128;                // rows and columns of a block of fp8_e4m3:block
constexpr int kNotFinite = 0x7f800000;    // and above: bits of infinity and NaN
constexpr int64_t kMostOfARow = 1 << 30;  // kernels count in ints

enum class Maker { kRows, kGroups, kTiles, kNf4 };

// Which kernel makes the codes, and what of.
struct CodesPlan {
  Maker maker = Maker::kRows;
  RowCodes rows = RowCodes::kInt8Channel;
  int bits = 8;
  GroupGrid grid = GroupGrid::kSym;
  int64_t group = 0;       // inputs that share a scale; 0: the row
  int64_t scale_rows = 1;  // rows that do
  DType codes = DType::kU8, scales = DType::kF32;
};

std::optional<CodesPlan> GroupPlan(std::span<const std::string> options, int bits) {
  static constexpr std::array<int64_t, 4> kGroups = {32, 64, 128, 0};
  static constexpr std::array kGrids = {AffineGrid::kSym, AffineGrid::kFull, AffineGrid::kAsym};
  const absl::StatusOr<GroupOptions> parsed = ParseGroupOptions(options, kGroups, kGrids);
  if (!parsed.ok()) return std::nullopt;
  CodesPlan plan = {.maker = Maker::kGroups, .bits = bits, .group = parsed->group};
  plan.scales = DType::kBf16;
  if (parsed->grid == AffineGrid::kFull) plan.grid = GroupGrid::kFull;
  if (parsed->grid == AffineGrid::kAsym) plan.grid = GroupGrid::kAsym;
  if (bits == 8 && plan.grid == GroupGrid::kSym) plan.codes = DType::kI8;
  return plan;
}

// nullopt: the host does it.
std::optional<CodesPlan> PlanOf(const QuantScheme& scheme, const Shape& shape) {
  const std::vector<std::string> parts =
      absl::StrSplit(std::string(scheme.name()), absl::MaxSplits(':', 1));
  std::vector<std::string> options;
  if (parts.size() > 1) options = absl::StrSplit(parts[1], ',');
  const std::string& family = parts[0];
  if (family == "int4_group") return GroupPlan(options, 4);
  if (family == "int8_group") return GroupPlan(options, 8);
  if (family == "int8_channel") return CodesPlan{.codes = DType::kI8};
  if (family == "nf4") {
    const absl::StatusOr<AbsmaxOptions> parsed = ParseAbsmaxOptions(options);
    if (!parsed.ok() || parsed->nested) return std::nullopt;
    return CodesPlan{.maker = Maker::kNf4, .bits = 4, .group = parsed->block};
  }
  if (family != "fp8_e4m3") return std::nullopt;
  CodesPlan plan = {.rows = RowCodes::kE4M3Channel, .codes = DType::kF8E4M3};
  plan.scale_rows = scheme.scale_rows(shape);
  if (!options.empty()) plan.maker = Maker::kTiles;
  if (!options.empty() && options[0] == "block") plan.group = kTile;
  return plan;
}

int64_t DivideRoundingUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the scheme's Encode allocates, and how it lies in rows.
struct Blank {
  QuantizedTensor q;
  size_t codes_row = 0, zeros_row = 0;  // bytes of a row
  size_t scales_row = 0;                // of rows that share scales
};

absl::StatusOr<Blank> Allocate(const QuantScheme& scheme, const CodesPlan& plan, const Shape& w) {
  const int64_t n = w[0], k = w[1];
  const int64_t groups = plan.group == 0 ? 1 : DivideRoundingUp(k, plan.group);
  const int64_t scale_rows = DivideRoundingUp(n, plan.scale_rows);
  Blank blank;
  blank.q.scheme = &scheme;
  blank.q.shape = w;
  blank.q.group = plan.group;
  const Shape codes = {n, plan.bits == 4 ? DivideRoundingUp(k, 2) : k};
  // Of schemes without groups a vector.
  const bool vector =
      plan.maker == Maker::kRows || (plan.maker == Maker::kTiles && plan.group == 0);
  const Shape scales = vector ? Shape{scale_rows} : Shape{scale_rows, groups};
  ASSIGN_OR_RETURN(blank.q.codes, Tensor::Create(CpuDevice(), codes, plan.codes));
  ASSIGN_OR_RETURN(blank.q.scales, Tensor::Create(CpuDevice(), scales, plan.scales));
  blank.codes_row = BytesOf(codes[1], plan.codes);
  blank.scales_row = BytesOf(groups, plan.scales);
  if (plan.maker != Maker::kGroups || plan.grid != GroupGrid::kAsym) return blank;
  const int64_t zeros = plan.bits == 4 ? DivideRoundingUp(groups, 2) : groups;
  ASSIGN_OR_RETURN(blank.q.zeros, Tensor::Create(CpuDevice(), {n, zeros}, DType::kU8));
  blank.zeros_row = static_cast<size_t>(zeros);
  return blank;
}

// A slice on the device.
struct Slot {
  Buffer weight, codes, scales, zeros;
  Buffer tiles;               // largest magnitudes, of blocks
  int64_t row = 0, rows = 0;  // that lie there; none: 0
};

class Encoder {
 public:
  Encoder(const CudaBackend& backend, const CodesPlan& plan, TensorView w, Blank& blank)
      : backend_(backend), device_(backend.device), plan_(plan), w_(w), blank_(blank) {}
  ~Encoder() {
    if (stream_ == nullptr) return;
    // Copies under way end in memory that goes with this or with the result.
    device_.Noted(device_.runtime().Synchronize(stream_)).IgnoreError();
    device_.runtime().DestroyStream(stream_);
  }
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  absl::Status Run(size_t slot_bytes);

 private:
  int64_t n() const { return w_.shape[0]; }
  int k() const { return static_cast<int>(w_.shape[1]); }
  bool one_scale() const { return plan_.maker == Maker::kTiles && plan_.group == 0; }
  absl::Status Launched(int error, const char* op) const {
    if (error == 0) return absl::OkStatus();
    return device_.Noted(CudaStatus(error, absl::StrCat(op, " shape=", ToString(w_.shape))));
  }
  int64_t RowsOfSlice(size_t slot_bytes) const;
  absl::Status Open(int64_t slice);
  absl::Status Upload(int64_t row, int64_t slice, Slot& slot);
  absl::Status Measure(const Slot& slot);  // into largest_
  absl::Status MeasureSlices(int64_t slice);
  absl::Status Launch(Slot& slot);
  absl::Status LaunchTiles(Slot& slot);
  absl::Status Collect(Slot& slot);
  absl::Status CheckFinite();
  absl::Status Copy(const Buffer& from, Tensor& to, size_t at, size_t bytes) const;

  const CudaBackend& backend_;
  CudaDevice& device_;
  const CodesPlan& plan_;
  const TensorView w_;
  Blank& blank_;
  Buffer largest_;  // int: of the whole weight, as LargestOfTiles has it
  std::array<Slot, 2> slots_;
  GpuStream stream_ = nullptr;  // beside the one of uploads
};

int64_t Encoder::RowsOfSlice(size_t slot_bytes) const {
  const size_t row = 4 * static_cast<size_t>(k()) + blank_.codes_row + blank_.scales_row +
                     blank_.zeros_row + (plan_.maker == Maker::kTiles ? blank_.scales_row : 0);
  const auto rows = static_cast<int64_t>(slot_bytes / row);
  if (rows >= n()) return n();
  const int64_t together = one_scale() ? 1 : plan_.scale_rows;
  return rows / together * together;
}

absl::Status Encoder::Open(int64_t slice) {
  RETURN_IF_ERROR(device_.Use());
  absl::StatusOr<GpuStream> stream =
      device_.runtime().CreateStream(device_.index(), /*urgent=*/false);
  RETURN_IF_ERROR(device_.Noted(stream.status()));
  stream_ = *stream;
  ASSIGN_OR_RETURN(largest_, device_.Allocate(sizeof(int)));
  RETURN_IF_ERROR(device_.Noted(device_.runtime().Fill(largest_.data(), 0, sizeof(int), stream_)));
  const auto rows = static_cast<size_t>(slice);
  const auto scales =
      static_cast<size_t>(DivideRoundingUp(slice, plan_.scale_rows)) * blank_.scales_row;
  for (Slot& slot : std::span(slots_).first(slice < n() ? 2 : 1)) {
    ASSIGN_OR_RETURN(slot.weight, device_.Allocate(rows * 4 * static_cast<size_t>(k())));
    ASSIGN_OR_RETURN(slot.codes, device_.Allocate(rows * blank_.codes_row));
    ASSIGN_OR_RETURN(slot.scales, device_.Allocate(scales));
    ASSIGN_OR_RETURN(slot.zeros, device_.Allocate(rows * blank_.zeros_row));
    if (plan_.maker == Maker::kTiles && plan_.group != 0) {
      ASSIGN_OR_RETURN(slot.tiles, device_.Allocate(scales));
    }
  }
  return absl::OkStatus();
}

absl::Status Encoder::Upload(int64_t row, int64_t slice, Slot& slot) {
  slot.row = row;
  slot.rows = std::min(slice, n() - row);
  const size_t row_bytes = 4 * static_cast<size_t>(k());
  return device_.Upload(
      {w_.data + static_cast<size_t>(row) * row_bytes, static_cast<size_t>(slot.rows) * row_bytes},
      slot.weight);
}

absl::Status Encoder::Measure(const Slot& slot) {
  return Launched(
      backend_.kernels.largest_of_tiles({.from = slot.weight.data(),
                                         .largest = reinterpret_cast<int*>(largest_.data()),
                                         .rows = static_cast<int>(slot.rows),
                                         .k = k(),
                                         .tiles = {kEverything, kEverything}},
                                        {.stream = stream_}),
      "largest_of_tiles");
}

absl::Status Encoder::LaunchTiles(Slot& slot) {
  Tiles tiles = {kEverything, kEverything};
  int* largest = reinterpret_cast<int*>(largest_.data());
  if (!one_scale()) {
    tiles = {};
    largest = reinterpret_cast<int*>(slot.tiles.data());
    RETURN_IF_ERROR(device_.Noted(device_.runtime().Fill(largest, 0, slot.tiles.bytes(), stream_)));
    RETURN_IF_ERROR(Launched(backend_.kernels.largest_of_tiles({.from = slot.weight.data(),
                                                                .largest = largest,
                                                                .rows = static_cast<int>(slot.rows),
                                                                .k = k(),
                                                                .tiles = tiles},
                                                               {.stream = stream_}),
                             "largest_of_tiles"));
  }
  return Launched(
      backend_.kernels.quantize_tiles({.from = slot.weight.data(),
                                       .largest = largest,
                                       .codes = reinterpret_cast<uint8_t*>(slot.codes.data()),
                                       .scales = reinterpret_cast<float*>(slot.scales.data()),
                                       .rows = static_cast<int>(slot.rows),
                                       .k = k(),
                                       .tiles = tiles},
                                      {.stream = stream_}),
      "quantize_tiles");
}

absl::Status Encoder::Launch(Slot& slot) {
  const auto rows = static_cast<int>(slot.rows);
  auto* const codes = reinterpret_cast<uint8_t*>(slot.codes.data());
  auto* const scales = reinterpret_cast<float*>(slot.scales.data());
  const int group = plan_.group == 0 ? k() : static_cast<int>(plan_.group);
  const LaunchContext context = {.stream = stream_};
  switch (plan_.maker) {
    case Maker::kTiles:
      return LaunchTiles(slot);
    case Maker::kRows:
      return Launched(backend_.kernels.quantize_rows({.from = slot.weight.data(),
                                                      .codes = codes,
                                                      .scales = scales,
                                                      .rows = rows,
                                                      .k = k(),
                                                      .from_stride = k(),
                                                      .codes_stride = k(),
                                                      .to = plan_.rows},
                                                     context),
                      "quantize_rows");
    case Maker::kGroups:
      return Launched(backend_.kernels.quantize_groups(
                          {.from = slot.weight.data(),
                           .codes = codes,
                           .scales = reinterpret_cast<uint16_t*>(slot.scales.data()),
                           .zeros = reinterpret_cast<uint8_t*>(slot.zeros.data()),
                           .n = rows,
                           .k = k(),
                           .group = group,
                           .bits = plan_.bits,
                           .grid = plan_.grid},
                          context),
                      "quantize_groups");
    case Maker::kNf4:
      return Launched(backend_.kernels.quantize_nf4({.from = slot.weight.data(),
                                                     .codes = codes,
                                                     .scales = scales,
                                                     .n = rows,
                                                     .k = k(),
                                                     .block = group},
                                                    context),
                      "quantize_nf4");
  }
  return absl::InternalError("no such quantizer");
}

absl::Status Encoder::Copy(const Buffer& from, Tensor& to, size_t at, size_t bytes) const {
  if (bytes == 0) return absl::OkStatus();
  return device_.Noted(
      device_.runtime().Download(from.data(), to.mutable_view().data + at, bytes, stream_));
}

// What was made of the slice, when it has been made.
absl::Status Encoder::Collect(Slot& slot) {
  if (slot.rows == 0) return absl::OkStatus();
  const auto row = static_cast<size_t>(slot.row), rows = static_cast<size_t>(slot.rows);
  const auto scale_row = static_cast<size_t>(slot.row / plan_.scale_rows);
  const auto scale_rows = static_cast<size_t>(DivideRoundingUp(slot.rows, plan_.scale_rows));
  QuantizedTensor& q = blank_.q;
  RETURN_IF_ERROR(Copy(slot.codes, q.codes, row * blank_.codes_row, rows * blank_.codes_row));
  RETURN_IF_ERROR(
      Copy(slot.scales, q.scales, scale_row * blank_.scales_row, scale_rows * blank_.scales_row));
  RETURN_IF_ERROR(Copy(slot.zeros, q.zeros, row * blank_.zeros_row, rows * blank_.zeros_row));
  slot.rows = 0;
  return device_.Noted(device_.runtime().Synchronize(stream_));
}

absl::Status Encoder::CheckFinite() {
  int largest = 0;
  RETURN_IF_ERROR(device_.Noted(
      device_.runtime().Download(largest_.data(), &largest, sizeof(largest), stream_)));
  RETURN_IF_ERROR(device_.Noted(device_.runtime().Synchronize(stream_)));
  if (largest < kNotFinite) return absl::OkStatus();
  return absl::InvalidArgumentError("the weight holds NaN or infinity");
}

absl::Status Encoder::MeasureSlices(int64_t slice) {
  for (int64_t row = 0; row < n(); row += slice) {
    Slot& slot = slots_[0];
    RETURN_IF_ERROR(Upload(row, slice, slot));
    RETURN_IF_ERROR(Measure(slot));
    RETURN_IF_ERROR(device_.Noted(device_.runtime().Synchronize(stream_)));
    slot.rows = 0;
  }
  return absl::OkStatus();
}

absl::Status Encoder::Run(size_t slot_bytes) {
  const int64_t slice = RowsOfSlice(slot_bytes);
  if (slice == 0)
    return absl::UnimplementedError(
        absl::StrCat("rows are too long for slices: shape=", ToString(w_.shape)));
  RETURN_IF_ERROR(Open(slice));
  // A scale for all slices is known when all have been looked at.
  const bool measured = one_scale() && slice < n();
  if (measured) RETURN_IF_ERROR(MeasureSlices(slice));
  size_t turn = 0;
  for (int64_t row = 0; row < n(); row += slice, turn ^= 1) {
    Slot& slot = slots_[turn];
    RETURN_IF_ERROR(Upload(row, slice, slot));
    RETURN_IF_ERROR(Collect(slots_[turn ^ 1]));  // of the slice before, made meanwhile
    if (!measured) RETURN_IF_ERROR(Measure(slot));
    RETURN_IF_ERROR(Launch(slot));
  }
  RETURN_IF_ERROR(Collect(slots_[turn ^ 1]));
  return CheckFinite();
}

}  // namespace

absl::StatusOr<QuantizedTensor> CudaEncode(const CudaBackend& backend, const QuantScheme& scheme,
                                           TensorView w, size_t slot_bytes) {
  if (w.dtype != DType::kF32 || !scheme.Accepts(w.shape).ok())
    return absl::InvalidArgumentError(absl::StrCat("no matrix in f32: shape=", ToString(w.shape)));
  const std::optional<CodesPlan> plan = PlanOf(scheme, w.shape);
  if (!plan.has_value() || w.shape[1] > kMostOfARow)
    return absl::UnimplementedError(
        absl::StrCat("no quantizer on the device: scheme=", std::string(scheme.name())));
  ASSIGN_OR_RETURN(Blank blank, Allocate(scheme, *plan, w.shape));
  RETURN_IF_ERROR(Encoder(backend, *plan, w, blank).Run(slot_bytes));
  return std::move(blank.q);
}

}  // namespace assay
