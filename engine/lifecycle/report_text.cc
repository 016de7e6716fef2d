// The report for people: what was decided, what was measured against which limit, what it cost, and
// which layers matter. Nothing is left out silently: lists that are cut say so.
#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/lifecycle/report.h"

namespace assay {
namespace {

constexpr int kMinColumns = 80;
constexpr size_t kMaxLayers = 10;  // rows of the table, beyond those kept in higher precision
constexpr int kIndent = 2;

std::string Megabytes(uint64_t bytes) {
  if (bytes < 1000000) return absl::StrFormat("%.1f KB", static_cast<double>(bytes) / 1e3);
  return absl::StrFormat("%.1f MB", static_cast<double>(bytes) / 1e6);
}

std::string Seconds(absl::Duration elapsed) {
  const double seconds = absl::ToDoubleSeconds(elapsed);
  return seconds < 1 ? absl::StrFormat("%.0f ms", seconds * 1e3)
                     : absl::StrFormat("%.1f s", seconds);
}

// Cuts the middle out of a name: both its ends tell layers apart.
std::string Shorten(const std::string& text, size_t width) {
  if (text.size() <= width) return text;
  const size_t head = (width - 2) / 2, tail = width - 2 - head;
  return absl::StrCat(text.substr(0, head), "..", text.substr(text.size() - tail));
}

class Page {
 public:
  explicit Page(int columns) : columns_(static_cast<size_t>(std::max(columns, kMinColumns))) {}

  void Heading(const std::string& text) {
    absl::StrAppend(&text_, "\n");
    Paragraph(text, 0);
  }
  // Wraps at blanks; continuation lines are indented by two more.
  void Paragraph(const std::string& text, size_t indent = kIndent) {
    Hanging(std::string(indent, ' '), text, indent + 2);
  }
  // `prefix` as it is, then text wrapped at blanks, from the second line on behind `indent` blanks.
  void Hanging(const std::string& prefix, const std::string& text, size_t indent) {
    std::string line = prefix;
    bool empty = true;
    for (const absl::string_view view : absl::StrSplit(text, ' ', absl::SkipWhitespace())) {
      std::string word(view);
      if (!empty && line.size() + 1 + word.size() > columns_) {
        absl::StrAppend(&text_, line, "\n");
        line.assign(indent, ' ');
        empty = true;
      }
      while (line.size() + word.size() + 1 > columns_ + 1) {  // longer than any line: a path
        const size_t fits = columns_ - line.size();
        absl::StrAppend(&text_, line, word.substr(0, fits), "\n");
        word.erase(0, fits);
        line.assign(indent, ' ');
      }
      absl::StrAppend(&line, empty ? "" : " ", word);
      empty = false;
    }
    absl::StrAppend(&text_, absl::StripTrailingAsciiWhitespace(line), "\n");
  }
  void Line(const std::string& text) { absl::StrAppend(&text_, text.substr(0, columns_), "\n"); }
  size_t columns() const { return columns_; }
  std::string Take() { return std::move(text_); }

