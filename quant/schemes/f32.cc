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

  absl::StatusOr<QuantizedTensor> Encode(TensorView w) const override {
    RETURN_IF_ERROR(CheckEncodable(name(), w));
    QuantizedTensor q;
    q.scheme = this;
    q.shape = w.shape;
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

const QuantScheme& F32Scheme() {
  static const F32 scheme;
  return scheme;
}

}  // namespace assay
