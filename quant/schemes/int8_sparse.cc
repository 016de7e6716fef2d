// Scheme "int8_sparse[:f2|f5|f10]": 8-bit codes most of which are small, stored by an entropy code:
// the portable counterpart of msModelSlim's W8A8SC. One scale per output channel such that all but
// a protected fraction of a row (1 % unless the option says 2, 5 or 10) fall on the 15 codes of
// [-7, 7]; the protected outliers keep their 8-bit codes. Not pruning: nothing is set to zero.
//
//   s = max(q / 7, absmax / 127), q the smallest magnitude that all but the protected ones do not
//   exceed; c = clamp(rint(w / s), -127, 127); w ~ c * s. Never subnormal; 0 where absmax is at
//   most FLT_MIN / 2.
//
//   codes   u8 [bytes]                    one tile per row, one after the other, each from a byte:
//           | tile 0: code of c[0,0], of c[0,1], ..., zero bits | tile 1: ... |
//           canonical Huffman codes of the bytes c + 128 (canonical_huffman.h), one code for the
//           whole weight
//   scales  f32 [n]
//   extra   "code_lengths" u8 [256]       of the bytes; 0: does not occur
//           "tile_offsets" i32 [n + 1]    tile i is codes[tile_offsets[i], tile_offsets[i + 1])
//
// Bits per weight depend on the weights; what the scheme claims for a shape is the entropy of
// i.i.d. Gaussian weights. No part of a range can be clipped: outliers are what it protects.
#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "quant/schemes/canonical_huffman.h"
#include "quant/schemes/matrix_checks.h"
#include "quant/schemes/schemes.h"
#include "quant/schemes/value_range.h"
#include "quant/schemes/weight_layout.h"

namespace assay {
namespace {

constexpr int kLowRange = 7, kMaxCode = 127, kBias = 128;
constexpr int64_t kMinConstantRow = 16;  // shorter rows may be constant by chance
constexpr int64_t kStackCodes = 8192;    // rows up to here are decoded without allocation

// The element of rank `rank` (from 0) of the magnitudes of w, found by the upper 11 of their 31
// bits first: magnitudes are ordered like their bits.
float MagnitudeOfRank(std::span<const float> w, int64_t rank, std::vector<uint32_t>& some) {
  constexpr uint32_t kMagnitude = 0x7fffffff, kShift = 20;
  std::array<uint32_t, 1 << 11> counts{};
  for (const float v : w) ++counts[(std::bit_cast<uint32_t>(v) & kMagnitude) >> kShift];
  uint32_t bin = 0;
  for (; rank >= counts[bin]; ++bin) rank -= counts[bin];
  some.clear();
  for (const float v : w) {
    const uint32_t bits = std::bit_cast<uint32_t>(v) & kMagnitude;
    if (bits >> kShift == bin) some.push_back(bits);
  }
  std::nth_element(some.begin(), some.begin() + rank, some.end());
  return std::bit_cast<float>(some[static_cast<size_t>(rank)]);
}

float ScaleOf(std::span<const float> w, double fraction, std::vector<uint32_t>& some) {
  const float absmax = AbsMax(w.data(), static_cast<int64_t>(w.size()));
  if (absmax <= FLT_MIN / 2) return 0;
  const auto rank = static_cast<int64_t>((1 - fraction) * static_cast<double>(w.size()));
  const float low = MagnitudeOfRank(w, std::min<int64_t>(rank, std::ssize(w) - 1), some);
  return std::max({low / kLowRange, absmax / kMaxCode, FLT_MIN});
}

void EncodeRow(const float* w, int64_t k, float scale, uint8_t* symbols) {
  if (scale == 0) {
    std::fill_n(symbols, k, static_cast<uint8_t>(kBias));
    return;
  }
  for (int64_t i = 0; i < k; ++i) {
    const float v = w[i] / scale;
    const float clamped = v < -kMaxCode ? -kMaxCode : (v > kMaxCode ? kMaxCode : v);
    symbols[i] = static_cast<uint8_t>(static_cast<int>(RoundHalfEven(clamped)) + kBias);
  }
}

float ValueOf(uint8_t symbol, float scale) {
  return static_cast<float>(static_cast<int>(symbol) - kBias) * scale;
}

// Bits per code of i.i.d. Gaussian weights, without the rounding of tiles to bytes.
double GaussianBits(double fraction) {
  double low = 0, high = 10;  // of them, `fraction` lie beyond this many standard deviations
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (std::erfc(middle / std::sqrt(2.0)) > fraction ? low : high) = middle;
  }
  const double step = low / kLowRange;
  const auto below = [&](double c) { return std::erfc(-c * step / std::sqrt(2.0)) / 2; };
  double bits = 0;
  for (int c = -kMaxCode; c <= kMaxCode; ++c) {
    const double p = below(c + 0.5) - below(c - 0.5);
    if (p > 0) bits -= p * std::log2(p);
  }
  return bits;
}

class Int8Sparse final : public QuantScheme {
 public:
  explicit Int8Sparse(int percent)
      : name_(percent == 1 ? "int8_sparse" : absl::StrCat("int8_sparse:f", percent)),
        fraction_(percent / 100.0),
        gaussian_bits_(GaussianBits(fraction_)) {}