 private:
  const size_t columns_;
  std::string text_;
};

// One figure against its limit.
void Figure(Page& page, const char* name, const std::string& value, const std::string& interval,
            const std::string& limit, bool ok) {
  page.Line(absl::StrFormat("  %-18s%-10s %-18s limit %-8s %s", name, value, interval, limit,
                            ok ? "ok" : "NOT MET"));
}

std::string Interval(const Estimate& e, int digits) {
  return absl::StrFormat("[%.*f, %.*f]", digits, e.low, digits, e.high);
}

void GenerationFigures(Page& page, const VerificationResult& v, const Budget& budget) {
  Figure(page, "mean KL (nats)", absl::StrFormat("%.5f", v.mean_kl.mean), Interval(v.mean_kl, 5),
         absl::StrFormat("%.4g", budget.max_mean_kl), v.mean_kl.high <= budget.max_mean_kl);
  Figure(page, "top-1 agreement", absl::StrFormat("%.2f %%", 100 * v.top1_agreement.mean),
         absl::StrFormat("[%.2f, %.2f]", 100 * v.top1_agreement.low, 100 * v.top1_agreement.high),
         absl::StrFormat("%.4g %%", 100 * budget.min_top1),
         v.top1_agreement.mean >= budget.min_top1);
  Figure(page, "perplexity ratio", absl::StrFormat("%.5f", v.perplexity_ratio),
         absl::StrFormat("%.3f -> %.3f", v.perplexity_reference, v.perplexity),
         absl::StrFormat("%.4g", budget.max_perplexity_ratio),
         v.perplexity_ratio <= budget.max_perplexity_ratio);
  page.Line(absl::StrFormat("  KL of the worst positions: 99.9 %% %.4f [%.4f, %.4f], largest %.4f",
                            v.kl_p999.mean, v.kl_p999.low, v.kl_p999.high, v.kl_max));
  if (v.decode_positions > 0) {
    page.Line(absl::StrFormat("  decoding step by step against prefill: %d positions, KL <= %.2g",
                              v.decode_positions, v.decode_kl_max));
  }
}

void AccuracySection(Page& page, const AdmissionReport& r) {
  const VerificationResult& v = r.verification;
  const Budget& budget = r.decision.budget;
  if (v.documents == 0 && v.defects.empty()) return;
  page.Heading("Accuracy against the f32 reference, with the kernels that serve");
  if (v.documents > 0) {
    page.Paragraph(absl::StrCat("measured on ", v.tokens, " tokens of ", v.documents,
                                " documents (", r.evaluation_set, ")",
                                r.certificate_hit ? ", certified by an earlier admission" : ""));
  }
  if (v.documents > 0 && r.task == "generate") GenerationFigures(page, v, budget);
  if (v.documents > 0 && r.task == "embed") {
    Figure(page, "mean cosine", absl::StrFormat("%.6f", v.cosine.mean), Interval(v.cosine, 6),
           absl::StrFormat("%.4g", budget.min_mean_cosine), v.cosine.low >= budget.min_mean_cosine);
    page.Line(absl::StrFormat("  smallest cosine %.6f", v.cosine_min));
  }
  if (v.documents > 0 && r.task == "classify") {
    Figure(page, "same label", absl::StrFormat("%.2f %%", 100 * v.label_agreement), "",
           absl::StrFormat("%.4g %%", 100 * budget.min_label_agreement),
           v.label_agreement >= budget.min_label_agreement);
  }
  for (const SliceReport& slice : r.slices) {
    page.Paragraph(absl::StrFormat("%s: mean KL %.5f, top-1 %.2f %%, perplexity ratio %.5f",
                                   slice.name, slice.result.mean_kl.mean,
                                   100 * slice.result.top1_agreement.mean,
                                   slice.result.perplexity_ratio));
  }
  for (const std::string& defect : v.defects) page.Paragraph("DEFECT " + defect);
  if (!r.attempts.empty()) {
    const VerificationResult& plain = r.attempts.front();
    page.Paragraph(r.task == "generate"
                       ? absl::StrFormat("before the fallback: mean KL %.5f, top-1 %.2f %%, "
                                         "perplexity ratio %.5f",
                                         plain.mean_kl.mean, 100 * plain.top1_agreement.mean,
                                         plain.perplexity_ratio)
                       : absl::StrFormat("before the fallback: cosine %.6f, same label %.2f %%",
                                         plain.cosine.mean, 100 * plain.label_agreement));
  }
}

void CalibrationSection(Page& page, const AdmissionReport& r) {
  const CalibrationReport& c = r.calibration;
  if (c.set.empty()) return;
  page.Heading("Calibration");
  page.Paragraph(absl::StrCat(c.set, ", sha256 ", c.hash.substr(0, 12),
                              "; shares no passage with the evaluation set"));
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(c.coverage, '\n'))) {
    page.Paragraph(line);
  }
}

void TaskSection(Page& page, const AdmissionReport& r) {
  if (r.tasks.empty()) return;
  page.Heading(absl::StrCat("Labelled data: ", r.labelled_set));
  for (const TaskReport& task : r.tasks) {
    page.Line(absl::StrFormat("  %-18s%-10.4g reference %-10.4g limit %.4g %% of it  %s",
                              task.metric, task.candidate, task.reference,
                              100 * r.decision.budget.min_task_recovery,
                              Recovers(task, r.decision.budget) ? "ok" : "NOT MET"));
  }
}

void TransformSection(Page& page, const AdmissionReport& r) {
  if (r.folds.empty()) return;
  std::map<std::string, int> groups;
  for (const FoldReport& fold : r.folds) ++groups[fold.transform + " of " + fold.kind];
  page.Heading("Transforms");
  for (const auto& [what, count] : groups) {
    page.Paragraph(absl::StrCat(what, ": ", count, count == 1 ? " group" : " groups"));
  }
  page.Paragraph(absl::StrFormat(
      "proven: f32 outputs before and after differ by %.2g of their spread, at most %.2g allowed",
      r.fold_difference, r.fold_tolerance));
}

