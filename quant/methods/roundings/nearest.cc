// "nearest": each weight to the nearest value of the grid that fits its range.
#include "quant/methods/roundings/roundings.h"

namespace assay {
namespace {

class Nearest final : public Rounding {
 public:
  std::string_view name() const override { return "nearest"; }
  StatisticsNeed needs() const override { return StatisticsNeed::kNothing; }
  absl::StatusOr<QuantizedTensor> Quantize(TensorView w, const QuantScheme& scheme,
                                           const InputStatistics*,
                                           const RoundingContext&) const override {
    return scheme.Encode(w);
  }
};

}  // namespace

const RoundingFamily kNearestRounding = {
    "nearest", [] { return std::span<const OptionSpec>(); },
    [](const MethodOptions&) -> std::unique_ptr<const Rounding> {
      return std::make_unique<Nearest>();
    }};

}  // namespace assay
