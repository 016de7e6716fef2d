// Where the quantized weights come from: the artifact cache, or the checkpoint, slot by slot.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/sha256.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/lifecycle/calibrate_keys.h"
#include "engine/lifecycle/slot_parts.h"

namespace assay {
namespace {

// Part of the artifact's key: bumped when the codes that a recipe gives change.
constexpr char kQuantizer[] = "assay-3";
// Rows of the checkpoint read at a time when looking for numbers that are not finite.
constexpr int64_t kScanElements = 1 << 20;

// What the codes depend on besides checkpoint and recipe. A file that cannot be read fails the
// quantization later, with its name.
std::string CalibrationKey(const Admission& a) {
  const bool fitted = NeedsCalibration(a) || FitsTransforms(a) || a.recipe().kv_key_channels ||
                      a.recipe().disable_level > 0 || a.recipe().fallback_by_range;
  if (!fitted && a.recipe().search.candidates.empty()) return "";
  const CalibrationRecipe& calibration = a.recipe().calibration;
  std::string content;
  if (!a.request.traffic.empty()) {
    content = Sha256Hex(a.request.traffic);
  } else if (!calibration.path.empty()) {
    const absl::StatusOr<std::shared_ptr<const MappedFile>> file =
        MappedFile::Open(calibration.path);
    content = file.ok() ? Sha256Hex({reinterpret_cast<const char*>((*file)->bytes().data()),
                                     (*file)->bytes().size()})
                        : calibration.path;
  } else {
    content = Sha256Hex(BundledCalibrationText());
  }
  return absl::StrCat(content, " ", calibration.samples, " ", calibration.window);
}

// Of a recipe's plan as it is written, or of what a budget made of it (a search, a fallback).
enum class KeyOf { kRecipe, kBudget };

std::string ArtifactKey(const Admission& a, KeyOf what) {
  nlohmann::json recipe = ToJson(a.report.decision.recipe);
  recipe.erase("name");
  recipe.erase("bits_per_weight");  // an estimate, not part of the result
  for (const char* engines : {"kv_dtype", "kv_window", "kv_sinks"}) recipe.erase(engines);
  recipe.erase("calibration");  // its content counts
  const std::string budget =
      what == KeyOf::kBudget ? ToJson(a.report.decision.budget).dump() : std::string();
  return Sha256Hex(absl::StrCat(a.report.source_hash, "\n", recipe.dump(), "\n", kQuantizer, "\n",
                                CalibrationKey(a), "\n", budget));
}

// The rest of the model: norms, biases, tables. NaN there poisons everything behind it.
absl::Status ScanTensor(Admission& a, const CheckpointTensor& tensor) {
  if (tensor.shape.rank == 0 || tensor.shape.elements() == 0) return absl::OkStatus();
  const int64_t columns = tensor.shape.elements() / tensor.shape[0];
  const int64_t step = std::max<int64_t>(1, kScanElements / std::max<int64_t>(columns, 1));
  std::vector<float> values;
  for (int64_t row = 0; row < tensor.shape[0]; row += step) {
    const int64_t rows = std::min(step, tensor.shape[0] - row);
    values.resize(static_cast<size_t>(rows * columns));
    // Integer tables (position ids) are not ours to read.
    const absl::Status read = a.checkpoint->ReadRows(tensor.name, row, rows, values);
    if (absl::IsUnimplemented(read)) return absl::OkStatus();
    RETURN_IF_ERROR(read);
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::isfinite(values[i])) continue;
      return Reject(
          a, absl::StrCat("defect in the checkpoint: ", tensor.name,
                          " holds NaN or infinity: row=", row + static_cast<int64_t>(i) / columns));
    }
  }
  return absl::OkStatus();
}

