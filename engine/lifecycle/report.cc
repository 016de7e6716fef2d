#include "engine/lifecycle/report.h"

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "engine/lifecycle/report_fields.h"

namespace assay {
namespace {

using nlohmann::json;
using Fields = ReportFields;

json ToJson(const Estimate& e) { return {{"mean", e.mean}, {"low", e.low}, {"high", e.high}}; }

json ToJson(const WithError& e) { return {{"value", e.value}, {"error", e.error}}; }

json ToJson(const DivergenceFigures& f) {
  return {{"positions", f.positions},
          {"perplexity", ToJson(f.perplexity)},
          {"perplexity_reference", ToJson(f.perplexity_reference)},
          {"log_perplexity_correlation", f.log_perplexity_correlation},
          {"log_perplexity_ratio", ToJson(f.log_perplexity_ratio)},
          {"perplexity_ratio", ToJson(f.perplexity_ratio)},
          {"perplexity_difference", ToJson(f.perplexity_difference)},
          {"mean_kl", ToJson(f.mean_kl)},
          {"kl_quantiles", f.kl_quantiles},
          {"mean_delta_p", ToJson(f.mean_delta_p)},
          {"rms_delta_p", ToJson(f.rms_delta_p)},
          {"delta_p_quantiles", f.delta_p_quantiles},
          {"same_top", ToJson(f.same_top)}};
}

json ToJson(const PolicyDecision& d) {
  return {{"rule", d.rule},
          {"device", d.device},
          {"reason", d.reason},
          {"recipe", ToJson(d.recipe)},
          {"budget", ToJson(d.budget)},
          {"trace", d.trace}};
}

json ToJson(const VerificationResult& v) {
  return {{"tokens", v.tokens},
          {"documents", v.documents},
          {"documents_in_set", v.documents_in_set},
          {"mean_kl", ToJson(v.mean_kl)},
          {"mean_kl_bootstrap", ToJson(v.mean_kl_bootstrap)},
          {"kl_p999", ToJson(v.kl_p999)},
          {"kl_max", v.kl_max},
          {"top1_agreement", ToJson(v.top1_agreement)},
          {"top1_agreement_bootstrap", ToJson(v.top1_agreement_bootstrap)},
          {"perplexity_reference", v.perplexity_reference},
          {"perplexity", v.perplexity},
          {"perplexity_ratio", v.perplexity_ratio},
          {"log_perplexity_ratio", ToJson(v.log_perplexity_ratio)},
          {"log_perplexity_ratio_bootstrap", ToJson(v.log_perplexity_ratio_bootstrap)},
          {"figures", ToJson(v.figures)},
          {"cosine", ToJson(v.cosine)},
          {"cosine_bootstrap", ToJson(v.cosine_bootstrap)},
          {"cosine_min", v.cosine_min},
          {"label_agreement", v.label_agreement},
          {"decode_positions", v.decode_positions},
          {"decode_kl_max", v.decode_kl_max},
          {"defects", v.defects},
          {"failures", v.failures}};
}

json ToJson(const SliceReport& s) { return {{"name", s.name}, {"result", ToJson(s.result)}}; }

json ToJson(const CalibrationReport& c) {
  return {{"set", c.set},         {"hash", c.hash},           {"samples", c.samples},
          {"tokens", c.tokens},   {"documents", c.documents}, {"chat_share", c.chat_share},
          {"scripts", c.scripts}, {"coverage", c.coverage}};
}

json ToJson(const FoldReport& f) {
  return {{"transform", f.transform},
          {"kind", f.kind},
          {"slot", f.slot},
          {"alpha", f.alpha},
          {"beta", f.beta},
          {"error", f.error},
          {"plain_error", f.plain_error},
          {"least_scale", f.least_scale},
          {"most_scale", f.most_scale}};
}

json ToJson(const TaskReport& t) {
  return {{"metric", t.metric}, {"reference", t.reference}, {"candidate", t.candidate}};
}

json ToJson(const CandidateReport& c) {
  return {{"name", c.name},       {"bytes", c.bytes},         {"loss", ToJson(c.loss)},
          {"seconds", c.seconds}, {"predicted", c.predicted}, {"chosen", c.chosen},
          {"why", c.why}};
}

template <typename T>
json ListToJson(const std::vector<T>& items) {
  json list = json::array();
  for (const T& item : items) list.push_back(ToJson(item));
  return list;
}

void ReadRecipe(const json& object, const std::string& path, Recipe& recipe, absl::Status& status) {
  Fields f(object, path, status);
  f.Get("name", recipe.name);
  f.Get("scheme", recipe.scheme);
  f.Get("activation", recipe.activation_name);
  f.Get("bits_per_weight", recipe.bits_per_weight);
  f.Get("embedding_scheme", recipe.embedding_scheme);
  f.Get("fallback_scheme", recipe.fallback_scheme);
  f.Get("fallback_activation", recipe.fallback_activation_name);
  f.Get("max_fallback_fraction", recipe.max_fallback_fraction);
  std::string by;
  f.Get("fallback_by", by);
  recipe.fallback_by_range = by == "range";
  f.GetInt("disable_level", recipe.disable_level);
  f.Get("keep", recipe.keep);
  f.Get("transforms", recipe.transforms);
  f.Get("rounding", recipe.rounding);
  f.Get("rounding_seconds", recipe.rounding_seconds);
  f.Get("activation_range", recipe.activation_range);
  if (const json* calibration = f.Find("calibration")) {
    Fields part(*calibration, f.Path("calibration"), status);
    part.Get("path", recipe.calibration.path);
    part.GetInt("samples", recipe.calibration.samples);
    part.GetInt("window", recipe.calibration.window);
  }
  if (const json* search = f.Find("search")) {
    Fields part(*search, f.Path("search"), status);
    part.Get("candidates", recipe.search.candidates);
    part.GetInt("max_bytes", recipe.search.max_bytes);
    part.Get("max_loss", recipe.search.max_loss);
  }
  std::string kv;
  f.Get("kv_dtype", kv);
  f.Get("rotate_inputs", recipe.rotate_inputs);
  f.GetInt("low_rank", recipe.low_rank);
  std::string keys, attention;
  f.GetInt("kv_window", recipe.kv_window);
  f.GetInt("kv_sinks", recipe.kv_sinks);
  f.Get("kv_keys", keys);
  f.Get("attention", attention);
  recipe.kv_key_channels = keys == "channel";
  recipe.int8_scores = attention == "int8";
  const std::optional<DType> dtype = FindDType(kv);
  dtype.has_value() ? void(recipe.kv_dtype = *dtype) : f.Fail("kv_dtype", "an element type");
  recipe.activation = FindActivationMode(recipe.activation_name).value_or(ActivationMode::kA16);
  recipe.fallback_activation =
      FindActivationMode(recipe.fallback_activation_name).value_or(ActivationMode::kA16);
}

void ReadBudget(const json& object, const std::string& path, Budget& budget, absl::Status& status) {
  Fields f(object, path, status);
  f.Get("max_mean_kl", budget.max_mean_kl);
  f.Get("min_top1", budget.min_top1);
  f.Get("max_perplexity_ratio", budget.max_perplexity_ratio);
  f.Get("min_mean_cosine", budget.min_mean_cosine);
  f.Get("min_label_agreement", budget.min_label_agreement);
  f.Get("min_task_recovery", budget.min_task_recovery);
}

void ReadDecision(const json& object, const std::string& path, PolicyDecision& decision,
                  absl::Status& status) {
  Fields f(object, path, status);
  f.Get("rule", decision.rule);
  f.Get("device", decision.device);
  f.Get("reason", decision.reason);
  f.Get("trace", decision.trace);
  if (const json* recipe = f.Find("recipe")) {
    ReadRecipe(*recipe, f.Path("recipe"), decision.recipe, status);
  }
  if (const json* budget = f.Find("budget")) {
    ReadBudget(*budget, f.Path("budget"), decision.budget, status);
  }
}

DivergenceFigures ReadFigures(const json& object, const std::string& path, absl::Status& status) {
  DivergenceFigures d;
  Fields f(object, path, status);
  f.GetInt("positions", d.positions);
  f.Get("perplexity", d.perplexity);
  f.Get("perplexity_reference", d.perplexity_reference);
  f.Get("log_perplexity_correlation", d.log_perplexity_correlation);
  f.Get("log_perplexity_ratio", d.log_perplexity_ratio);
  f.Get("perplexity_ratio", d.perplexity_ratio);
  f.Get("perplexity_difference", d.perplexity_difference);
  f.Get("mean_kl", d.mean_kl);
  f.Get("kl_quantiles", d.kl_quantiles);
  f.Get("mean_delta_p", d.mean_delta_p);
  f.Get("rms_delta_p", d.rms_delta_p);
  f.Get("delta_p_quantiles", d.delta_p_quantiles);
  f.Get("same_top", d.same_top);
  return d;
}

VerificationResult ReadVerification(const json& object, const std::string& path,
                                    absl::Status& status) {
  VerificationResult v;
  Fields f(object, path, status);
  f.GetInt("tokens", v.tokens);
  f.GetInt("documents", v.documents);
  f.GetInt("documents_in_set", v.documents_in_set);
  f.Get("mean_kl", v.mean_kl);
  f.Get("mean_kl_bootstrap", v.mean_kl_bootstrap);
  f.Get("kl_p999", v.kl_p999);
  f.Get("kl_max", v.kl_max);
  f.Get("top1_agreement", v.top1_agreement);
  f.Get("top1_agreement_bootstrap", v.top1_agreement_bootstrap);
  f.Get("perplexity_reference", v.perplexity_reference);
  f.Get("perplexity", v.perplexity);
  f.Get("perplexity_ratio", v.perplexity_ratio);
  f.Get("log_perplexity_ratio", v.log_perplexity_ratio);
  f.Get("log_perplexity_ratio_bootstrap", v.log_perplexity_ratio_bootstrap);
  if (const json* figures = f.Find("figures")) {
    v.figures = ReadFigures(*figures, f.Path("figures"), status);
  }
  f.Get("cosine", v.cosine);
  f.Get("cosine_bootstrap", v.cosine_bootstrap);
  f.Get("cosine_min", v.cosine_min);
  f.Get("label_agreement", v.label_agreement);
  f.GetInt("decode_positions", v.decode_positions);
  f.Get("decode_kl_max", v.decode_kl_max);
  f.Get("defects", v.defects);
  f.Get("failures", v.failures);
  return v;
}

CalibrationReport ReadCalibration(const json& object, const std::string& path,
                                  absl::Status& status) {
  CalibrationReport c;
  Fields f(object, path, status);
  f.Get("set", c.set);
  f.Get("hash", c.hash);
  f.GetInt("samples", c.samples);
  f.GetInt("tokens", c.tokens);
  f.GetInt("documents", c.documents);
  f.Get("chat_share", c.chat_share);
  f.Get("coverage", c.coverage);
  if (const json* scripts = f.Find("scripts")) {
    for (const auto& [script, share] : scripts->items()) {
      if (!share.is_number()) {
        f.Fail("scripts", "shares of the letters");
      } else {
        c.scripts[script] = share.get<double>();
      }
    }
  }
  return c;
}

FoldReport ReadFold(const json& object, const std::string& path, absl::Status& status) {
  FoldReport fold;
  Fields f(object, path, status);
  f.Get("transform", fold.transform);
  f.Get("kind", fold.kind);
  f.Get("slot", fold.slot);
  f.Get("alpha", fold.alpha);
  f.Get("beta", fold.beta);
  f.Get("error", fold.error);
  f.Get("plain_error", fold.plain_error);
  f.Get("least_scale", fold.least_scale);
  f.Get("most_scale", fold.most_scale);
  return fold;
}

SliceReport ReadSlice(const json& object, const std::string& path, absl::Status& status) {
  SliceReport slice;
  Fields f(object, path, status);
  f.Get("name", slice.name);
  if (const json* result = f.Find("result"))
    slice.result = ReadVerification(*result, path + "result.", status);
  return slice;
}

TaskReport ReadTask(const json& object, const std::string& path, absl::Status& status) {
  TaskReport task;
  Fields f(object, path, status);
  f.Get("metric", task.metric);
  f.Get("reference", task.reference);
  f.Get("candidate", task.candidate);
  return task;
}

CandidateReport ReadCandidate(const json& object, const std::string& path, absl::Status& status) {
  CandidateReport candidate;
  Fields f(object, path, status);
  f.Get("name", candidate.name);
  f.GetInt("bytes", candidate.bytes);
  f.Get("loss", candidate.loss);
  f.Get("seconds", candidate.seconds);
  f.Get("predicted", candidate.predicted);
  f.Get("chosen", candidate.chosen);
  f.Get("why", candidate.why);
  return candidate;
}

StageReport ReadStage(const json& object, const std::string& path, absl::Status& status) {
  StageReport stage;
  Fields f(object, path, status);
  f.Get("stage", stage.stage);
  f.Get("seconds", stage.elapsed);
  f.Get("note", stage.note);
  return stage;
}

// The nested parts; the flat fields are read by ReportFromJson.
void ReadParts(Fields& f, AdmissionReport& report, absl::Status& status) {
  if (const json* hardware = f.Find("hardware")) {
    absl::StatusOr<HardwareInfo> read = HardwareFromJson(hardware->dump());
    read.ok() ? void(report.hardware = *std::move(read))
              : f.Fail("hardware", "a hardware description");
  }
  if (const json* decision = f.Find("decision")) {
    ReadDecision(*decision, "decision.", report.decision, status);
  }
  if (const json* verification = f.Find("verification")) {
    report.verification = ReadVerification(*verification, "verification.", status);
  }
  if (const json* calibration = f.Find("calibration")) {
    report.calibration = ReadCalibration(*calibration, "calibration.", status);
  }
  f.ForEach("folds", [&](const json& item, const std::string& path) {
    report.folds.push_back(ReadFold(item, path, status));
  });
  f.ForEach("slices", [&](const json& item, const std::string& path) {
    report.slices.push_back(ReadSlice(item, path, status));
  });
  f.ForEach("attempts", [&](const json& item, const std::string& path) {
    report.attempts.push_back(ReadVerification(item, path, status));
  });
  f.ForEach("tasks", [&](const json& item, const std::string& path) {
    report.tasks.push_back(ReadTask(item, path, status));
  });
  f.ForEach("candidates", [&](const json& item, const std::string& path) {
    report.candidates.push_back(ReadCandidate(item, path, status));
  });
  f.ForEach("rungs", [&](const json& item, const std::string& path) {
    absl::StatusOr<RungReport> rung = RungFromJson(item);
    rung.ok() ? report.rungs.push_back(*std::move(rung)) : f.Fail(path.c_str(), "a rung");
  });
  f.ForEach("layers", [&](const json& item, const std::string& path) {
    report.layers.push_back(ReadLayer(item, path, status));
  });
  f.ForEach("stages", [&](const json& item, const std::string& path) {
    report.stages.push_back(ReadStage(item, path, status));
  });
}

}  // namespace

bool Recovers(const TaskReport& task, const Budget& budget) {
  return task.candidate >= budget.min_task_recovery * task.reference;
}

json ToJson(const AdmissionReport& report) {
  json stages = json::array();
  for (const StageReport& stage : report.stages) {
    stages.push_back({{"stage", stage.stage},
                      {"seconds", absl::ToDoubleSeconds(stage.elapsed)},
                      {"note", stage.note}});
  }
  return {{"schema", report.schema},
          {"model", report.model},
          {"version", report.version},
          {"task", report.task},
          {"verdict", report.verdict},
          {"reason", report.reason},
          {"source_path", report.source_path},
          {"source_format", report.source_format},
          {"source_hash", report.source_hash},
          {"artifact_hash", report.artifact_hash},
          {"artifact_cache_hit", report.artifact_cache_hit},
          {"certificate_hit", report.certificate_hit},
          {"hardware", ToJson(report.hardware)},
          {"decision", ToJson(report.decision)},
          {"bytes_f32", report.bytes_f32},
          {"bytes", report.bytes},
          {"bytes_stored", report.bytes_stored},
          {"estimated_peak_bytes", report.estimated_peak_bytes},
          {"measured_peak_bytes", report.measured_peak_bytes},
          {"fallback_fraction", report.fallback_fraction},
          {"evaluation_set", report.evaluation_set},
          {"evaluation_hash", report.evaluation_hash},
          {"calibration", ToJson(report.calibration)},
          {"folds", ListToJson(report.folds)},
          {"fold_difference", report.fold_difference},
          {"fold_tolerance", report.fold_tolerance},
          {"verification", ToJson(report.verification)},
          {"slices", ListToJson(report.slices)},
          {"attempts", ListToJson(report.attempts)},
          {"candidates", ListToJson(report.candidates)},
          {"rungs", ListToJson(report.rungs)},
          {"labelled_set", report.labelled_set},
          {"labelled_hash", report.labelled_hash},
          {"tasks", ListToJson(report.tasks)},
          {"layers", ListToJson(report.layers)},
          {"stages", stages},
          {"assay_version", report.assay_version}};
}

absl::StatusOr<AdmissionReport> ReportFromJson(const json& object) {
  AdmissionReport report;
  absl::Status status;
  Fields f(object, "", status);
  f.GetInt("schema", report.schema);
  if (status.ok() && report.schema != 5) f.Fail("schema", "5");
  f.Get("model", report.model);
  f.GetInt("version", report.version);
  f.Get("task", report.task);
  f.Get("verdict", report.verdict);
  f.Get("reason", report.reason);
  f.Get("source_path", report.source_path);
  f.Get("source_format", report.source_format);
  f.Get("source_hash", report.source_hash);
  f.Get("artifact_hash", report.artifact_hash);
  f.Get("artifact_cache_hit", report.artifact_cache_hit);
  f.Get("certificate_hit", report.certificate_hit);
  f.GetInt("bytes_f32", report.bytes_f32);
  f.GetInt("bytes", report.bytes);
  f.GetInt("bytes_stored", report.bytes_stored);
  f.GetInt("estimated_peak_bytes", report.estimated_peak_bytes);
  f.GetInt("measured_peak_bytes", report.measured_peak_bytes);
  f.Get("fallback_fraction", report.fallback_fraction);
  f.Get("evaluation_set", report.evaluation_set);
  f.Get("evaluation_hash", report.evaluation_hash);
  f.Get("labelled_set", report.labelled_set);
  f.Get("labelled_hash", report.labelled_hash);
  f.Get("fold_difference", report.fold_difference);
  f.Get("fold_tolerance", report.fold_tolerance);
  f.Get("assay_version", report.assay_version);
  ReadParts(f, report, status);
  RETURN_IF_ERROR(status);
  return report;
}

std::string ServedPrecision(const AdmissionReport& report) {
  std::map<std::string, uint64_t> bytes;
  for (const LayerReport& layer : report.layers) {
    bytes[absl::StrCat(layer.scheme, "/", layer.activation)] += layer.bytes_f32;
  }
  const auto most = std::max_element(
      bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most != bytes.end()) return most->first;
  return absl::StrCat(report.decision.recipe.scheme, "/", report.decision.recipe.activation_name);
}

}  // namespace assay
