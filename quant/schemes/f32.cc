// Scheme "f32": the weight as it is. The reference model of verification is stored so.
//
//   codes  f32 [n, k] row-major:  | w[0,0] | w[0,1] | ... | w[0,k-1] | w[1,0] | ...   4 bytes each
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "quant/schemes/matrix_checks.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

class F32 final : public QuantScheme {
 public:
  std::string_view name() const override { return "f32"; }
  double bits_per_weight(const Shape&) const override { return 32; }
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
    ASSIGN_OR_RETURN(q.codes, Tensor::Create(CpuDevice(), w.shape, DType::kF32));
    std::memcpy(q.codes.data<float>(), w.data, w.bytes());
    return q;
  }

  absl::Status DecodeRows(const QuantizedTensor& q, int64_t row, int64_t rows,
                          std::span<float> out) const override {
    RETURN_IF_ERROR(CheckDecodable(q, {DType::kF32, false}, {row, rows}, out.size()));
    const float* from = q.codes.data<float>() + row * q.shape[1];
    std::copy_n(from, out.size(), out.begin());
    return absl::OkStatus();
  }

  void NearestColumn(const QuantizedTensor&, int64_t, std::span<const float> w,
                     std::span<float> out) const override {
    std::copy(w.begin(), w.end(), out.begin());
  }

  IntegrityFinding Inspect(const QuantizedTensor& q) const override {
    const std::span<const float> values(q.codes.data<float>(),
                                        static_cast<size_t>(q.shape.elements()));
    IntegrityFinding finding;
    finding.zero_fraction = static_cast<double>(std::count(values.begin(), values.end(), 0.0f)) /
                            static_cast<double>(values.size());
    const int64_t bad = FirstNonFinite(values);
    if (bad >= 0)
      finding.defect = absl::StrCat("weight is NaN or infinite: row=", bad / q.shape[1]);
    return finding;
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeF32(std::span<const std::string> options) {
  RETURN_IF_ERROR(CheckNoOptions(options));
  return std::make_unique<F32>();
}

}  // namespace assay
