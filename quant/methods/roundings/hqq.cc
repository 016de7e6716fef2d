// "hqq": nearest rounding on grids whose zero points minimise a norm that forgives outliers
// (quant/methods/hqq.h). Needs no calibration. For intB_group schemes with zero points: "float"
// (bf16 zeros, w ~ (c - 8) s + zero) and "asym" (zeros are codes: rounded, and kept only in groups
// where the rounded one has a smaller sum |w - q|^norm).
//
//   norm=0.7  beta=10  iterations=20
#include "quant/methods/hqq.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "quant/methods/roundings/roundings.h"
#include "quant/schemes/matrix_checks.h"

namespace assay {
namespace {

using Kind = OptionSpec::Kind;
constexpr std::array<OptionSpec, 3> kOptions = {{{"norm", Kind::kNumber, 0.7, 0.1, 1, {}},
                                                 {"beta", Kind::kNumber, 10, 0.01, 1e6, {}},
                                                 {"iterations", Kind::kNumber, 20, 1, 1000, {}}}};

// 3, 4 or 8 of an intB_group scheme; 0 otherwise.
int BitsOf(const QuantScheme& scheme) {
  const std::string_view name = scheme.name();
  if (name.substr(0, 3) != "int" || name.substr(4, 6) != "_group") return 0;
  return name[3] - '0';
}

// The zero points of a grid, in units of codes, as its scheme draws them (affine_group.h,
// int4_group.cc).
class Zeros {
 public:
  Zeros(QuantizedTensor& grid, int bits)
      : grid_(grid), bits_(bits), groups_(grid.scales.shape()[1]) {}

  bool is_float() const { return grid_.zeros.dtype() == DType::kBf16; }
  float scale(int64_t i) const { return Bf16ToF32(grid_.scales.data<uint16_t>()[i]); }
  float Get(int64_t i) const {
    if (is_float()) return 8 - Bf16ToF32(grid_.zeros.data<uint16_t>()[i]) / scale(i);
    const uint8_t* at = Byte(i);
    return bits_ == 8 ? *at : (*at >> Shift(i)) & 15;
  }
  void Set(int64_t i, float zero) {
    if (is_float()) {
      grid_.zeros.data<uint16_t>()[i] = F32ToBf16((8 - zero) * scale(i));
      return;
    }
    const auto code = static_cast<unsigned>(zero);
    uint8_t* at = Byte(i);
    *at = bits_ == 8 ? static_cast<uint8_t>(code)
                     : static_cast<uint8_t>((*at & ~(15u << Shift(i))) | (code << Shift(i)));
  }

 private:
  uint8_t* Byte(int64_t i) const {
    const int64_t row = i / groups_, group = i % groups_;
    return grid_.zeros.data<uint8_t>() + row * grid_.zeros.shape()[1] +
           (bits_ == 8 ? group : group / 2);
  }
  int Shift(int64_t i) const { return 4 * static_cast<int>(i % groups_ % 2); }

  QuantizedTensor& grid_;
  const int bits_;
  const int64_t groups_;
};

double NormError(std::span<const float> w, float scale, float zero, const HqqOptions& options,
                 float levels) {
  double error = 0;
  for (const float v : w) {
    const float q = std::clamp(std::nearbyint(v / scale) + zero, 0.0f, levels);
    error += std::pow(std::fabs(v - (q - zero) * scale), options.norm);
  }
  return error;
}

class Hqq final : public Rounding {
 public:
  explicit Hqq(const MethodOptions& options)
      : name_(options.spelling()),
        options_{static_cast<float>(options.number("norm")),
                 static_cast<float>(options.number("beta")),
                 static_cast<int64_t>(options.number("iterations"))} {}
  std::string_view name() const override { return name_; }
  StatisticsNeed needs() const override { return StatisticsNeed::kNothing; }
  absl::StatusOr<QuantizedTensor> Quantize(TensorView w, const QuantScheme& scheme,
                                           const InputStatistics*,
                                           const RoundingContext&) const override {
    RETURN_IF_ERROR(CheckEncodable(name_, w));
    RETURN_IF_ERROR(scheme.Accepts(w.shape));
    ASSIGN_OR_RETURN(QuantizedTensor grid, scheme.Fit(w, {}));
    const int bits = BitsOf(scheme);
    if (bits == 0 || grid.zeros.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          name_,
          " moves zero points, which this scheme has not: scheme=", std::string(scheme.name()),
          "; int4_group:asym and int4_group:float, for example, have some"));
    }
    MoveZeros(w, scheme.group(w.shape), bits, grid);
    return scheme.EncodeOn(w, std::move(grid));
  }

 private:
  void MoveZeros(TensorView w, int64_t group, int bits, QuantizedTensor& grid) const {
    const int64_t k = w.shape[1], groups = (k + group - 1) / group;
    const auto levels = static_cast<float>((1 << bits) - 1);
    Zeros zeros(grid, bits);
    for (int64_t row = 0; row < w.shape[0]; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t i = row * groups + g, begin = g * group, size = std::min(group, k - begin);
        const std::span<const float> values(w.as<float>() + row * k + begin, size);
        const float scale = zeros.scale(i);
        if (!(scale > 0)) continue;
        const float before = zeros.Get(i);
        const std::vector<float> scales = {scale};
        float after = HqqZeros({values, scales, size, levels}, {before}, options_)[0];
        if (!zeros.is_float()) {
          after = std::clamp(std::nearbyint(after), 0.0f, levels);
          if (NormError(values, scale, after, options_, levels) >=
              NormError(values, scale, before, options_, levels))
            continue;
        }
        zeros.Set(i, after);
      }
    }
  }

  const std::string name_;
  const HqqOptions options_;
};

}  // namespace

const RoundingFamily kHqqRounding = {
    "hqq", [] { return std::span<const OptionSpec>(kOptions); },
    [](const MethodOptions& options) -> std::unique_ptr<const Rounding> {
      return std::make_unique<Hqq>(options);
    }};

}  // namespace assay
