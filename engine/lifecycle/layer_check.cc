#include "engine/lifecycle/layer_check.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/thread_pool.h"
#include "quant/accuracy.h"

namespace assay {
namespace {

constexpr int64_t kBlockRows = 64;
constexpr double kMaxErrorRatio = 4;
constexpr double kMaxNoiseRatio = 8, kMaxNoiseShare = 0.6;  // see CodesBy
constexpr int64_t kMinBlock = 32;
// Rounding of the decode itself: a few units in the last place of f32, relative to the row's peak.
constexpr double kDecodeRounding = 1e-6;

struct Block {
  SignalNoise power;
  std::string defect;
  absl::Status status;
};

double Peak(std::span<const float> row) {
  double peak = 0;
  for (const float value : row) peak = std::max(peak, std::abs(static_cast<double>(value)));
  return peak;
}

double LargestError(std::span<const float> a, std::span<const float> b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double error = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(error <= largest)) largest = error;  // NaN sticks
  }
  return largest;
}

struct Row {
  int64_t index;
  std::span<const float> exact, stored, fresh;
};

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

std::string MethodDefect(const Row& row, int64_t group) {
  const auto width = static_cast<int64_t>(row.exact.size());
  const int64_t step = std::max(group, std::min(kMinBlock, width));
  for (int64_t at = 0; at < width; at += step) {
    const auto begin = static_cast<size_t>(at);
    const auto count = static_cast<size_t>(std::min(step, width - at));
    SignalNoise stored, fresh;
    stored.Add(row.exact.subspan(begin, count), row.stored.subspan(begin, count));
    fresh.Add(row.exact.subspan(begin, count), row.fresh.subspan(begin, count));
    const double limit = std::max(kMaxNoiseRatio * fresh.noise, kMaxNoiseShare * stored.signal) +
                         kDecodeRounding * kDecodeRounding * stored.signal;
    if (stored.noise <= limit) continue;
    return absl::StrFormat(
        "stored weight disagrees with the checkpoint: row=%d columns=%d..%d noise=%.4g of the "
        "weights' energy %.4g expected at most %.4g",
        row.index, at, at + static_cast<int64_t>(count), stored.noise, stored.signal, limit);
  }
  return "";
}

absl::Status CheckRows(const QuantizedLinear& original, const QuantizedLinear& served,
                       CodesBy codes, int64_t first, Block& block) {
  const int64_t rows = std::min(kBlockRows, original.problem().shape[0] - first);
  const int64_t k = original.problem().shape[1];
  const auto width = static_cast<size_t>(k);
  const QuantScheme& scheme = *served.problem().scheme;
  ASSIGN_OR_RETURN(Tensor exact, Tensor::Create(CpuDevice(), {rows, k}, DType::kF32));
  for (int64_t i = 0; i < rows; ++i) {
    original.DecodeRow(first + i, {exact.data<float>() + i * k, width});
  }
  ASSIGN_OR_RETURN(const QuantizedTensor afresh, scheme.Encode(exact.view()));
  std::vector<float> rounded(static_cast<size_t>(rows * k)), stored(width);
  RETURN_IF_ERROR(scheme.DecodeRows(afresh, 0, rows, rounded));
  for (int64_t i = 0; i < rows; ++i) {
    const std::span<const float> row(exact.data<float>() + i * k, width);
    served.DecodeRow(first + i, stored);
    block.power.Add(row, stored);
    if (!block.defect.empty()) continue;
    const Row compared{first + i, row, stored,
                       std::span(rounded).subspan(static_cast<size_t>(i) * width, width)};
    block.defect = codes == CodesBy::kNearest
                       ? NearestDefect(compared)
                       : MethodDefect(compared, scheme.group(served.problem().shape));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WeightCheck> CheckServedWeight(const QuantizedLinear& original,
                                              const QuantizedLinear& served, CodesBy codes,
                                              ThreadPool& pool) {
  const int64_t n = original.problem().shape[0];
  std::vector<Block> blocks(static_cast<size_t>((n + kBlockRows - 1) / kBlockRows));
  pool.ParallelFor(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Block& block = blocks[static_cast<size_t>(b)];
      block.status = CheckRows(original, served, codes, b * kBlockRows, block);
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
  check.sqnr_db = total.sqnr_db();
  return check;
}

}  // namespace assay
