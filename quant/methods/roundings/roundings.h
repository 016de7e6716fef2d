// The families of rounding methods, for the list. Thread-safe.
#pragma once
#include <memory>

#include "quant/methods/method_options.h"
#include "quant/methods/rounding.h"

namespace assay {

struct RoundingFamily {
  std::string_view name;
  std::span<const OptionSpec> (*options)();
  std::unique_ptr<const Rounding> (*make)(const MethodOptions& options);
};

extern const RoundingFamily kNearestRounding;     // nearest.cc
extern const RoundingFamily kMseRounding;         // clipping.cc
extern const RoundingFamily kImatrixRounding;     // clipping.cc
extern const RoundingFamily kAwqClipRounding;     // clipping.cc
extern const RoundingFamily kPercentileRounding;  // clipping.cc
extern const RoundingFamily kKlRounding;          // clipping.cc
extern const RoundingFamily kGptqRounding;        // gptq.cc
extern const RoundingFamily kLearnedRounding;     // learned.cc
extern const RoundingFamily kHqqRounding;         // hqq.cc

}  // namespace assay