void MemorySection(Page& page, const AdmissionReport& r) {
  page.Heading("Memory");
  if (r.bytes > 0 && r.bytes_f32 > 0) {
    const auto share = [&](uint64_t bytes) {
      return 100 * static_cast<double>(bytes) / static_cast<double>(r.bytes_f32);
    };
    page.Paragraph(absl::StrFormat(
        "weights %s at f32 -> %s resident (%.1f %%), %s stored (%.1f %%)", Megabytes(r.bytes_f32),
        Megabytes(r.bytes), share(r.bytes), Megabytes(r.bytes_stored), share(r.bytes_stored)));
  }
  std::string peak = "admission peak: estimated " + Megabytes(r.estimated_peak_bytes);
  if (r.measured_peak_bytes > 0) peak += ", measured " + Megabytes(r.measured_peak_bytes);
  page.Paragraph(peak);
}

// What the recipe puts beside the codes, as it says it.
std::string Extras(const Recipe& recipe) {
  std::string text;
  if (!recipe.rotate_inputs.empty())
    absl::StrAppend(&text, ", inputs of ", absl::StrJoin(recipe.rotate_inputs, " "), " rotated");
  if (recipe.low_rank > 0) absl::StrAppend(&text, ", beside it a branch of rank ", recipe.low_rank);
  return text;
}

// What the KV cache holds in 16 bit beside its codes.
std::string RecentRows(const Recipe& recipe) {
  if (recipe.kv_window + recipe.kv_sinks == 0) return "";
  return absl::StrCat(" (f16 in the last ", recipe.kv_window, " and the first ", recipe.kv_sinks,
                      " positions; no prefix cache)");
}

void DecisionSection(Page& page, const AdmissionReport& r) {
  const Recipe& recipe = r.decision.recipe;
  page.Heading("Decision");
  page.Paragraph(
      absl::StrCat("rule ", r.decision.rule, " on ", r.decision.device, ": ", r.decision.reason));
  page.Paragraph(absl::StrCat(
      "recipe ", recipe.name, ": ", recipe.scheme, ", activations ", recipe.activation_name,
      recipe.rounding == "nearest" ? "" : ", rounded by " + recipe.rounding,
      recipe.transforms.empty() ? "" : ", after " + absl::StrJoin(recipe.transforms, ", "),
      Extras(recipe), ", embeddings ", recipe.embedding_scheme, ", KV cache ",
      std::string(Name(recipe.kv_dtype)), recipe.kv_key_channels ? " with channels of keys" : "",
      recipe.int8_scores ? " multiplied in INT8" : "", RecentRows(recipe), ", at most ",
      absl::StrFormat("%.0f %%", 100 * recipe.max_fallback_fraction), " of the layers in ",
      recipe.fallback_scheme));
}

// Layers worth a line: those kept in higher precision, then the least accurate.
std::vector<const LayerReport*> NotableLayers(const AdmissionReport& r) {
  std::vector<const LayerReport*> layers;
  for (const LayerReport& layer : r.layers) layers.push_back(&layer);
  std::stable_sort(layers.begin(), layers.end(), [](const LayerReport* a, const LayerReport* b) {
    if (a->fallback != b->fallback) return a->fallback;
    return std::min(a->output_sqnr_db, a->weight_sqnr_db) <
           std::min(b->output_sqnr_db, b->weight_sqnr_db);
  });
  const auto fallbacks = static_cast<size_t>(std::count_if(
      layers.begin(), layers.end(), [](const LayerReport* l) { return l->fallback; }));
  layers.resize(std::min(layers.size(), fallbacks + kMaxLayers));
  return layers;
}

