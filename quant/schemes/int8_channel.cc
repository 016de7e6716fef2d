// Scheme "int8_channel": symmetric 8 bit, one scale per output channel (row of W).
// reference/quantization: restricted symmetric grid, s = absmax / 127, w ~ s * code.
//
//   codes   s8  [n, k] row-major, in [-127, 127]: | c[0,0] | c[0,1] | ... | c[0,k-1] | c[1,0] | ...
//   scales  f32 [n]:                              | s[0] | s[1] | ... | s[n-1] |
//
// A row whose absmax is at most half the smallest normal f32 (FLT_MIN) counts as zero: scale 0,
// codes 0. Scales are never subnormal: s = max(absmax / 127, FLT_MIN), so that
// |w - s * code| <= max(s, FLT_MIN) / 2 for every finite row.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "quant/schemes/matrix_checks.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

constexpr int kMaxCode = 127;
// A row of equal codes is a defect only where chance does not make it: 16 weights and more.
constexpr int64_t kMinConstantRow = 16;

// Rounds half to even without a library call; exact for |v| < 2^22.
inline float RoundHalfEven(float v) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: its ulp is 1
  return (v + kMagic) - kMagic;
}

float ScaleOf(const float* w, int64_t k, float shrink) {
  float absmax = 0;
  for (int64_t i = 0; i < k; ++i) absmax = std::max(absmax, std::fabs(w[i]));
  absmax *= shrink;
  return absmax <= FLT_MIN / 2 ? 0 : std::max(absmax / kMaxCode, FLT_MIN);
}

// Clamped before rounding: beyond 2^22 the rounding is not one.
inline float CodeOf(float w, float scale) {
  return RoundHalfEven(std::clamp(w / scale, -127.0f, 127.0f));
}

void EncodeRow(const float* w, int64_t k, float scale, int8_t* codes) {
  if (scale == 0) {
    std::fill_n(codes, k, int8_t{0});
    return;
  }
  for (int64_t i = 0; i < k; ++i) codes[i] = static_cast<int8_t>(CodeOf(w[i], scale));
}

struct RowCounts {
  int64_t zeros = 0, saturated = 0, forbidden = 0;
  bool constant = true;
};

RowCounts Count(const int8_t* codes, int64_t k) {
  RowCounts counts;
  int64_t equal = 0;
  for (int64_t i = 0; i < k; ++i) {
    counts.zeros += codes[i] == 0;
    counts.saturated += codes[i] >= kMaxCode || codes[i] <= -kMaxCode;
    counts.forbidden += codes[i] < -kMaxCode;
    equal += codes[i] == codes[0];
  }
  counts.constant = equal == k;
  return counts;
}

// Why the row is broken, or nullptr.
const char* Defect(float scale, const RowCounts& counts, int64_t k) {
  if (std::isnan(scale)) return "scale is NaN";
  if (std::isinf(scale)) return "scale is infinite";
  if (scale < 0) return "scale is negative";
  if (counts.forbidden > 0) return "code -128 is outside [-127, 127]";
  const bool all_zero = counts.zeros == k;
  if (scale == 0 && !all_zero) return "scale is zero but codes are not";
  if (scale != 0 && all_zero) return "all codes are zero but the scale is not";
  if (counts.constant && !all_zero && k >= kMinConstantRow) return "all codes of the row are equal";
  return nullptr;
}

class Int8Channel final : public QuantScheme {
 public:
  std::string_view name() const override { return "int8_channel"; }
  double bits_per_weight(const Shape& w) const override {
    return 8 + 32.0 / static_cast<double>(w[1]);
  }
  bool is_floating() const override { return false; }
  absl::Status Accepts(const Shape& w) const override { return CheckMatrixShape(name(), w); }

  int64_t group(const Shape& w) const override { return w[1]; }