  std::string_view name() const override { return name_; }
  double bits_per_weight(const Shape& w) const override {
    const auto n = static_cast<double>(w[0]), k = static_cast<double>(w[1]);
    const double other = static_cast<double>(256 + 4) * 8 / n + 32 + 32 + 4;  // a row; half a byte
    return gaussian_bits_ + other / k;
  }
  bool is_floating() const override { return false; }
  absl::Status Accepts(const Shape& w) const override {
    RETURN_IF_ERROR(CheckMatrixShape(name_, w));
    // 12 bits a code at most must stay below 2^31 bytes.
    constexpr int64_t kMost = int64_t{1} << 30;
    if (w[1] <= kMost / w[0]) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        name_, " has 32-bit offsets and takes at most ", kMost, " weights: shape=", ToString(w)));
  }
  int64_t group(const Shape& w) const override { return w[1]; }

  absl::StatusOr<QuantizedTensor> Fit(TensorView w, const FitOptions& options) const override {
    RETURN_IF_ERROR(CheckEncodable(name_, w));
    RETURN_IF_ERROR(Accepts(w.shape));
    RETURN_IF_ERROR(CheckNoShrink(name_, options));
    QuantizedTensor grid;
    grid.scheme = this;
    grid.shape = w.shape;
    const int64_t n = w.shape[0], k = w.shape[1];
    ASSIGN_OR_RETURN(grid.scales, Tensor::Create(CpuDevice(), {n}, DType::kF32));
    std::vector<uint32_t> some;
    for (int64_t row = 0; row < n; ++row) {
      grid.scales.data<float>()[row] =
          ScaleOf({w.as<float>() + row * k, static_cast<size_t>(k)}, fraction_, some);
    }
    return grid;
  }

  absl::StatusOr<QuantizedTensor> EncodeOn(TensorView w, QuantizedTensor q) const override {
    const int64_t n = w.shape[0], k = w.shape[1];
    std::vector<uint8_t> symbols(static_cast<size_t>(n * k));
    for (int64_t row = 0; row < n; ++row) {
      EncodeRow(w.as<float>() + row * k, k, q.scales.data<float>()[row], &symbols[row * k]);
    }
    std::array<int64_t, 256> counts{};
    for (const uint8_t symbol : symbols) ++counts[symbol];
    const CodeLengths lengths = OptimalLengths(counts);
    const std::array<uint16_t, 256> codes = CanonicalCodes(lengths);

    ASSIGN_OR_RETURN(Tensor offsets, Tensor::Create(CpuDevice(), {n + 1}, DType::kI32));
    std::vector<uint8_t> tiles;
    offsets.data<int32_t>()[0] = 0;
    for (int64_t row = 0; row < n; ++row) {
      AppendTile({&symbols[row * k], static_cast<size_t>(k)}, lengths, codes, tiles);
      offsets.data<int32_t>()[row + 1] = static_cast<int32_t>(tiles.size());
    }
    ASSIGN_OR_RETURN(q.codes, Tensor::Create(CpuDevice(), {std::ssize(tiles)}, DType::kU8));
    std::copy(tiles.begin(), tiles.end(), q.codes.data<uint8_t>());
    ASSIGN_OR_RETURN(Tensor table, Tensor::Create(CpuDevice(), {256}, DType::kU8));
    std::copy(lengths.begin(), lengths.end(), table.data<uint8_t>());
    q.extra["code_lengths"] = std::move(table);
    q.extra["tile_offsets"] = std::move(offsets);
    return q;
  }

  void NearestColumn(const QuantizedTensor& grid, int64_t, std::span<const float> w,
                     std::span<float> out) const override {
    const float* scales = grid.scales.data<float>();
    for (size_t i = 0; i < w.size(); ++i) {
      uint8_t symbol;
      EncodeRow(&w[i], 1, scales[i], &symbol);
      out[i] = ValueOf(symbol, scales[i]);
    }
  }

  absl::Status DecodeRows(const QuantizedTensor& q, int64_t row, int64_t rows,
                          std::span<float> out) const override {
    HuffmanDecoder decoder;
    RETURN_IF_ERROR(CheckStored(q, decoder));
    RETURN_IF_ERROR(CheckRowRange(q.shape, {row, rows}, out.size()));
    const int64_t k = q.shape[1];
    uint8_t stack[kStackCodes];
    std::vector<uint8_t> heap(k > kStackCodes ? static_cast<size_t>(k) : 0);
    const std::span<uint8_t> symbols(heap.empty() ? stack : heap.data(), static_cast<size_t>(k));
    for (int64_t r = 0; r < rows; ++r) {
      RETURN_IF_ERROR(DecodeTile(q, decoder, row + r, symbols));
      const float scale = q.scales.data<float>()[row + r];
      float* to = out.data() + r * k;
      for (int64_t i = 0; i < k; ++i) to[i] = ValueOf(symbols[static_cast<size_t>(i)], scale);
    }
    return absl::OkStatus();
  }

  bool has_integers() const override { return true; }
  absl::Status ReadIntegers(const QuantizedTensor& q, int64_t row, int64_t rows,
                            const IntegerRows& out) const override {
    HuffmanDecoder decoder;
    RETURN_IF_ERROR(CheckStored(q, decoder));
    RETURN_IF_ERROR(CheckIntegerRows(q, {row, rows}, out));
    const int64_t k = q.shape[1];
    std::vector<uint8_t> symbols(static_cast<size_t>(k));
    for (int64_t r = 0; r < rows; ++r) {
      RETURN_IF_ERROR(DecodeTile(q, decoder, row + r, symbols));
      for (int64_t i = 0; i < k; ++i)
        out.codes[r * k + i] = static_cast<int8_t>(static_cast<int>(symbols[i]) - kBias);
    }
    std::copy_n(q.scales.data<float>() + row, rows, out.row_scales.data());
    std::fill_n(out.group_scales.data(), rows, F32ToBf16(1));
    return absl::OkStatus();
  }

  IntegrityFinding Inspect(const QuantizedTensor& q) const override {
    IntegrityFinding finding;
    HuffmanDecoder decoder;
    if (const absl::Status status = CheckStored(q, decoder); !status.ok()) {
      finding.defect = std::string(status.message());
      return finding;
    }
    const int64_t n = q.shape[0], k = q.shape[1];
    std::vector<uint8_t> symbols(static_cast<size_t>(k));
    int64_t zeros = 0, ends = 0;
    for (int64_t row = 0; row < n; ++row) {
      if (const absl::Status status = DecodeTile(q, decoder, row, symbols); !status.ok()) {
        if (finding.defect.empty()) finding.defect = std::string(status.message());
        continue;
      }
      const int64_t row_zeros = std::count(symbols.begin(), symbols.end(), kBias);
      zeros += row_zeros;
      ends += std::count_if(symbols.begin(), symbols.end(), [](uint8_t s) {
        return s <= kBias - kMaxCode || s >= kBias + kMaxCode;
      });
      const char* defect = RowDefect(q.scales.data<float>()[row], symbols, row_zeros);
      if (defect != nullptr && finding.defect.empty())
        finding.defect = absl::StrCat(defect, ": row=", row);
    }
    const double total = static_cast<double>(n) * static_cast<double>(k);
    finding.zero_fraction = static_cast<double>(zeros) / total;
    finding.saturated_fraction = static_cast<double>(ends) / total;
    return finding;
  }

 private:
  static const char* RowDefect(float scale, std::span<const uint8_t> symbols, int64_t zeros) {
    if (std::isnan(scale)) return "scale is NaN";
    if (std::isinf(scale)) return "scale is infinite";
    if (scale < 0) return "scale is negative";
    const bool all_zero = zeros == std::ssize(symbols);
    if (scale == 0 && !all_zero) return "scale is zero but codes are not";
    if (scale != 0 && all_zero) return "all codes are zero but the scale is not";
    if (std::find(symbols.begin(), symbols.end(), 0) != symbols.end())
      return "code -128 is outside [-127, 127]";
    const bool constant =
        std::count(symbols.begin(), symbols.end(), symbols[0]) == std::ssize(symbols);
    if (constant && !all_zero && std::ssize(symbols) >= kMinConstantRow)
      return "all codes of the row are equal";
    return nullptr;
  }

  absl::Status CheckStored(const QuantizedTensor& q, HuffmanDecoder& decoder) const {
    RETURN_IF_ERROR(CheckMatrixShape(name_, q.shape));
    WeightLayout layout;
    layout.codes = {DType::kU8, {q.codes.shape()[0]}};
    layout.scales = {DType::kF32, {q.shape[0]}};
    layout.extra = {
        {{"code_lengths", {DType::kU8, {256}}}, {"tile_offsets", {DType::kI32, {q.shape[0] + 1}}}}};
    RETURN_IF_ERROR(CheckLayout(q, layout, /*codes=*/true));
    return decoder.Init({q.extra.find("code_lengths")->second.data<uint8_t>(), 256});
  }

  static absl::Status DecodeTile(const QuantizedTensor& q, const HuffmanDecoder& decoder,
                                 int64_t row, std::span<uint8_t> symbols) {
    const int32_t* offsets = q.extra.find("tile_offsets")->second.data<int32_t>() + row;
    const int64_t begin = offsets[0], end = offsets[1], bytes = q.codes.shape()[0];
    if (begin < 0 || begin > end || end > bytes) {
      return absl::InvalidArgumentError(absl::StrCat("tile lies outside the codes: row=", row,
                                                     " begin=", begin, " end=", end,
                                                     " bytes=", bytes));
    }
    const std::span<const uint8_t> tile(q.codes.data<uint8_t>() + begin,
                                        static_cast<size_t>(end - begin));
    if (decoder.DecodeTile(tile, symbols)) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("tile does not hold the codes of its row: row=", row,
                     " codes=", symbols.size(), " bytes=", tile.size()));
  }

  const std::string name_;
  const double fraction_;  // protected
  const double gaussian_bits_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeInt8Sparse(
    std::span<const std::string> options) {
  if (options.empty()) return std::make_unique<Int8Sparse>(1);
  for (const int percent : {1, 2, 5, 10}) {
    if (options.size() == 1 && options[0] == absl::StrCat("f", percent))
      return std::make_unique<Int8Sparse>(percent);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown or second option of its kind \"", options.back(), "\""));
}

}  // namespace assay
