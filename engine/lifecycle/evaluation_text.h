// The bundled text, compiled in from data/evaluation.
#pragma once
#include <string_view>

namespace assay {
extern const std::string_view kBundledEvaluationText;
}  // namespace assay