// What the stored numbers show beyond what a fresh rounding of the checkpoint shows too.
std::string IntegrityDefect(const QuantizedTensor& fresh_look, const IntegrityFinding& expected) {
  const IntegrityFinding found = fresh_look.scheme->Inspect(fresh_look);
  if (found.defect != expected.defect) return found.defect;
  constexpr double kTooManySaturated = 0.5;
  if (found.saturated_fraction > std::max(kTooManySaturated, 2 * expected.saturated_fraction)) {
    return absl::StrFormat("%.1f %% of the codes are at the ends of their range",
                           100 * found.saturated_fraction);
  }
  return "";
}

absl::Status Pack(Admission& a, const LinearSlot& slot, const QuantizedTensor& tensor) {
  ASSIGN_OR_RETURN(Tensor bias, ReadSlotBias(a.weights(), slot));
  ASSIGN_OR_RETURN(
      QuantizedLinear linear,
      a.backend->MakeLinear(tensor, std::move(bias), a.plan.find(slot.name)->second.activation));
  a.linears[slot.name] = std::make_shared<const QuantizedLinear>(std::move(linear));
  a.bytes_stored[slot.name] = tensor.bytes();
  return absl::OkStatus();
}

absl::Status LoadSlots(Admission& a) {
  RETURN_IF_ERROR(ReadFolds(a));  // biases and norms are rescaled too
  const ArtifactManifest& manifest = a.stored->manifest();
  for (size_t i = 0; i < a.slots.size(); ++i) {
    const LinearSlot& slot = a.slots[i];
    ASSIGN_OR_RETURN(const QuantizedTensor tensor, a.stored->Read(slot.name));
    ASSIGN_OR_RETURN(std::optional<KeyParts> keys, ReadKeyParts(tensor));
    if (keys.has_value()) a.keys[slot.name] = *std::move(keys);
    if (!(tensor.shape == slot.shape)) {
      return absl::DataLossError(absl::StrCat(slot.name, ": stored shape is ",
                                              ToString(tensor.shape), ", expected ",
                                              ToString(slot.shape)));
    }
    a.plan[slot.name] = manifest.slots.find(slot.name)->second.plan;
    absl::Status packed = Pack(a, slot, tensor);
    if (absl::IsInvalidArgument(packed)) packed = absl::DataLossError(packed.message());
    if (!packed.ok()) return Annotate(packed, slot.name);
    a.SamplePeak();
    RETURN_IF_ERROR(
        a.progress(static_cast<double>(i + 1) / static_cast<double>(a.slots.size()), slot.name));
  }
  return absl::OkStatus();
}

void MoveToQuarantine(Admission& a, const absl::Status& why) {
  a.host.metrics.ArtifactCache("corrupt");
  Log(LogLevel::kWarning, "cached artifact cannot be used, quantizing again",
      {{"model", a.request.name}, {"key", a.artifact_key}, {"error", why.ToString()}});
  const absl::Status moved = a.host.cache.Quarantine(a.artifact_key);
  if (!moved.ok()) {
    Log(LogLevel::kWarning, "cannot quarantine an artifact", {{"error", moved.ToString()}});
  }
}

// Takes over what an earlier admission measured; what belongs to this one stays.
void AdoptCertificate(Admission& a, AdmissionReport earlier) {
  earlier.model = a.report.model;
  earlier.version = a.report.version;
  earlier.source_path = a.report.source_path;
  earlier.hardware = a.report.hardware;
  earlier.decision = a.report.decision;
  earlier.estimated_peak_bytes = a.report.estimated_peak_bytes;
  earlier.measured_peak_bytes = a.report.measured_peak_bytes;
  earlier.stages = std::move(a.report.stages);
  earlier.artifact_cache_hit = true;
  earlier.certificate_hit = true;
  earlier.verdict.clear();  // set anew when this admission publishes
  a.report = std::move(earlier);
}

}  // namespace

