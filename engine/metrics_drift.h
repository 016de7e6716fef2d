// Series of one model version's accuracy on live traffic (docs/operations.md). Thread-safe.
#pragma once
#include <memory>
#include <string_view>

#include "absl/time/time.h"

namespace assay {

enum class DriftSkip { kRingFull, kTooLong, kFailed, kNotServing };
enum class DriftAction { kAlert, kRefresh, kRaisePrecision, kRollBack, kServeReference };
inline constexpr DriftAction kAllDriftActions[] = {
    DriftAction::kAlert, DriftAction::kRefresh, DriftAction::kRaisePrecision,
    DriftAction::kRollBack, DriftAction::kServeReference};
// "alert", "refresh", "raise_precision", "roll_back", "serve_reference"
std::string_view Name(DriftAction action);

struct DriftGauges {
  int state = 0;                                       // 0 OK, 1 WARN, 2 VIOLATED
  double score = 0, low = 0, high = 0, threshold = 0;  // of the version's statistic
  double flip = 0, flip_threshold = 0;                 // decoders: top-1
  double e_value = 1, change_evidence = 1;
  absl::Time last;
};

// Of the input (engine/lifecycle/input_drift.h); what is not known is 0, an overlap 1.
struct InputGauges {
  bool shifted = false;
  double saturation = 0, range = 0, outlier_overlap = 1, length_psi = 0, token_psi = 0;
};

class DriftMetrics {
 public:
  virtual ~DriftMetrics() = default;  // removes the series
  virtual void ShadowDone(bool match, int tokens, double cpu_seconds) = 0;
  virtual void Skipped(DriftSkip why) = 0;
  virtual void Set(const DriftGauges& gauges) = 0;
  virtual void SetInput(const InputGauges& gauges) = 0;
};

}  // namespace assay
