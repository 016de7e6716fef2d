// How hard each layer of a checkpoint is to quantize: measured, and by the scores of the field
// (quant/methods/sensitivity.h). For `assay analyze`; nothing is kept.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "engine/lifecycle/calibration_set.h"
#include "engine/lifecycle/plan_search.h"

namespace assay {

struct LayerAnalysis {
  std::string name;
  Shape shape;      // [n, k]
  double loss = 0;  // LossOf the model when this layer alone is quantized
  double output_sqnr_db = 0;
  double range_parm = 0, kurtosis = 0;
  double quantile = 0;  // infinite where half of the inputs are equal
};

struct ModelAnalysis {
  std::string path, architecture, task;
  PlanCandidate candidate;
  std::string calibration, calibration_hash;
  CalibrationCoverage coverage;
  std::vector<LayerAnalysis> layers;  // first to last
};

struct AnalysisOptions {
  std::string path;
  PlanCandidate candidate{"int8_channel", ActivationMode::kA8Token};
  std::string calibration;  // file, or empty: the bundled text
  std::function<absl::Status(double fraction, const std::string& message)> progress;  // or empty
};

// Memory: what MeasureCandidates takes, and the statistics of all layers. Status codes of
// OpenCheckpoint, LoadCalibrationSet and MeasureCandidates.
absl::StatusOr<ModelAnalysis> AnalyzeModel(const AnalysisOptions& options, ThreadPool& pool);

// A figure of LayerAnalysis; the larger the worse, but for output_sqnr_db.
enum class SensitivityMetric { kLoss, kOutputSqnr, kRangeParm, kKurtosis, kQuantile };
// "loss", "sqnr", "range_parm", "kurtosis", "quantile". InvalidArgument lists them.
absl::StatusOr<SensitivityMetric> FindSensitivityMetric(std::string_view name);
// Worst first.
std::vector<const LayerAnalysis*> Ranked(const ModelAnalysis& analysis, SensitivityMetric metric);

// The worst `top` layers as a table, then as a `keep` list to paste into a recipe. Lines as wide as
// the longest name wants.
std::string ToTerminalText(const ModelAnalysis& analysis, SensitivityMetric metric, int top);
nlohmann::json ToJson(const ModelAnalysis& analysis);

}  // namespace assay
