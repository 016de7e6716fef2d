// What nf4 and fp4 share: blocks of a row divided by their largest magnitude, 4-bit codes of a book
// and, with the option `double`, 8-bit magnitudes. As bitsandbytes (functional.py: quantize_4bit
// with compress_statistics), but that blocks never cross rows.
//
//   codes   u8 [n, ceil(k / 2)]   byte j of a row: code 2j in bits 0-3, code 2j + 1 in bits 4-7
//                                 (bitsandbytes' own files have them the other way round)
//   scales  f32 [n, blocks]       absmax of each block; blocks = k / block rounded up
//
// double:
//   scales  u8 [n, blocks]        index into the dynamic map
//   extra   "nested_absmax" f32 [ceil(n * blocks / 256)], "nested_offset" f32 [1]
//           absmax[i] = map[scales[i]] * nested_absmax[i / 256] + nested_offset, i in row-major
//           order; nested_offset = mean of all absmax, nested_absmax = the largest
//           |absmax - nested_offset| of 256 in a row
//   map     256 values, ascending: 0, 1, and for i = 0..6 the 2^i middles of 2^i equal parts of
//           [0.1, 1] times +-10^(i - 6)
//
// A block whose absmax is below FLT_MIN counts as zero. Where a magnitude is not positive (double
// may round a small one so), all codes of the block mean 0.
#pragma once
#include <cfloat>
#include <cmath>
#include <string>

#include "quant/schemes/code_book.h"
#include "quant/schemes/value_range.h"

namespace assay {

struct AbsmaxOptions {
  int64_t block = 64;
  bool nested = false;
};
// Options in any order: b32, b64, ... b4096 and "double". InvalidArgument names the one at fault.
absl::StatusOr<AbsmaxOptions> ParseAbsmaxOptions(std::span<const std::string> options);
std::string AbsmaxSpelling(std::string_view family, const AbsmaxOptions& options);

// The signed 8-bit dynamic map (bitsandbytes: create_dynamic_map).
const std::array<float, 256>& DynamicMap();

// Quantizes `absmax` into grid.scales, "nested_absmax" and "nested_offset".
void NestAbsmax(std::span<const float> absmax, QuantizedTensor& grid);

inline constexpr int64_t kNestedBlock = 256;

template <class Book>
class AbsmaxBlock final : public BlockScheme<CodeBookFormat<Book>> {
 public:
  AbsmaxBlock(std::string_view family, const AbsmaxOptions& options)
      : BlockScheme<CodeBookFormat<Book>>(AbsmaxSpelling(family, options), options.block),
        nested_(options.nested) {}

 private:
  WeightLayout Layout(const Shape& w) const override {
    const int64_t n = w[0], blocks = this->NumBlocks(w);
    WeightLayout layout;
    layout.codes = this->CodesSpec(w);
    layout.scales = {nested_ ? DType::kU8 : DType::kF32, {n, blocks}};
    if (nested_) {
      const int64_t nested = (n * blocks + kNestedBlock - 1) / kNestedBlock;
      layout.extra = {
          {{"nested_absmax", {DType::kF32, {nested}}}, {"nested_offset", {DType::kF32, {1}}}}};
    }
    return layout;
  }

  void FitSteps(TensorView w, std::span<const float> shrink, QuantizedTensor& grid) const override {
    std::vector<float> absmax(static_cast<size_t>(w.shape[0] * this->NumBlocks(w.shape)));
    this->ForEachBlock(w, [&](int64_t index, const float* from, int64_t count) {
      const float most = (shrink.empty() ? 1 : shrink[index]) * AbsMax(from, count);
      absmax[static_cast<size_t>(index)] = most < FLT_MIN ? 0 : most;
    });
    if (nested_) {
      NestAbsmax(absmax, grid);
    } else {
      std::copy(absmax.begin(), absmax.end(), grid.scales.template data<float>());
    }
  }

  void Steps(const QuantizedTensor& q, const BlockRange& range, Step* out) const override {
    const int64_t blocks = q.scales.shape()[1];
    const float* nested = nested_ ? Extra(q, "nested_absmax") : nullptr;
    const float offset = nested_ ? *Extra(q, "nested_offset") : 0;
    for (int64_t row = range.row; row < range.row + range.rows; ++row) {
      for (int64_t b = range.block; b < range.block + range.blocks; ++b, ++out) {
        const int64_t i = row * blocks + b;
        out->scale = nested_ ? DynamicMap()[q.scales.template data<uint8_t>()[i]] *
                                       nested[i / kNestedBlock] +
                                   offset
                             : q.scales.template data<float>()[i];
      }
    }
  }

  bool may_be_negative() const override { return nested_; }
  bool zero_rows_have_no_scale() const override { return !nested_; }

  std::string ExtraDefect(const QuantizedTensor& q) const override {
    if (!nested_) return {};
    const Tensor& nested = q.extra.find("nested_absmax")->second;
    for (int64_t i = 0; i < nested.shape()[0]; ++i) {
      if (!(nested.data<float>()[i] >= 0) || std::isinf(nested.data<float>()[i]))
        return absl::StrCat("nested_absmax is not a magnitude: block=", i);
    }
    if (!(*Extra(q, "nested_offset") >= 0)) return "nested_offset is not a magnitude";
    return {};
  }

  static const float* Extra(const QuantizedTensor& q, std::string_view name) {
    return q.extra.find(name)->second.template data<float>();
  }

  const bool nested_;
};

}  // namespace assay
