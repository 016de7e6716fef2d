// A scheme: how the weight of a linear layer is stored (design.md, "three independent axes"). One
// file per scheme in quant/schemes/, with its byte layout drawn there; one list in
// quant/scheme_list.cc.
//
// A scheme is spelled "family" or "family:option,option": "int4_group:g32,asym". Each spelling is
// one object that lives as long as the process.
//
// Finding codes has two steps, so that rounding methods (quant/methods/) can take part in either:
// Fit chooses the grid (scales, zero points), EncodeOn rounds to it.
//
// Schemes are stateless, const and thread-safe. What a scheme stores is canonical: independent of
// device and kernel. Kernels repack it (quant/linear.h); artifacts store it (docs/formats.md).
#pragma once
#include <array>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/tensor.h"

namespace assay {

class QuantScheme;

// A weight W[n, k] (n outputs, k inputs) in some scheme's canonical layout. Host memory.
// QuantizedTensor::extra, + kind: what was folded into the weight and another
// (engine/model/fold.h). Kept with it; nothing is multiplied by it.
inline constexpr char kFoldPrefix[] = "fold_";

struct QuantizedTensor {
  const QuantScheme* scheme = nullptr;
  Shape shape;        // logical [n, k]
  int64_t group = 0;  // k-elements that share one scale; 0 = the whole row
  Tensor codes;       // f32, bf16 or integer codes, as the scheme draws them
  Tensor scales;      // empty for f32 and bf16
  Tensor zeros;       // empty when symmetric
  std::map<std::string, Tensor, std::less<>>
      extra;  // absmax of absmax, outlier columns, ...: named by the scheme

  size_t bytes() const;  // of all tensors
};

// How Fit may be steered by a method. Views must outlive the call.
struct FitOptions {
  // [n, k / group rounded up] in (0, 1], or empty: the part of each group's range that is kept
  // (clipping). Schemes with one scale for more than a row's group refuse it.
  std::span<const float> shrink;
};

// How x enters the product y = x W^T. Names as in recipes. Definitions: quant/activation.h.
enum class ActivationMode {
  kA16,          // weight-only: x in f32, or rounded per row to codes of 13 to 16 bits (a kernel
                 // that does so says it)
  kA8Token,      // int8, symmetric, a scale per row found at run time
  kA8Tensor,     // int8, asymmetric, one calibrated scale and zero point
  kA8Mix,        // a8_token for rows of prefill, a8_tensor for rows of decode
  kInt8Outlier,  // a8_token but for the calibrated outlier columns, which stay in f32 (LLM.int8())
  kA4Token,      // int4, symmetric, a scale per row found at run time
  kFp8Token,     // E4M3, a scale per row found at run time
  kFp8Block,     // E4M3, a scale per row and 128 inputs found at run time
  kFp8Tensor,    // E4M3, one calibrated scale
};
inline constexpr std::array kActivationModes = {
    ActivationMode::kA16,      ActivationMode::kA8Token,     ActivationMode::kA8Tensor,
    ActivationMode::kA8Mix,    ActivationMode::kInt8Outlier, ActivationMode::kA4Token,
    ActivationMode::kFp8Token, ActivationMode::kFp8Block,    ActivationMode::kFp8Tensor};
std::string_view Name(ActivationMode mode);
std::optional<ActivationMode> FindActivationMode(std::string_view name);

// What a cheap look at the stored numbers shows (no reference needed). `defect` is empty when
// nothing is wrong, else says what and where: "scale is NaN: row=17", "all codes of the row are
// equal: row=3".
struct IntegrityFinding {
  std::string defect;
  double saturated_fraction = 0;  // codes at the ends of the range
  double zero_fraction = 0;       // codes that are zero
};

// Where IntegerRows writes: w = f32(code) * bf16(scale of its group) * scale of its row.
struct IntegerRows {
  std::span<int8_t> codes;           // [rows, k], in [-127, 127]
  std::span<uint16_t> group_scales;  // bf16 [rows, k / group rounded up]; 1 where the row's does it
  std::span<float> row_scales;       // [rows]; 1 where groups have the scales
};

class QuantScheme {
 public:
  virtual ~QuantScheme() = default;
  // The spelling, options in canonical order, defaults left out. On disk, in recipes and in
  // metrics: never renamed.
  virtual std::string_view name() const = 0;
  virtual double bits_per_weight(const Shape& w) const = 0;  // with scales; int8_sparse: typical
  virtual bool is_floating() const = 0;                      // f32, bf16: nothing is quantized
  // FailedPrecondition says why W of this shape cannot be stored so.
  virtual absl::Status Accepts(const Shape& w) const = 0;
  // Elements along k that share a scale in a weight of this shape; k where the whole row (or more)
  // does, 1 for floating schemes.
  virtual int64_t group(const Shape& w) const = 0;
  // Rows that share a scale: rows [i r, (i + 1) r) can be encoded by themselves.
  virtual int64_t scale_rows(const Shape&) const { return 1; }
  // The grid for w [n, k] f32: a QuantizedTensor without codes. InvalidArgument: NaN or infinity
  // in w (names the row), or a FitOptions that this scheme cannot follow.
  virtual absl::StatusOr<QuantizedTensor> Fit(TensorView w, const FitOptions& options) const = 0;
  // Codes of the grid values nearest to w [n, k], all of whose elements are finite.
  virtual absl::StatusOr<QuantizedTensor> EncodeOn(TensorView w, QuantizedTensor grid) const = 0;
  // The grid values nearest to column `column`: w [n] -> out [n]; what EncodeOn and DecodeRows
  // would give, bit for bit. For methods that round column by column.
  virtual void NearestColumn(const QuantizedTensor& grid, int64_t column, std::span<const float> w,
                             std::span<float> out) const = 0;
  // Rounds w to nearest on the grid that fits its range: EncodeOn(w, Fit(w)).
  absl::StatusOr<QuantizedTensor> Encode(TensorView w) const;
  // Rows [row, row + rows) as f32 into `out` [rows, k]: the scheme's definition.
  virtual absl::Status DecodeRows(const QuantizedTensor& q, int64_t row, int64_t rows,
                                  std::span<float> out) const = 0;
  virtual IntegrityFinding Inspect(const QuantizedTensor& q) const = 0;
  // Whether codes are integers of 8 bits times scales, which kernels may multiply as they are.
  virtual bool has_integers() const { return false; }
  // Rows [row, row + rows) in integers; the product in f32, from the left, is what DecodeRows
  // gives. Unimplemented where has_integers() does not hold.
  virtual absl::Status ReadIntegers(const QuantizedTensor& q, int64_t row, int64_t rows,
                                    const IntegerRows& out) const;
};

// Every family in its default spelling and the spellings that recipes use; tests iterate over it.
std::span<const QuantScheme* const> AllSchemes();
// By any valid spelling; options in any order. NotFound lists the families; InvalidArgument names
// the option at fault and what the family takes. The object lives as long as the process.
absl::StatusOr<const QuantScheme*> FindScheme(std::string_view spelling);

}  // namespace assay
