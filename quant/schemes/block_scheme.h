// What schemes with codes of a fixed width share: a row is cut into blocks of `group` elements (the
// last may be short; a block never crosses into the next row), each block has one Step, and a code
// means a value on the block's step. A scheme adds its layout, how steps are fitted and stored, and
// a Format: the arithmetic of one block.
//
//   struct Format {
//     static constexpr int kBits;                 // 3, 4 or 8
//     static void Encode(const Step&, const float* w, int64_t count, uint8_t* codes);
//     static void Decode(const Step&, const uint8_t* codes, int64_t count, float* out);
//     static bool IsZero(const Step&, uint8_t code);      // means 0
//     static bool IsEnd(const Step&, uint8_t code);       // an end of the range
//     static const char* Forbidden(const Step&, uint8_t code);  // what no encoder writes, or null
//     // Where a code is an integer in [-127, 127] times step.scale, which is the row's, or a
//     // block's and then a number in bf16:
//     static constexpr bool kHasIntegers, kRowScale;
//     static int8_t Integer(const Step&, uint8_t code);
//   };
//
// Codes are coded in runs on the stack: no allocation but that of the result. Thread-safe.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "quant/schemes/matrix_checks.h"
#include "quant/schemes/packed_codes.h"
#include "quant/schemes/weight_layout.h"

namespace assay {

// The step of one block, in f32. What each field means is the format's business.
struct Step {
  float scale = 0;
  float zero = 0;
  float base = 0;
};

struct BlockRange {
  int64_t row, rows, block, blocks;
};

template <class Format>
class BlockScheme : public QuantScheme {
 public:
  std::string_view name() const final { return name_; }
  double bits_per_weight(const Shape& w) const final {
    return 8 * static_cast<double>(Layout(w).bytes()) /
           (static_cast<double>(w[0]) * static_cast<double>(w[1]));
  }
  bool is_floating() const final { return false; }
  absl::Status Accepts(const Shape& w) const final { return CheckMatrixShape(name_, w); }
  int64_t group(const Shape& w) const final { return BlockSize(w); }

  absl::StatusOr<QuantizedTensor> Fit(TensorView w, const FitOptions& options) const final {
    RETURN_IF_ERROR(CheckEncodable(name_, w));
    RETURN_IF_ERROR(CheckOptions(w.shape, options));
    QuantizedTensor grid;
    grid.scheme = this;
    grid.shape = w.shape;
    grid.group = group_;
    RETURN_IF_ERROR(AllocateGrid(Layout(w.shape), grid));
    FitSteps(w, options.shrink, grid);
    return grid;
  }

  absl::StatusOr<QuantizedTensor> EncodeOn(TensorView w, QuantizedTensor q) const final {
    RETURN_IF_ERROR(CheckLayout(q, Layout(w.shape), /*codes=*/false));
    RETURN_IF_ERROR(AllocateCodes(Layout(w.shape), q));
    const int64_t k = w.shape[1];
    for (int64_t row = 0; row < w.shape[0]; ++row) {
      const float* from = w.as<float>() + row * k;
      uint8_t* to = q.codes.template data<uint8_t>() + row * PackedBytes<Format::kBits>(k);
      ForEachRun(q, row, [&](const Step& step, int64_t begin, int64_t count) {
        uint8_t codes[kRun];
        Format::Encode(step, from + begin, count, codes);
        PackCodes<Format::kBits>(codes, count, to + PackedBytes<Format::kBits>(begin));
      });
    }
    return q;
  }

  void NearestColumn(const QuantizedTensor& grid, int64_t column, std::span<const float> w,
                     std::span<float> out) const final {
    const int64_t block = column / BlockSize(grid.shape), n = static_cast<int64_t>(w.size());
    Step steps[kSteps];
    for (int64_t begin = 0; begin < n; begin += kSteps) {
      const int64_t rows = std::min<int64_t>(kSteps, n - begin);
      Steps(grid, {begin, rows, block, 1}, steps);
      for (int64_t i = 0; i < rows; ++i) {
        uint8_t code;
        Format::Encode(steps[i], &w[begin + i], 1, &code);
        Format::Decode(steps[i], &code, 1, &out[begin + i]);
      }
    }
  }

