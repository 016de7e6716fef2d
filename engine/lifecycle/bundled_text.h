// The bundled texts, compiled in from data/evaluation and data/calibration.
#pragma once
#include <string_view>

namespace assay {
extern const std::string_view kBundledEvaluationText;
extern const std::string_view kBundledCalibrationText;
}  // namespace assay
