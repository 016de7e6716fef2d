// What an admission found out: readable by RPC, CLI and people. Kept with the artifact, inside the
// certificate (docs/formats.md).
#pragma once
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "quant/divergence.h"
#include "quant/policy/policy.h"

namespace assay {

struct VerificationResult {
  int tokens = 0, documents = 0;
  int documents_in_set = 0;  // more than `documents` when the comparison stopped early
  // Where there are two, the first has Student's t interval, the second the bootstrap's; both over
  // documents (quant/estimate.h).
  Estimate mean_kl, mean_kl_bootstrap;  // nats per token, KL(reference || candidate)
  Estimate kl_p999;                     // over positions; bootstrap over documents
  double kl_max = 0;
  Estimate top1_agreement, top1_agreement_bootstrap;  // fraction of positions
  double perplexity_reference = 0, perplexity = 0, perplexity_ratio = 1;
  Estimate log_perplexity_ratio, log_perplexity_ratio_bootstrap;
  DivergenceFigures figures;          // as llama.cpp prints them
  Estimate cosine, cosine_bootstrap;  // embeddings
  double cosine_min = 1;
  double label_agreement = 1;  // classifiers
  int decode_positions = 0;    // generated step by step and compared with prefill of the candidate
  double decode_kl_max = 0;    // KL(prefill || decode) of the candidate: 0 when batch-invariant
  std::vector<std::string> defects;   // integrity findings, each naming the layer
  std::vector<std::string> failures;  // figures outside the budget: "mean KL 0.0312 > 0.0100"
};

struct LayerReport {
  std::string name;
  std::string scheme, activation, kernel;
  int64_t n = 0, k = 0;
  uint64_t bytes = 0, bytes_f32 = 0;  // resident, as the kernel packed it; at f32
  uint64_t bytes_stored = 0;          // codes, scales, ... in the artifact
  double weight_sqnr_db = 0;          // of the stored weight against the checkpoint's
  double output_sqnr_db =
      0;  // of the layer's output on the reference's own inputs, with the serving kernel
  double kl_contribution =
      0;  // rise of mean KL when only this layer is quantized, where measured; else 0
  bool fallback = false;
  // What stands beside the codes (quant/linear_parts.h); of a cache with integer codes, how the
  // keys that it gives are stored and multiplied.
  bool rotates_input = false, key_channels = false, int8_scores = false;
  int64_t low_rank = 0;
  // Of its input as it serves, on the evaluation text: the largest value, the share that a static
  // scale cuts off, and channels that stand out (input_profile.h). 0 and empty: a table.
  double input_absmax = 0, input_saturation = 0;
  std::vector<int32_t> input_outliers;
  std::string why;  // why this precision, and kernels that were refused
};
// "rotated input, rank 16": all of that in words; empty: only codes.
std::string BesideTheCodes(const LayerReport& layer);

struct StageReport {
  std::string stage;  // "open", "look_up", "quantize", ...
  absl::Duration elapsed;
  std::string note;
};

// What the methods of the recipe were fitted to; `set` is empty where they needed nothing.
struct CalibrationReport {
  std::string set, hash;  // for people; SHA-256 of the token ids
  int samples = 0;        // windows
  int64_t tokens = 0;
  int documents = 0;  // of the source
  double chat_share = 0;
  std::map<std::string, double> scripts;  // "Latin" -> share of the letters
  std::string coverage;                   // the same and more as lines for people
};

// A figure of a user's labelled data (engine/lifecycle/labelled.h).
struct TaskReport {
  std::string metric;
  double reference = 0, candidate = 0;
};
// A plan that the search looked at: a point of the frontier that it predicts, or one that was
// measured as a whole.
struct CandidateReport {
  std::string name;
  uint64_t bytes = 0;  // stored, of the layers that have a choice
  Estimate loss;       // mean KL in nats, 1 - mean cosine, 1 - label agreement
  double seconds = 0;  // of one decode step through those layers
  bool predicted = false, chosen = false;
  std::string why;  // why not, where it was measured
};

// A recipe of a ladder that did not pass.
struct RungReport {
  std::string recipe, reason;
  bool measured = false;      // else it was refused before: no memory, too little calibration data
  Estimate loss;              // as CandidateReport's
  uint64_t bytes_stored = 0;  // of all weights
  absl::Duration elapsed;
};

// One rescaling that a transform found (engine/model/fold.h).
struct FoldReport {
  std::string transform, kind, slot;
  double alpha = 0, beta = 0;         // exponents
  double error = 0, plain_error = 0;  // of the search's objective, with and without; 0: no search
  double least_scale = 1, most_scale = 1;
};

// The same comparison on texts of one kind, each figure held to the budget by its value: a slice is
// too small for an interval.
struct SliceReport {
  std::string name;  // "bundled extract of WikiText-2, long context: 2 windows of 2048 tokens"
  VerificationResult result;
};

struct AdmissionReport {
  int schema = 5;
  std::string model;
  int64_t version = 0;
  std::string task;     // "generate", "embed", "classify"
  std::string verdict;  // "admitted", "rejected"
  std::string reason;   // first line for a person: why
  std::string source_path, source_format, source_hash, artifact_hash;
  bool artifact_cache_hit = false;  // weights came from the cache: nothing was quantized
  bool certificate_hit = false;     // so did the verification: nothing was measured again
  HardwareInfo hardware;
  PolicyDecision decision;
  uint64_t bytes_f32 = 0, bytes = 0;  // weights before (at f32) and after, resident
  uint64_t bytes_stored = 0;          // after, in the artifact; norms and biases as in `bytes`
  uint64_t estimated_peak_bytes = 0, measured_peak_bytes = 0;
  double fallback_fraction = 0;  // of linear layers
  std::string evaluation_set, evaluation_hash;
  CalibrationReport calibration;
  std::vector<FoldReport> folds;
  // Of the f32 outputs before and after folding, relative to their spread: measured, and allowed.
  double fold_difference = 0, fold_tolerance = 0;
  VerificationResult verification;
  std::vector<SliceReport> slices;           // measured where the whole set passed
  std::vector<VerificationResult> attempts;  // before fallback, oldest first
  std::vector<CandidateReport> candidates;   // of a search: predicted, then measured
  std::vector<RungReport> rungs;             // recipes tried before this one, in order
  std::string labelled_set, labelled_hash;
  std::vector<TaskReport> tasks;
  std::vector<LayerReport> layers;
  std::vector<StageReport> stages;
  std::string assay_version;
};
// Whether a figure keeps to the budget's part of the reference's.
bool Recovers(const TaskReport& task, const Budget& budget);
nlohmann::json ToJson(const AdmissionReport& report);
absl::StatusOr<AdmissionReport> ReportFromJson(
    const nlohmann::json& json);  // DataLoss names the key
nlohmann::json ToJson(const RungReport& rung);
absl::StatusOr<RungReport> RungFromJson(const nlohmann::json& json);  // DataLoss names the key
// What most of the weights really are, by bytes at f32: "int8_channel/a16". The recipe's words
// before there are layers. The fallback may have widened activations, so the recipe does not tell.
std::string ServedPrecision(const AdmissionReport& report);
// Verdict first; plain ASCII/UTF-8, no colour codes. Lines are at most max(columns, 80) wide.
std::string ToTerminalText(const AdmissionReport& report, int columns);

// The report as one self-contained HTML page (report_page.html with the JSON inside): for the
// person who decides whether to trust the model. Loads nothing; what a checkpoint names stays text.
std::string ToHtml(const AdmissionReport& report);

}  // namespace assay
