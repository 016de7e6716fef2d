#include "engine/lifecycle/layer_check.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/thread_pool.h"
#include "quant/accuracy.h"

namespace assay {
namespace {

constexpr int64_t kChunkRows = 64;
constexpr double kMaxErrorRatio = 4;
constexpr double kMaxNoiseRatio = 8, kMaxNoiseShare = 0.95;  // see CodesBy
constexpr double kGrown = 1.5, kMaxNoiseShareGrown = 0.5;
constexpr int64_t kMinBlock = 32;
// A shift of one step, of root mean square errors of the fresh rounding: sqrt(12) = 3.5.
constexpr double kMaxShift = 2.5;
constexpr int64_t kMinShifted = 16;
// A shift is most of its own noise; what clipping leaves over is not.
constexpr double kShiftOfNoise = 0.5;
// Rounding of the decode itself: a few units in the last place of f32, relative to the row's peak.
constexpr double kDecodeRounding = 1e-6;

struct RowRange {
  int64_t first, rows;
};

struct Block {
  SignalNoise power;
  std::string defect;
  absl::Status status;
};

// The largest of magnitude(0) .. magnitude(n - 1), which are not negative; NaN if one of them is
// NaN or infinite. In lanes, for vector registers: this is over every weight of a model.
template <class Magnitude>
double Largest(size_t n, const Magnitude& magnitude) {
  constexpr size_t kLanes = 8;
  std::array<float, kLanes> largest{}, zero{};
  for (size_t i = 0; i + kLanes <= n; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float value = magnitude(i + lane);
      largest[lane] = value > largest[lane] ? value : largest[lane];
      zero[lane] += value * 0.0f;  // NaN from then on
    }
  }
  for (size_t i = n / kLanes * kLanes; i < n; ++i) {
    const float value = magnitude(i);
    largest[0] = std::max(largest[0], value);
    zero[0] += value * 0.0f;
  }
  float sum = 0;
  for (const float lane : zero) sum += lane;
  return *std::max_element(largest.begin(), largest.end()) + static_cast<double>(sum);
}

double Peak(std::span<const float> row) {
  return Largest(row.size(), [&](size_t i) { return std::fabs(row[i]); });
}

double LargestError(std::span<const float> a, std::span<const float> b) {
  return Largest(a.size(), [&](size_t i) { return std::fabs(a[i] - b[i]); });
}

struct Row {
  int64_t index;
  std::span<const float> exact, stored, fresh;
};

// One block of a row: what was stored and what rounding afresh gives, against the original.
struct RowBlock {
  SignalNoise stored, fresh;
  double shift = 0;      // mean error of what was stored
  double fresh_rms = 0;  // of the fresh rounding's error
};

RowBlock Compare(const Row& row, size_t begin, size_t count) {
  RowBlock block;
  block.stored.Add(row.exact.subspan(begin, count), row.stored.subspan(begin, count));
  block.fresh.Add(row.exact.subspan(begin, count), row.fresh.subspan(begin, count));
  for (size_t i = begin; i < begin + count; ++i) {
    block.shift += static_cast<double>(row.stored[i]) - static_cast<double>(row.exact[i]);
  }
  block.shift /= static_cast<double>(count);
  block.fresh_rms = std::sqrt(block.fresh.noise / static_cast<double>(count));
  return block;
}

std::string NearestDefect(const Row& row) {
  const double error = LargestError(row.exact, row.stored);
  const double limit =
      kMaxErrorRatio * LargestError(row.exact, row.fresh) + kDecodeRounding * Peak(row.exact);
  if (error <= limit) return "";
  return absl::StrFormat(
      "stored weight disagrees with the checkpoint: row=%d largest error=%.4g expected at most "
      "%.4g",
      row.index, error, limit);
}

std::string ShiftDefect(const Row& row, size_t begin, size_t count) {
  const RowBlock block = Compare(row, begin, count);
  const double noise_rms = std::sqrt(block.stored.noise / static_cast<double>(count));
  const double limit =
      std::max(kMaxShift * block.fresh_rms, kShiftOfNoise * noise_rms) +
      kDecodeRounding * std::sqrt(block.stored.signal / static_cast<double>(count));
  if (static_cast<int64_t>(count) < kMinShifted || std::abs(block.shift) <= limit) return "";
  return absl::StrFormat(
      "stored weight disagrees with the checkpoint: row=%d columns=%d..%d shifted by %.4g on "
      "average, expected at most %.4g",
      row.index, begin, begin + count, block.shift, limit);
}

std::string BlockDefect(const Row& row, int64_t group, CodesBy codes) {
  const auto width = static_cast<int64_t>(row.exact.size());
  const int64_t step = std::max(group, std::min(kMinBlock, width));
  for (int64_t at = 0; at < width; at += step) {
    const auto count = static_cast<size_t>(std::min(step, width - at));
    const RowBlock block = Compare(row, static_cast<size_t>(at), count);
    const bool grown = Peak(row.stored.subspan(static_cast<size_t>(at), count)) >
                       kGrown * Peak(row.exact.subspan(static_cast<size_t>(at), count));
    if (codes == CodesBy::kFeedback && !grown) continue;
    const double share = codes == CodesBy::kNearest ? 0
                         : grown                    ? kMaxNoiseShareGrown
                                                    : kMaxNoiseShare;
    const double rounding = kDecodeRounding * std::sqrt(block.stored.signal);
    const double noise_limit =
        std::max(kMaxNoiseRatio * block.fresh.noise, share * block.stored.signal) +
        rounding * rounding;
    if (!(block.stored.noise <= noise_limit)) {
      return absl::StrFormat(
          "stored weight disagrees with the checkpoint: row=%d columns=%d..%d noise=%.4g of the "
          "weights' energy %.4g expected at most %.4g",
          row.index, at, at + static_cast<int64_t>(count), block.stored.noise, block.stored.signal,
          noise_limit);
    }
    // Error feedback moves the weights of a group together; of a whole row it cannot.
    if (codes != CodesBy::kNearest) continue;
    const std::string shifted = ShiftDefect(row, static_cast<size_t>(at), count);
    if (!shifted.empty()) return shifted;
  }
  return codes == CodesBy::kMethod ? ShiftDefect(row, 0, row.exact.size()) : "";
}

// Codes beside a low-rank branch are of what it leaves over, which in a block of small weights may
// be more than these are: whole rows are compared.
std::string RowDefect(const Row& row) {
  const RowBlock whole = Compare(row, 0, row.exact.size());
  const double rounding = kDecodeRounding * std::sqrt(whole.stored.signal);
  const double limit = kMaxNoiseRatio * whole.fresh.noise + rounding * rounding;
  if (whole.stored.noise <= limit) return "";
  return absl::StrFormat(
      "stored weight disagrees with the checkpoint: row=%d noise=%.4g of the weights' energy %.4g "
      "expected at most %.4g",
      row.index, whole.stored.noise, whole.stored.signal, limit);
}

std::string DefectOf(const Row& row, int64_t group, CodesBy codes, bool branch) {
  if (branch) return RowDefect(row);
  std::string defect = codes == CodesBy::kNearest ? NearestDefect(row) : "";
  return defect.empty() ? BlockDefect(row, group, codes) : defect;
}

absl::Status CheckRows(const QuantizedLinear& original, const QuantizedLinear& served,
                       CodesBy codes, RowRange range, Block& block) {
  const auto [first, rows] = range;
  const int64_t k = original.problem().shape[1];
  const auto width = static_cast<size_t>(k);
  const QuantScheme& scheme = *served.problem().scheme;
  ASSIGN_OR_RETURN(Tensor exact, Tensor::Create(CpuDevice(), {rows, k}, DType::kF32));
  for (int64_t i = 0; i < rows; ++i) {
    original.DecodeRow(first + i, {exact.data<float>() + i * k, width});
  }
  // Codes of a rotated weight are compared as they were found: turned back, their noise is spread
  // over columns that would have less of it.
  const HadamardRotation* rotation = served.rotation();
  if (rotation != nullptr)
    rotation->RotateRows({exact.data<float>(), static_cast<size_t>(rows * k)});
  ASSIGN_OR_RETURN(const QuantizedTensor afresh, scheme.Encode(exact.view()));
  std::vector<float> rounded(static_cast<size_t>(rows * k)), stored(width);
  RETURN_IF_ERROR(scheme.DecodeRows(afresh, 0, rows, rounded));
  for (int64_t i = 0; i < rows; ++i) {
    const std::span<const float> row(exact.data<float>() + i * k, width);
    served.DecodeRow(first + i, stored);
    if (rotation != nullptr) rotation->RotateRows(stored);
    block.power.Add(row, stored);
    if (!block.defect.empty()) continue;
    const Row compared{first + i, row, stored,
                       std::span(rounded).subspan(static_cast<size_t>(i) * width, width)};
    block.defect =
        DefectOf(compared, scheme.group(served.problem().shape), codes, served.low_rank() > 0);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WeightCheck> CheckServedWeight(const QuantizedLinear& original,
                                              const QuantizedLinear& served, CodesBy codes,
                                              ThreadPool& pool) {
  const int64_t n = original.problem().shape[0];
  // Rounded afresh with the rows that share their scales, else the scales would be finer.
  const int64_t together = served.problem().scheme->scale_rows(served.problem().shape);
  const int64_t chunk = (kChunkRows + together - 1) / together * together;
  std::vector<Block> blocks(static_cast<size_t>((n + chunk - 1) / chunk));
  pool.ParallelFor(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Block& block = blocks[static_cast<size_t>(b)];
      block.status =
          CheckRows(original, served, codes, {b * chunk, std::min(chunk, n - b * chunk)}, block);
    }
  });
  WeightCheck check;
  SignalNoise total;
  for (const Block& block : blocks) {  // in order: the same sum whatever the threads did
    RETURN_IF_ERROR(block.status);
    total.signal += block.power.signal;
    total.noise += block.power.noise;
    if (check.defect.empty()) check.defect = block.defect;
  }
  if (check.defect.empty() && total.signal == 0) {
    check.defect = "all weights of the checkpoint are zero here: a download that was cut short?";
  }
  check.sqnr_db = total.sqnr_db();
  return check;
}

}  // namespace assay