  absl::Status DecodeRows(const QuantizedTensor& q, int64_t row, int64_t rows,
                          std::span<float> out) const final {
    RETURN_IF_ERROR(CheckMatrixShape(name_, q.shape));
    RETURN_IF_ERROR(CheckLayout(q, Layout(q.shape), /*codes=*/true));
    RETURN_IF_ERROR(CheckRowRange(q.shape, {row, rows}, out.size()));
    const int64_t k = q.shape[1];
    for (int64_t r = 0; r < rows; ++r) {
      float* to = out.data() + r * k;
      ForEachRun(q, row + r, [&](const Step& step, int64_t begin, int64_t count) {
        uint8_t codes[kRun];
        UnpackRun(q, row + r, begin, count, codes);
        Format::Decode(step, codes, count, to + begin);
      });
    }
    return absl::OkStatus();
  }

  bool has_integers() const final {
    if constexpr (requires { Format::kHasIntegers; }) return Format::kHasIntegers;
    return false;
  }
  absl::Status ReadIntegers(const QuantizedTensor& q, int64_t row, int64_t rows,
                            const IntegerRows& out) const final {
    if constexpr (requires { Format::kHasIntegers; }) {
      if (!Format::kHasIntegers) return QuantScheme::ReadIntegers(q, row, rows, out);
      RETURN_IF_ERROR(CheckLayout(q, Layout(q.shape), /*codes=*/true));
      RETURN_IF_ERROR(CheckIntegerRows(q, {row, rows}, out));
      for (int64_t r = 0; r < rows; ++r) ReadRow(q, {row + r, r}, out);
      return absl::OkStatus();
    } else {
      return QuantScheme::ReadIntegers(q, row, rows, out);
    }
  }

  IntegrityFinding Inspect(const QuantizedTensor& q) const final {
    IntegrityFinding finding;
    int64_t zeros = 0, ends = 0;
    for (int64_t row = 0; row < q.shape[0]; ++row) {
      RowFinding found;
      ForEachRun(q, row, [&](const Step& step, int64_t begin, int64_t count) {
        uint8_t codes[kRun];
        UnpackRun(q, row, begin, count, codes);
        InspectRun(step, {codes, static_cast<size_t>(count)}, begin / BlockSize(q.shape), found);
      });
      zeros += found.zeros;
      ends += found.ends;
      if (finding.defect.empty()) finding.defect = RowDefect(found, row, q.shape[1]);
    }
    const double total = static_cast<double>(q.shape[0]) * static_cast<double>(q.shape[1]);
    finding.zero_fraction = static_cast<double>(zeros) / total;
    finding.saturated_fraction = static_cast<double>(ends) / total;
    if (finding.defect.empty()) finding.defect = ExtraDefect(q);
    return finding;
  }

 protected:
  // `group`: a multiple of 8, or 0 for the whole row.
  BlockScheme(std::string name, int64_t group) : name_(std::move(name)), group_(group) {}

  virtual WeightLayout Layout(const Shape& w) const = 0;
  // Fills the grid, whose tensors are zero. `shrink` is empty or has a part per block.
  virtual void FitSteps(TensorView w, std::span<const float> shrink,
                        QuantizedTensor& grid) const = 0;
  // The steps of a range of blocks, row by row.
  virtual void Steps(const QuantizedTensor& q, const BlockRange& range, Step* out) const = 0;
  virtual absl::Status CheckOptions(const Shape& w, const FitOptions& options) const {
    return CheckShrink(name_, options, w[0] * NumBlocks(w));
  }
  virtual bool may_be_negative() const { return false; }  // scales
  // Whether a row whose weights are all zero has scale 0.
  virtual bool zero_rows_have_no_scale() const { return true; }
  // What is wrong with numbers that belong to no row; empty if nothing.
  virtual std::string ExtraDefect(const QuantizedTensor&) const { return {}; }

  int64_t BlockSize(const Shape& w) const {
    return group_ == 0 ? w[1] : std::min<int64_t>(group_, w[1]);
  }
  int64_t NumBlocks(const Shape& w) const { return (w[1] + BlockSize(w) - 1) / BlockSize(w); }
  TensorSpec CodesSpec(const Shape& w) const {
    return {DType::kU8, {w[0], PackedBytes<Format::kBits>(w[1])}};
  }

