// Scheme "bf16": the upper half of the f32, rounded half to even. Values above the largest finite
// bf16 (3.3895e38) round to infinity and are refused.
//
//   codes  bf16 [n, k] row-major, little endian:  | w[0,0] | w[0,1] | ... | w[0,k-1] | w[1,0] | ...
//          2 bytes each: sign(1) exponent(8) mantissa(7)
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "quant/schemes/matrix_checks.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

class Bf16 final : public QuantScheme {
 public:
  std::string_view name() const override { return "bf16"; }
  double bits_per_weight(const Shape&) const override { return 16; }
  bool is_floating() const override { return true; }
  absl::Status Accepts(const Shape& w) const override { return CheckMatrixShape(name(), w); }

  int64_t group(const Shape&) const override { return 1; }

  absl::StatusOr<QuantizedTensor> Fit(TensorView w, const FitOptions& options) const override {
    RETURN_IF_ERROR(CheckEncodable(name(), w));
    RETURN_IF_ERROR(CheckNoShrink(name(), options));
    QuantizedTensor grid;
    grid.scheme = this;
    grid.shape = w.shape;
    return grid;
  }

  absl::StatusOr<QuantizedTensor> EncodeOn(TensorView w, QuantizedTensor q) const override {
    ASSIGN_OR_RETURN(q.codes, Tensor::Create(CpuDevice(), w.shape, DType::kBf16));
    const float* from = w.as<float>();
    uint16_t* to = q.codes.data<uint16_t>();
    const int64_t count = w.shape.elements();
    for (int64_t i = 0; i < count; ++i) to[i] = F32ToBf16(from[i]);
    const int64_t bad = FirstNonFinite(to, count);
    if (bad < 0) return q;
    return absl::InvalidArgumentError(
        absl::StrCat("bf16 cannot store a weight beyond 3.3895e38: row=", bad / w.shape[1],
                     " column=", bad % w.shape[1], " value=", from[bad]));
  }

  absl::Status DecodeRows(const QuantizedTensor& q, int64_t row, int64_t rows,
                          std::span<float> out) const override {
    RETURN_IF_ERROR(CheckDecodable(q, {DType::kBf16, false}, {row, rows}, out.size()));
    const uint16_t* from = q.codes.data<uint16_t>() + row * q.shape[1];
    std::transform(from, from + out.size(), out.begin(), Bf16ToF32);
    return absl::OkStatus();
  }

  void NearestColumn(const QuantizedTensor&, int64_t, std::span<const float> w,
                     std::span<float> out) const override {
    std::transform(w.begin(), w.end(), out.begin(),
                   [](float v) { return Bf16ToF32(F32ToBf16(v)); });
  }

  IntegrityFinding Inspect(const QuantizedTensor& q) const override {
    const uint16_t* values = q.codes.data<uint16_t>();
    const int64_t count = q.shape.elements();
    const int64_t zeros =
        std::count_if(values, values + count, [](uint16_t v) { return (v & 0x7fff) == 0; });
    IntegrityFinding finding;
    finding.zero_fraction = static_cast<double>(zeros) / static_cast<double>(count);
    const int64_t bad = FirstNonFinite(values, count);
    if (bad >= 0)
      finding.defect = absl::StrCat("weight is NaN or infinite: row=", bad / q.shape[1]);
    return finding;
  }

 private:
  static int64_t FirstNonFinite(const uint16_t* values, int64_t count) {
    const uint16_t* end = values + count;
    const uint16_t* bad =
        std::find_if(values, end, [](uint16_t v) { return (v & 0x7f80) == 0x7f80; });
    return bad == end ? -1 : bad - values;
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeBf16(std::span<const std::string> options) {
  RETURN_IF_ERROR(CheckNoOptions(options));
  return std::make_unique<Bf16>();
}

}  // namespace assay
