#include "engine/lifecycle/analysis.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/lifecycle/calibrate.h"
#include "engine/model/checkpoint.h"
#include "engine/model/tokenizer.h"
#include "quant/methods/sensitivity.h"

namespace assay {
namespace {

constexpr CalibrationSize kScored = {.samples = 32, .window = 256};   // for the scores
constexpr CalibrationSize kMeasured = {.samples = 2, .window = 128};  // for the losses
constexpr double kScoreShare = 0.15;                                  // of the time, about

constexpr std::pair<std::string_view, SensitivityMetric> kMetrics[] = {
    {"loss", SensitivityMetric::kLoss},
    {"sqnr", SensitivityMetric::kOutputSqnr},
    {"range_parm", SensitivityMetric::kRangeParm},
    {"kurtosis", SensitivityMetric::kKurtosis},
    {"quantile", SensitivityMetric::kQuantile}};

struct Opened {
  std::unique_ptr<const Checkpoint> checkpoint;
  const ModelFamily* family = nullptr;
  std::shared_ptr<const Tokenizer> tokenizer;
  ModelSpec spec;
};

absl::StatusOr<Opened> Open(const std::string& path) {
  Opened opened;
  ASSIGN_OR_RETURN(opened.checkpoint, OpenCheckpoint(path));
  ASSIGN_OR_RETURN(opened.family, FamilyOf(*opened.checkpoint));
  if (HasTokenizer(opened.checkpoint->tokenizer())) {
    ASSIGN_OR_RETURN(opened.tokenizer, MakeTokenizer(opened.checkpoint->tokenizer()));
  }
  ASSIGN_OR_RETURN(opened.spec, opened.family->parse(*opened.checkpoint));
  return opened;
}

bool HasInput(const ModelSpec& spec, const LinearSlot& slot) {
  return slot.kind != LinearSlot::Kind::kEmbedding || IsHead(spec, slot);
}

absl::StatusOr<StatisticsMap> CollectScores(const LayerSource& reference, const CalibrationSet& set,
                                            const AnalysisOptions& options, ThreadPool& pool) {
  StatisticsMap statistics;
  const auto all = [](const LinearSlot&) {
    return std::optional(InputStatisticsOptions{.histogram = true});
  };
  const CalibrationRun run{set, pool, [&](double fraction) {
                             return options.progress
                                        ? options.progress(kScoreShare * fraction, "inputs")
                                        : absl::OkStatus();
                           }};
  const LayerWalkSteps steps{
      .collectors = StatisticsInto(statistics, pool, all),
      .finish = [](std::shared_ptr<const Model> model, const std::vector<const LinearSlot*>&)
          -> absl::StatusOr<std::shared_ptr<const Model>> { return model; }};
  RETURN_IF_ERROR(WalkLayers(reference, run, steps));
  return statistics;
}

double Figure(const LayerAnalysis& layer, SensitivityMetric metric) {
  switch (metric) {
    case SensitivityMetric::kLoss:
      return layer.loss;
    case SensitivityMetric::kOutputSqnr:
      return -layer.output_sqnr_db;
    case SensitivityMetric::kRangeParm:
      return layer.range_parm;
    case SensitivityMetric::kKurtosis:
      return layer.kurtosis;
    case SensitivityMetric::kQuantile:
      return layer.quantile;
  }
  return 0;
}

std::string_view TaskWord(ModelTask task) {
  return task == ModelTask::kGenerate ? "mean KL (nats)"
         : task == ModelTask::kEmbed  ? "1 - mean cosine"
                                      : "1 - label agreement";
}

}  // namespace

absl::StatusOr<ModelAnalysis> AnalyzeModel(const AnalysisOptions& options, ThreadPool& pool) {
  ASSIGN_OR_RETURN(const Opened opened, Open(options.path));
  const ModelSpec& spec = opened.spec;
  const StreamedLayers reference(*opened.family, spec, *opened.checkpoint, pool);
  ASSIGN_OR_RETURN(const CalibrationSet scored,
                   LoadCalibrationSet(options.calibration, opened.tokenizer.get(), spec, kScored));
  ASSIGN_OR_RETURN(
      const CalibrationSet measured,
      LoadCalibrationSet(options.calibration, opened.tokenizer.get(), spec, kMeasured));
  ASSIGN_OR_RETURN(const StatisticsMap statistics, CollectScores(reference, scored, options, pool));
  const SearchInputs inputs{
      *opened.family,
      *opened.checkpoint,
      reference,
      measured,
      pool,
      [&](const LinearSlot& slot) { return HasInput(spec, slot); },
      [&](double fraction) {
        return options.progress ? options.progress(kScoreShare + (1 - kScoreShare) * fraction,
                                                   "layers one at a time")
                                : absl::OkStatus();
      }};
  ASSIGN_OR_RETURN(const SearchTable table, MeasureCandidates(inputs, {options.candidate}));

  ModelAnalysis analysis{.path = options.path,
                         .architecture = spec.architecture,
                         .task = std::string(TaskWord(spec.task)),
                         .candidate = options.candidate,
                         .calibration = scored.name,
                         .calibration_hash = scored.hash,
                         .coverage = scored.coverage};
  for (size_t i = 0; i < table.slots.size(); ++i) {
    const LinearSlot& slot = table.slots[i];
    const InputStatistics& input = statistics.find(slot.name)->second;
    const absl::StatusOr<double> quantile = QuantileScore(input);
    const double noise = table.noise[i][0];
    analysis.layers.push_back(
        {.name = slot.name,
         .shape = slot.shape,
         .loss = table.problem[i][0].error,
         .output_sqnr_db = noise > 0 ? -10 * std::log10(noise) : 200,
         .range_parm = RangeParm(input),
         .kurtosis = KurtosisScore(input),
         .quantile = quantile.ok() ? *quantile : std::numeric_limits<double>::quiet_NaN()});
  }
  return analysis;
}

absl::StatusOr<SensitivityMetric> FindSensitivityMetric(std::string_view name) {
  std::vector<std::string> names;
  for (const auto& [known, metric] : kMetrics) {
    if (name == known) return metric;
    names.emplace_back(known);
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown metric '", std::string(name),
                                                 "': expected ", absl::StrJoin(names, ", ")));
}