  // fit(index of the block in row-major order, its weights, their count).
  template <class FitBlock>
  void ForEachBlock(TensorView w, const FitBlock& fit) const {
    const int64_t n = w.shape[0], k = w.shape[1], size = BlockSize(w.shape);
    int64_t index = 0;
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t begin = 0; begin < k; begin += size)
        fit(index++, w.as<float>() + row * k + begin, std::min(size, k - begin));
    }
  }

 private:
  static constexpr int64_t kRun = 512;  // codes on the stack; a multiple of 8
  static constexpr int64_t kSteps = 32;
  // A row of equal codes is a defect only where chance does not make it: 16 weights and more.
  static constexpr int64_t kMinConstantRow = 16;

  struct RowCopy {
    int64_t from, to;
  };
  void ReadRow(const QuantizedTensor& q, RowCopy row, const IntegerRows& out) const {
    const int64_t k = q.shape[1], blocks = NumBlocks(q.shape);
    int8_t* codes_out = out.codes.data() + row.to * k;
    uint16_t* scales_out = out.group_scales.data() + row.to * blocks;
    out.row_scales[row.to] = 1;
    ForEachRun(q, row.from, [&](const Step& step, int64_t begin, int64_t count) {
      uint8_t codes[kRun];
      UnpackRun(q, row.from, begin, count, codes);
      for (int64_t i = 0; i < count; ++i) codes_out[begin + i] = Format::Integer(step, codes[i]);
      scales_out[begin / BlockSize(q.shape)] = F32ToBf16(Format::kRowScale ? 1 : step.scale);
      if (Format::kRowScale) out.row_scales[row.to] = step.scale;
    });
  }

  struct RowFinding {
    int64_t zeros = 0, ends = 0, first_code = -1;
    bool constant = true, has_scale = false;
    const char* defect = nullptr;
    int64_t block = 0;  // that has the defect
  };

  // run(step, first element, count <= kRun) over a row, in order.
  template <class Run>
  void ForEachRun(const QuantizedTensor& q, int64_t row, const Run& run) const {
    const int64_t k = q.shape[1], size = BlockSize(q.shape), blocks = NumBlocks(q.shape);
    Step steps[kSteps];
    for (int64_t first = 0; first < blocks; first += kSteps) {
      const int64_t some = std::min<int64_t>(kSteps, blocks - first);
      Steps(q, {row, 1, first, some}, steps);
      for (int64_t b = 0; b < some; ++b) {
        const int64_t end = std::min(k, (first + b + 1) * size);
        for (int64_t begin = (first + b) * size; begin < end; begin += kRun)
          run(steps[b], begin, std::min(kRun, end - begin));
      }
    }
  }

  void UnpackRun(const QuantizedTensor& q, int64_t row, int64_t begin, int64_t count,
                 uint8_t* codes) const {
    UnpackCodes<Format::kBits>(q.codes.template data<uint8_t>() +
                                   row * PackedBytes<Format::kBits>(q.shape[1]) +
                                   PackedBytes<Format::kBits>(begin),
                               count, codes);
  }

  const char* StepDefect(const Step& step) const {
    if (std::isnan(step.scale)) return "scale is NaN";
    if (std::isinf(step.scale)) return "scale is infinite";
    if (step.scale < 0 && !may_be_negative()) return "scale is negative";
    if (!std::isfinite(step.zero)) return "zero point is NaN or infinite";
    return nullptr;
  }

  void InspectRun(const Step& step, std::span<const uint8_t> codes, int64_t block,
                  RowFinding& found) const {
    int64_t zeros = 0, ends = 0, equal = 0;
    const char* defect = StepDefect(step);
    if (found.first_code < 0) found.first_code = codes[0];
    for (const uint8_t code : codes) {
      zeros += Format::IsZero(step, code);
      ends += Format::IsEnd(step, code);
      equal += code == found.first_code;
      if (const char* forbidden = Format::Forbidden(step, code); defect == nullptr)
        defect = forbidden;
    }
    const auto count = static_cast<int64_t>(codes.size());
    if (defect == nullptr && step.scale == 0 && zeros != count)
      defect = "scale is zero but codes are not";
    found.zeros += zeros;
    found.ends += step.scale == 0 ? 0 : ends;
    found.constant = found.constant && equal == count;
    found.has_scale = found.has_scale || step.scale != 0;
    if (defect != nullptr && found.defect == nullptr) {
      found.defect = defect;
      found.block = block;
    }
  }

  std::string RowDefect(const RowFinding& found, int64_t row, int64_t k) const {
    if (found.defect != nullptr)
      return absl::StrCat(found.defect, ": row=", row, " block=", found.block);
    const bool all_zero = found.zeros == k;
    if (all_zero && found.has_scale && zero_rows_have_no_scale())
      return absl::StrCat("all codes are zero but the scale is not: row=", row);
    if (found.constant && !all_zero && k >= kMinConstantRow)
      return absl::StrCat("all codes of the row are equal: row=", row);
    return {};
  }

  const std::string name_;
  const int64_t group_;
};

}  // namespace assay