void LayerSection(Page& page, const AdmissionReport& r) {
  if (r.layers.empty()) return;
  const std::vector<const LayerReport*> notable = NotableLayers(r);
  const auto by_name = std::count_if(
      r.layers.begin(), r.layers.end(),
      [](const LayerReport& layer) { return absl::StartsWith(layer.why, "the recipe keeps it"); });
  page.Heading(absl::StrFormat(
      "Layers: %d, %.1f %% of the linear ones kept in %s%s", r.layers.size(),
      100 * r.fallback_fraction, r.decision.recipe.fallback_scheme,
      by_name == 0 ? "" : absl::StrCat(", ", by_name, " more because the recipe names them")));
  const size_t width = page.columns() - 56;
  page.Line(absl::StrFormat("  %-*s %-19s %9s %9s  %s", width, "least accurate first", "precision",
                            "weight dB", "output dB", "kernel"));
  for (const LayerReport* layer : notable) {
    page.Line(absl::StrFormat("%s %-*s %-19s %9.1f %9.1f  %s", layer->fallback ? "*" : " ", width,
                              Shorten(layer->name, width), layer->scheme, layer->weight_sqnr_db,
                              layer->output_sqnr_db, layer->kernel));
    const std::string beside = BesideTheCodes(*layer);
    if (!beside.empty()) page.Paragraph("with " + beside, 4);
    if (layer->fallback) page.Paragraph("kept: " + layer->why, 4);
  }
  if (notable.size() < r.layers.size()) {
    page.Line(absl::StrCat("  ... and ", r.layers.size() - notable.size(),
                           " more (all of them in the JSON report)"));
  }
}

// Plans that were measured as a whole; the predicted frontier is in the page and in the JSON.
void SearchSection(Page& page, const AdmissionReport& r) {
  if (r.candidates.empty()) return;
  const auto predicted = std::count_if(r.candidates.begin(), r.candidates.end(),
                                       [](const CandidateReport& c) { return c.predicted; });
  page.Heading(absl::StrCat("Search: ", predicted,
                            " points of the frontier predicted, plans "
                            "measured"));
  for (const CandidateReport& c : r.candidates) {
    if (c.predicted) continue;
    page.Hanging(absl::StrFormat("%s %-8s %10s  loss %.5f [%.5f, %.5f]  ", c.chosen ? " *" : "  ",
                                 c.name, Megabytes(c.bytes), c.loss.mean, c.loss.low, c.loss.high),
                 c.chosen ? "chosen" : c.why, 6);
  }
}

void LadderSection(Page& page, const AdmissionReport& r) {
  if (r.rungs.empty()) return;
  page.Heading("Recipes that did not pass");
  for (const RungReport& rung : r.rungs) {
    page.Hanging(
        absl::StrFormat("  %-18s %9s  %s", rung.recipe, Seconds(rung.elapsed),
                        rung.measured ? absl::StrFormat("loss %.5f [%.5f, %.5f]  ", rung.loss.mean,
                                                        rung.loss.low, rung.loss.high)
                                      : ""),
        rung.reason, 6);
  }
}

void StageSection(Page& page, const AdmissionReport& r) {
  if (r.stages.empty()) return;
  page.Heading("Stages");
  absl::Duration total;
  for (const StageReport& stage : r.stages) {
    total += stage.elapsed;
    page.Hanging(absl::StrFormat("  %-10s %9s  ", stage.stage, Seconds(stage.elapsed)), stage.note,
                 23);
  }
  page.Line(absl::StrFormat("  %-10s %9s", "total", Seconds(total)));
}

}  // namespace

std::string BesideTheCodes(const LayerReport& layer) {
  std::vector<std::string> parts;
  if (layer.rotates_input) parts.emplace_back("rotated input");
  if (layer.low_rank > 0) parts.push_back(absl::StrCat("branch of rank ", layer.low_rank));
  if (layer.key_channels) parts.emplace_back("channels of keys");
  if (layer.int8_scores) parts.emplace_back("INT8 scores");
  return absl::StrJoin(parts, ", ");
}

std::string ToTerminalText(const AdmissionReport& report, int columns) {
  Page page(columns);
  page.Paragraph(absl::StrCat(report.model, " version ", report.version, ": ",
                              absl::AsciiStrToUpper(report.verdict)),
                 0);
  page.Paragraph(report.reason);
  for (const std::string& failure : report.verification.failures) page.Paragraph("- " + failure);
  AccuracySection(page, report);
  CalibrationSection(page, report);
  TaskSection(page, report);
  TransformSection(page, report);
  MemorySection(page, report);
  if (!report.decision.rule.empty()) DecisionSection(page, report);
  LadderSection(page, report);
  SearchSection(page, report);
  LayerSection(page, report);
  StageSection(page, report);
  page.Heading("Provenance");
  page.Paragraph(absl::StrCat(report.source_format, " ", report.source_path));
  if (!report.source_hash.empty()) page.Paragraph("source   " + report.source_hash);
  if (!report.artifact_hash.empty()) page.Paragraph("artifact " + report.artifact_hash);
  return page.Take();
}

}  // namespace assay