std::vector<const LayerAnalysis*> Ranked(const ModelAnalysis& analysis, SensitivityMetric metric) {
  std::vector<const LayerAnalysis*> layers;
  for (const LayerAnalysis& layer : analysis.layers) layers.push_back(&layer);
  std::stable_sort(layers.begin(), layers.end(),
                   [&](const LayerAnalysis* a, const LayerAnalysis* b) {
                     const double x = Figure(*a, metric), y = Figure(*b, metric);
                     return std::isnan(y) ? !std::isnan(x) : x > y;
                   });
  return layers;
}

std::string ToTerminalText(const ModelAnalysis& analysis, SensitivityMetric metric, int top) {
  std::vector<const LayerAnalysis*> layers = Ranked(analysis, metric);
  const size_t all = layers.size();
  layers.resize(std::min(all, static_cast<size_t>(std::max(top, 1))));
  size_t width = 5;
  for (const LayerAnalysis* layer : layers) width = std::max(width, layer->name.size());
  double total = 0;
  for (const LayerAnalysis& layer : analysis.layers) total += layer.loss;
  std::string text = absl::StrFormat(
      "%s: each layer alone in %s/%s\ncalibration: %s\n%s\n"
      "loss: %s; all %d layers together about %.5f\n\n",
      analysis.path, analysis.candidate.scheme, std::string(Name(analysis.candidate.activation)),
      analysis.calibration, ToText(analysis.coverage), analysis.task, all, total);
  absl::StrAppendFormat(&text, "%-*s %10s %10s %10s %10s %10s\n", width, "LAYER", "LOSS",
                        "OUTPUT dB", "RANGE_PARM", "KURTOSIS", "QUANTILE");
  for (const LayerAnalysis* layer : layers) {
    absl::StrAppendFormat(&text, "%-*s %10.6f %10.1f %10.1f %10.1f %10.2f\n", width, layer->name,
                          layer->loss, layer->output_sqnr_db, layer->range_parm, layer->kurtosis,
                          layer->quantile);
  }
  if (layers.size() < all) {
    absl::StrAppend(&text, "... and ", all - layers.size(), " more (--top, --json)\n");
  }
  absl::StrAppend(&text, "\nkeep:   # the layers above, for a recipe\n");
  for (const LayerAnalysis* layer : layers) absl::StrAppend(&text, "  - ", layer->name, "\n");
  return text;
}

nlohmann::json ToJson(const ModelAnalysis& analysis) {
  nlohmann::json layers = nlohmann::json::array();
  for (const LayerAnalysis& layer : analysis.layers) {
    layers.push_back({{"name", layer.name},
                      {"n", layer.shape[0]},
                      {"k", layer.shape[1]},
                      {"loss", layer.loss},
                      {"output_sqnr_db", layer.output_sqnr_db},
                      {"range_parm", layer.range_parm},
                      {"kurtosis", layer.kurtosis},
                      {"quantile", layer.quantile}});
  }
  return {{"path", analysis.path},
          {"architecture", analysis.architecture},
          {"loss_is", analysis.task},
          {"scheme", analysis.candidate.scheme},
          {"activation", std::string(Name(analysis.candidate.activation))},
          {"calibration", analysis.calibration},
          {"calibration_hash", analysis.calibration_hash},
          {"layers", layers}};
}

}  // namespace assay