  absl::StatusOr<QuantizedTensor> Fit(TensorView w, const FitOptions& options) const override {
    RETURN_IF_ERROR(CheckEncodable(name(), w));
    const int64_t n = w.shape[0], k = w.shape[1];
    RETURN_IF_ERROR(CheckShrink(name(), options, n));
    QuantizedTensor grid;
    grid.scheme = this;
    grid.shape = w.shape;
    ASSIGN_OR_RETURN(grid.scales, Tensor::Create(CpuDevice(), Shape{n}, DType::kF32));
    for (int64_t row = 0; row < n; ++row) {
      grid.scales.data<float>()[row] =
          ScaleOf(w.as<float>() + row * k, k, options.shrink.empty() ? 1 : options.shrink[row]);
    }
    return grid;
  }

  absl::StatusOr<QuantizedTensor> EncodeOn(TensorView w, QuantizedTensor q) const override {
    ASSIGN_OR_RETURN(q.codes, Tensor::Create(CpuDevice(), w.shape, DType::kI8));
    const int64_t n = w.shape[0], k = w.shape[1];
    for (int64_t row = 0; row < n; ++row) {
      EncodeRow(w.as<float>() + row * k, k, q.scales.data<float>()[row],
                q.codes.data<int8_t>() + row * k);
    }
    return q;
  }

  void NearestColumn(const QuantizedTensor& grid, int64_t, std::span<const float> w,
                     std::span<float> out) const override {
    const float* scales = grid.scales.data<float>();
    for (size_t i = 0; i < w.size(); ++i)
      out[i] = scales[i] == 0 ? 0 : scales[i] * CodeOf(w[i], scales[i]);
  }

  absl::Status DecodeRows(const QuantizedTensor& q, int64_t row, int64_t rows,
                          std::span<float> out) const override {
    RETURN_IF_ERROR(CheckDecodable(q, {DType::kI8, true}, {row, rows}, out.size()));
    const int64_t k = q.shape[1];
    for (int64_t i = 0; i < rows; ++i) {
      const float scale = q.scales.data<float>()[row + i];
      const int8_t* codes = q.codes.data<int8_t>() + (row + i) * k;
      for (int64_t j = 0; j < k; ++j) out[i * k + j] = scale * static_cast<float>(codes[j]);
    }
    return absl::OkStatus();
  }

  bool has_integers() const override { return true; }
  absl::Status ReadIntegers(const QuantizedTensor& q, int64_t row, int64_t rows,
                            const IntegerRows& out) const override {
    RETURN_IF_ERROR(CheckIntegerRows(q, {row, rows}, out));
    std::copy_n(q.codes.data<int8_t>() + row * q.shape[1], rows * q.shape[1], out.codes.data());
    std::copy_n(q.scales.data<float>() + row, rows, out.row_scales.data());
    std::fill_n(out.group_scales.data(), rows, F32ToBf16(1));
    return absl::OkStatus();
  }

  IntegrityFinding Inspect(const QuantizedTensor& q) const override {
    const int64_t n = q.shape[0], k = q.shape[1];
    IntegrityFinding finding;
    int64_t zeros = 0, saturated = 0;
    for (int64_t row = 0; row < n; ++row) {
      const RowCounts counts = Count(q.codes.data<int8_t>() + row * k, k);
      zeros += counts.zeros;
      saturated += counts.saturated;
      const char* defect = Defect(q.scales.data<float>()[row], counts, k);
      if (defect != nullptr && finding.defect.empty())
        finding.defect = absl::StrCat(defect, ": row=", row);
    }
    const double total = static_cast<double>(n) * static_cast<double>(k);
    finding.zero_fraction = static_cast<double>(zeros) / total;
    finding.saturated_fraction = static_cast<double>(saturated) / total;
    return finding;
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeInt8Channel(
    std::span<const std::string> options) {
  RETURN_IF_ERROR(CheckNoOptions(options));
  return std::make_unique<Int8Channel>();
}

}  // namespace assay