absl::Status ScanCheckpoint(Admission& a) {
  if (a.scanned) return absl::OkStatus();
  std::set<std::string> in_slots;
  // Quantizing a slot looks at its weights; calibration multiplies by them before that.
  const bool searched = !a.recipe().search.candidates.empty();
  if (!NeedsCalibration(a) && a.transforms.empty() && !NeedsKeys(a) && !searched &&
      a.recipe().disable_level == 0) {
    for (const LinearSlot& slot : a.slots)
      in_slots.insert(slot.weights.begin(), slot.weights.end());
  }
  for (const CheckpointTensor& tensor : a.checkpoint->tensors()) {
    if (in_slots.contains(tensor.name)) continue;
    RETURN_IF_ERROR(ScanTensor(a, tensor));
    a.checkpoint->DropResident(tensor.name);
  }
  a.scanned = true;
  return absl::OkStatus();
}

absl::Status LookUpStage(Admission& a) {
  a.artifact_key = ArtifactKey(a, KeyOf::kBudget);
  if (!a.host.cache.enabled()) {
    a.note = "no cache directory";
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<ArtifactReader>> found = a.host.cache.Find(a.artifact_key);
  if (found.ok() && *found == nullptr && a.recipe().search.candidates.empty()) {
    a.artifact_key = ArtifactKey(a, KeyOf::kRecipe);
    found = a.host.cache.Find(a.artifact_key);
  }
  if (!found.ok()) {
    MoveToQuarantine(a, found.status());
    a.note = absl::StrCat("corrupt: ", found.status().message());
    return absl::OkStatus();
  }
  a.stored = *std::move(found);
  a.host.metrics.ArtifactCache(a.stored != nullptr ? "hit" : "miss");
  a.note = absl::StrCat(a.stored != nullptr ? "hit " : "miss ", a.artifact_key.substr(0, 12));
  return absl::OkStatus();
}

absl::Status LoadStage(Admission& a) {
  absl::Status loaded = LoadSlots(a);
  if (loaded.ok()) loaded = BuildCandidate(a);
  if (absl::IsDataLoss(loaded) || absl::IsNotFound(loaded)) {
    MoveToQuarantine(a, loaded);
    a.stored.reset();
    a.linears.clear();
    a.folds.clear();
    a.folded.reset();
    a.rotated.reset();
    a.stream_signs.clear();
    a.candidate.reset();
    a.note = absl::StrCat("corrupt, quantizing again: ", loaded.message());
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(loaded);
  a.report.artifact_cache_hit = true;
  a.report.artifact_hash = a.stored->manifest().artifact_hash;
  a.certificate_key = CertificateKey(a);
  std::optional<AdmissionReport> certificate =
      a.host.cache.FindCertificate(a.artifact_key, a.certificate_key);
  if (certificate.has_value()) {
    AdoptCertificate(a, *std::move(certificate));
    a.certified = true;
  }
  a.note = absl::StrCat(absl::StrFormat("%.1f MB, ", a.stored->manifest().weights_bytes / 1e6),
                        a.certified ? "certified for this host" : "to be verified on this host");
  return absl::OkStatus();
}

absl::Status QuantizeSlot(Admission& a, const LinearSlot& slot, const SlotInput& input) {
  const SlotPlan& plan = a.plan.find(slot.name)->second;
  ASSIGN_OR_RETURN(const QuantScheme* scheme, FindScheme(plan.scheme));
  RETURN_IF_ERROR(scheme->Accepts(slot.shape));
  ASSIGN_OR_RETURN(Tensor weight, ReadSlotWeight(a.weights(), slot));
  for (const std::string& name : slot.weights) a.checkpoint->DropResident(name);
  SlotParts parts;
  if (!scheme->is_floating()) {
    ASSIGN_OR_RETURN(parts, TakeParts(a.recipe(), slot, weight, a.host.pool));
  }
  absl::StatusOr<QuantizedTensor> encoded = QuantizeWeight(a, slot, weight, input);
  if (encoded.ok()) RETURN_IF_ERROR(WriteParts(std::move(parts), *encoded));
  a.SamplePeak();
  if (absl::IsInvalidArgument(encoded.status())) {
    return Reject(a, absl::StrCat("defect in ", slot.name, ": ", encoded.status().message(), " (",
                                  absl::StrJoin(slot.weights, ", "), ")"));
  }
  RETURN_IF_ERROR(encoded.status());
  if (const auto keys = a.keys.find(slot.name); keys != a.keys.end())
    RETURN_IF_ERROR(WriteKeyParts(keys->second, *encoded));
  std::string defect;
  if (a.host.hooks.after_quantize) {  // without it the two looks would be at the same numbers
    const IntegrityFinding expected = scheme->Inspect(*encoded);
    a.host.hooks.after_quantize(slot, *encoded);
    defect = IntegrityDefect(*encoded, expected);
  }
  if (defect.empty() && FeedsErrorsBack(a) && RoundedByMethod(a, slot) &&
      input.statistics != nullptr) {
    ASSIGN_OR_RETURN(defect, FeedbackDefect(a, slot, weight.view(), *encoded, *input.statistics));
  }
  weight = Tensor();
  if (!defect.empty()) a.integrity[slot.name] = defect;
  RETURN_IF_ERROR(WriteFolds(a, slot, *encoded));
  if (a.writer != nullptr) RETURN_IF_ERROR(a.writer->Add(slot.name, *encoded, plan));
  const absl::Status packed = Pack(a, slot, *encoded);
  if (!absl::IsInvalidArgument(packed) && !absl::IsDataLoss(packed)) return packed;
  // Codes that no kernel can read.
  a.report.verification.defects = {absl::StrCat(slot.name, ": ", packed.message())};
  return Reject(a, "defect in " + a.report.verification.defects.front());
}

namespace {

absl::Status QuantizeSlotOrDropWriter(Admission& a, const LinearSlot& slot) {
  absl::Status status = QuantizeSlot(a, slot, {});
  if (absl::IsResourceExhausted(status) && a.writer != nullptr) {  // the disk is full
    Log(LogLevel::kWarning, "cannot cache this artifact", {{"error", status.ToString()}});
    a.writer.reset();
    status = QuantizeSlot(a, slot, {});
  }
  return status.ok() || !a.report.verdict.empty() ? status : Annotate(status, slot.name);
}

}  // namespace

absl::Status QuantizeSlots(Admission& a) {
  size_t done = 0;
  const std::function<absl::Status()> slot_done = [&] {
    ++done;
    a.SamplePeak();
    return a.progress(static_cast<double>(done) / static_cast<double>(a.slots.size()),
                      absl::StrCat("layer ", done, " of ", a.slots.size()));
  };
  if (NeedsCalibration(a)) return QuantizeWithCalibration(a, slot_done);
  for (const LinearSlot& slot : a.slots) {
    RETURN_IF_ERROR(QuantizeSlotOrDropWriter(a, slot));
    RETURN_IF_ERROR(slot_done());
  }
  return absl::OkStatus();
}

absl::Status CalibrateKeysStage(Admission& a) {
  RETURN_IF_ERROR(ScanCheckpoint(a));
  RETURN_IF_ERROR(LoadCalibration(a));  // its checks and its report
  ASSIGN_OR_RETURN(const CalibrationSet set, ReadCalibration(a, kKeyCalibration));
  if (set.kind != CalibrationKind::kRandom)
    RETURN_IF_ERROR(CheckDisjoint(set, a.evaluation, Quoting(a)));
  const CalibrationRun run = {set, a.host.pool, [&a](double fraction) {
                                a.SamplePeak();
                                return a.progress(fraction, "keys of the KV cache");
                              }};
  ASSIGN_OR_RETURN(a.keys, CalibrateKeys(ReferenceLayers(a), run));
  for (auto& [name, keys] : a.keys) {
    keys.int8_scores = a.recipe().int8_scores;
    if (!a.recipe().kv_key_channels) keys.mean = keys.scale = {};
  }
  a.note = absl::StrCat(a.keys.size(), " layers, ", set.name);
  return absl::OkStatus();
}

absl::Status QuantizeStage(Admission& a) {
  RETURN_IF_ERROR(ScanCheckpoint(a));
  if (a.host.cache.enabled()) {
    absl::StatusOr<std::unique_ptr<ArtifactWriter>> writer =
        a.host.cache.NewArtifact(a.artifact_key);
    if (writer.ok()) {
      a.writer = *std::move(writer);
    } else {  // a cache that cannot be written costs time, not service
      Log(LogLevel::kWarning, "cannot cache artifacts", {{"error", writer.status().ToString()}});
    }
  }
  RETURN_IF_ERROR(QuantizeSlots(a));
  a.note = absl::StrCat(a.slots.size(), " layers from ",
                        absl::StrFormat("%.1f MB", a.checkpoint->file_bytes() / 1e6));
  if (NeedsCalibration(a)) {
    absl::StrAppend(&a.note, ", calibrated on ", a.report.calibration.tokens, " tokens");
  }
  return BuildCandidate(a);
}

absl::Status BuildCandidate(Admission& a) {
  ASSIGN_OR_RETURN(std::unique_ptr<const Model> model,
                   a.backend->Build(*a.family, a.spec, a.weights(), a.linears));
  a.candidate = std::move(model);
  if (a.host.hooks.candidate) a.candidate = a.host.hooks.candidate(std::move(a.candidate));
  a.SamplePeak();
  return absl::OkStatus();
}

// What the figures of a verification hold for. Any difference means: verify again.
std::string CertificateKey(const Admission& a) {
  nlohmann::json kernels = nlohmann::json::object();
  for (const auto& [name, linear] : a.linears) kernels[name] = std::string(linear->kernel());
  const Recipe& recipe = a.report.decision.recipe;
  const nlohmann::json what = {{"artifact", a.report.artifact_hash},
                               {"budget", ToJson(a.report.decision.budget)},
                               {"evaluation", a.evaluation.hash + a.long_context.hash},
                               {"kernels", kernels},
                               {"isa", a.host.hooks.host_isa.value_or(a.backend->fingerprint())},
                               {"kv_dtype", std::string(Name(recipe.kv_dtype))},
                               {"kv_window", recipe.kv_window},
                               {"kv_sinks", recipe.kv_sinks},
                               {"assay", ASSAY_VERSION}};
  return Sha256Hex(what.dump());
}

void UseBudgetKey(Admission& a) {
  a.artifact_key = ArtifactKey(a, KeyOf::kBudget);
  if (a.writer != nullptr) a.host.cache.Retarget(*a.writer, a.artifact_key);
}

absl::Status StoreStage(Admission& a) {
  absl::Status status;
  if (a.writer != nullptr) {
    for (const auto& [name, plan] : a.plan) RETURN_IF_ERROR(a.writer->SetPlan(name, plan));
    absl::StatusOr<std::string> hash =
        a.writer->Commit(a.artifact_key, a.report.source_hash, kQuantizer);
    a.writer.reset();
    status = hash.status();
    if (hash.ok()) a.report.artifact_hash = *hash;
  }
  if (status.ok()) {
    a.certificate_key = CertificateKey(a);
    AdmissionReport certificate = a.report;
    certificate.verdict = "admitted";
    certificate.reason.clear();
    certificate.labelled_set.clear();  // this request's own
    certificate.labelled_hash.clear();
    certificate.tasks.clear();
    status = a.host.cache.StoreCertificate(a.artifact_key, a.certificate_key, certificate);
  }
  if (!status.ok()) {  // serving does not depend on it
    Log(LogLevel::kWarning, "cannot store the artifact",
        {{"model", a.request.name}, {"error", status.ToString()}});
    a.note = absl::StrCat("not stored: ", status.message());
    return absl::OkStatus();
  }
  a.host.metrics.SetArtifactCacheBytes(static_cast<double>(a.host.cache.bytes()));
  a.note = absl::StrCat("artifact ", a.report.artifact_hash.substr(0, 12));
  return absl::OkStatus();
}

}  // namespace assay
