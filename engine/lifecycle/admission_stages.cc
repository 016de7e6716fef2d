#include "engine/lifecycle/admission_stages.h"

#include <algorithm>
#include <array>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace assay {
namespace {

constexpr int kMaxBucket = 64;  // sequences of one warm-up step

bool Always(const Admission&) { return true; }
bool HasArtifact(const Admission& a) { return a.stored != nullptr; }
bool LeavesTheChoice(const Admission& a) {
  return NeedsWeights(a) && !a.recipe().search.candidates.empty();
}
bool DisablesLayers(const Admission& a) { return NeedsWeights(a) && a.recipe().disable_level > 0; }
bool NeedsTransforms(const Admission& a) { return NeedsWeights(a) && !a.transforms.empty(); }
bool NeedsProof(const Admission& a) { return !a.certified; }
bool FailedTheGate(const Admission& a) {
  return !a.certified && !a.report.verification.failures.empty();
}
bool IsWorthStoring(const Admission& a) { return a.host.cache.enabled() && !a.certified; }
bool HasLabelledData(const Admission& a) { return !a.request.labelled.empty(); }
bool WillServe(const Admission& a) { return !a.request.dry_run; }

std::vector<std::pair<std::string, int>> LayersByPrecision(const AdmissionReport& report) {
  std::map<std::string, int> counts;
  for (const LayerReport& layer : report.layers) ++counts[layer.scheme];
  return {counts.begin(), counts.end()};
}

void PublishMetrics(const Servable& servable, const Admission& a) {
  const AdmissionReport& report = servable.report;
  ModelMetrics& metrics = *servable.metrics;
  metrics.SetInfo(report.source_format, report.decision.recipe.scheme, report.decision.device);
  metrics.SetMemory(MemoryKind::kWeights, static_cast<double>(report.bytes));
  metrics.SetMemory(MemoryKind::kReference, 0);
  if (servable.generate != nullptr) {
    metrics.SetMemory(MemoryKind::kKv, static_cast<double>(servable.generate->kv_bytes()));
    metrics.SetMemory(MemoryKind::kWorkspace,
                      static_cast<double>(servable.generate->scratch_bytes()));
  } else {
    metrics.SetMemory(MemoryKind::kWorkspace,
                      static_cast<double>(servable.encode->scratch_bytes()));
  }
  metrics.SetQuantization(LayersByPrecision(report), report.bytes == 0
                                                         ? 1
                                                         : static_cast<double>(report.bytes_f32) /
                                                               static_cast<double>(report.bytes));
  const VerificationResult& v = report.verification;
  if (report.task == "generate") {
    metrics.SetAccuracyLoss("mean_kl", v.mean_kl.mean);
    metrics.SetAccuracyLoss("top1_loss", 1 - v.top1_agreement.mean);
    metrics.SetAccuracyLoss("ppl_ratio", v.perplexity_ratio);
  } else {
    metrics.SetAccuracyLoss("cosine_loss", 1 - v.cosine.mean);
  }
  absl::Duration total;
  for (const StageReport& stage : report.stages) total += stage.elapsed;
  metrics.Loaded(a.report.artifact_cache_hit ? "artifact_cache" : "quantize", total);
}

std::string AdmittedReason(const Admission& a) {
  const AdmissionReport& report = a.report;
  const VerificationResult& v = report.verification;
  const std::string subject = absl::StrCat(ServedPrecision(report), ": ");
  switch (a.spec.task) {
    case ModelTask::kGenerate:
      return absl::StrFormat("%smean KL %.5f nats of %.4g allowed, top-1 agreement %.2f %%",
                             subject, v.mean_kl.mean, report.decision.budget.max_mean_kl,
                             100 * v.top1_agreement.mean);
    case ModelTask::kEmbed:
      return absl::StrFormat("%smean cosine %.6f, at least %.4g asked", subject, v.cosine.mean,
                             report.decision.budget.min_mean_cosine);
    case ModelTask::kClassify:
      return absl::StrFormat("%ssame label for %.2f %% of the texts", subject,
                             100 * v.label_agreement);
  }
  return subject;
}

}  // namespace

bool NeedsKeys(const Admission& a) {
  const Recipe& recipe = a.recipe();
  return a.candidate == nullptr && a.spec.task == ModelTask::kGenerate &&
         (recipe.kv_key_channels || recipe.int8_scores);
}

KvFormat KvFormatOf(const Recipe& recipe) {
  return {recipe.kv_dtype, recipe.kv_window, recipe.kv_sinks};
}

bool NeedsWeights(const Admission& a) { return a.candidate == nullptr; }

std::span<const AdmissionStage> AdmissionStages() {
  static constexpr std::array<AdmissionStage, 16> kStages = {{
      {"open", OpenStage, Always},
      {"profile", ProfileStage, Always},
      {"look_up", LookUpStage, Always},
      {"load", LoadStage, HasArtifact},
      {"disable_level", DisableLevelStage, DisablesLayers},
      {"search", SearchStage, LeavesTheChoice},
      {"transform", TransformStage, NeedsTransforms},
      {"calibrate_keys", CalibrateKeysStage, NeedsKeys},
      {"reference", ReferenceStage, NeedsProof},
      {"quantize", QuantizeStage, NeedsWeights},
      {"verify", VerifyStage, NeedsProof},
      {"fall_back", FallBackStage, FailedTheGate},
      {"tasks", TasksStage, HasLabelledData},
      {"store", StoreStage, IsWorthStoring},
      {"warm", WarmStage, WillServe},
      {"publish", PublishStage, Always},
  }};
  return kStages;
}

void Admission::SamplePeak() {
  const size_t now = CpuDevice().allocated_bytes();
  const size_t ours = now - std::min(now, allocated_before);
  report.measured_peak_bytes = std::max<uint64_t>(report.measured_peak_bytes, ours);
}

absl::Status Reject(Admission& a, const std::string& reason) {
  a.report.verdict = "rejected";
  a.report.reason = reason;
  if (a.report.verification.defects.empty() && reason.rfind("defect", 0) == 0) {
    a.report.verification.defects.push_back(reason);
  }
  return absl::FailedPreconditionError(reason);
}

void DescribeLayers(Admission& a) {
  AdmissionReport& report = a.report;
  report.layers.clear();
  report.bytes = a.candidate == nullptr ? 0 : a.candidate->other_weight_bytes();
  report.bytes_stored = report.bytes;
  int linear_layers = 0, fallbacks = 0;
  const auto value = [](const std::map<std::string, double>& values, const std::string& name,
                        double otherwise) {
    const auto it = values.find(name);
    return it == values.end() ? otherwise : it->second;
  };
  for (const LinearSlot& slot : a.slots) {
    const auto linear = a.linears.find(slot.name);
    if (linear == a.linears.end()) continue;
    const SlotPlan& plan = a.plan.find(slot.name)->second;
    LayerReport layer{.name = slot.name,
                      .scheme = plan.scheme,
                      .activation = std::string(Name(plan.activation)),
                      .kernel = std::string(linear->second->kernel()),
                      .n = slot.shape[0],
                      .k = slot.shape[1],
                      .bytes = linear->second->bytes(),
                      .bytes_f32 = static_cast<uint64_t>(slot.shape.elements()) * 4,
                      .bytes_stored = a.bytes_stored[slot.name],
                      .kl_contribution = plan.kl_contribution,
                      .fallback = plan.fallback,
                      .rotates_input = linear->second->rotates_input(),
                      .low_rank = linear->second->low_rank(),
                      .why = plan.why};
    if (const KeyParts* keys = linear->second->keys(); keys != nullptr) {
      layer.key_channels = !keys->scale.empty();
      layer.int8_scores = keys->int8_scores;
    }
    if (const auto input = a.inputs.find(slot.name); input != a.inputs.end()) {
      layer.input_absmax = input->second.absmax;
      layer.input_saturation = input->second.saturation;
      layer.input_outliers = input->second.outliers;
    }
    layer.weight_sqnr_db = value(a.weight_sqnr, slot.name, 0);
    layer.output_sqnr_db = value(a.output_sqnr, slot.name, layer.weight_sqnr_db);
    if (!linear->second->refusals().empty()) {
      absl::StrAppend(&layer.why, "; not ", absl::StrJoin(linear->second->refusals(), "; not "));
    }
    report.bytes += layer.bytes;
    report.bytes_stored += layer.bytes_stored;
    linear_layers += slot.kind != LinearSlot::Kind::kEmbedding ? 1 : 0;
    fallbacks += plan.fallback ? 1 : 0;
    report.layers.push_back(std::move(layer));
  }
  report.fallback_fraction =
      linear_layers == 0 ? 0 : static_cast<double>(fallbacks) / linear_layers;
}

namespace {

// Decode steps, or batches of the shortest texts, of 1, 2, 4, ... sequences. Returns how many.
absl::StatusOr<int> WarmBuckets(Admission& a, int sequences) {
  ASSIGN_OR_RETURN(ModelPass pass, ModelPass::Create(*a.candidate,
                                                     {.sequences = sequences,
                                                      .context = 1,
                                                      .rows = sequences,
                                                      .out_rows = sequences,
                                                      // Rows in 16 bit have nothing to warm.
                                                      .kv_format = a.recipe().kv_dtype},
                                                     a.host.pool));
  a.SamplePeak();
  const int32_t token = 0;
  int steps = 0;
  for (int bucket = 1; bucket <= sequences; bucket *= 2, ++steps) {
    std::vector<ModelPass::Span> spans;
    spans.reserve(static_cast<size_t>(bucket));
    for (int i = 0; i < bucket; ++i)
      spans.push_back({i, 0, std::span(&token, 1), OnGpu(a) ? 0 : INT32_MAX});
    RETURN_IF_ERROR(pass.Forward(spans).status());
    RETURN_IF_ERROR(a.progress(static_cast<double>(bucket) / (2 * sequences),
                               absl::StrCat("batch of ", bucket)));
  }
  return steps;
}

// One sequence of as many tokens.
absl::Status WarmChunk(Admission& a, int tokens) {
  ASSIGN_OR_RETURN(ModelPass pass, ModelPass::Create(*a.candidate,
                                                     {.sequences = 1,
                                                      .context = tokens,
                                                      .rows = tokens,
                                                      .out_rows = 1,
                                                      .kv_format = a.recipe().kv_dtype},
                                                     a.host.pool));
  a.SamplePeak();
  const std::vector<int32_t> prompt(static_cast<size_t>(tokens), 0);
  const ModelPass::Span prefill{0, 0, prompt};
  const bool decoder = a.spec.task == ModelTask::kGenerate;
  return pass.Forward(std::span(&prefill, 1), /*logits=*/!decoder).status();
}

}  // namespace

absl::Status WarmStage(Admission& a) {
  a.long_verifier.reset();
  a.verifier.reset();  // the reference has done its work; the engine gets its memory
  a.reference.reset();
  if (OnGpu(a)) RETURN_IF_ERROR(PlanGpu(a));
  const bool decoder = a.spec.task == ModelTask::kGenerate;
  const EngineOptions& engine = a.host.options.engine;
  const int sequences =
      decoder ? std::min(kMaxBucket, engine.max_sequences) : std::min(16, kMaxBucket);
  const int step = std::min(decoder ? engine.max_step_tokens : engine.max_batch_tokens,
                            std::max(a.spec.max_context, 1));
  const int chunk = std::min(step, 256);
  ASSIGN_OR_RETURN(const int steps, WarmBuckets(a, sequences));
  RETURN_IF_ERROR(WarmChunk(a, chunk));
  a.note = absl::StrCat(steps, " batch sizes up to ", sequences, ", one chunk of ", chunk);
  return absl::OkStatus();
}

absl::Status PublishStage(Admission& a) {
  a.report.verdict = "admitted";
  a.report.reason = AdmittedReason(a);
  if (a.report.layers.empty() || a.certified) {
    // Precision and kernels as they are now; the measurements are those of the certificate.
    for (const LayerReport& layer : a.report.layers) {
      a.weight_sqnr[layer.name] = layer.weight_sqnr_db;
      a.output_sqnr[layer.name] = layer.output_sqnr_db;
      a.inputs[layer.name] = {.absmax = layer.input_absmax,
                              .saturation = layer.input_saturation,
                              .outliers = layer.input_outliers};
    }
    DescribeLayers(a);
  }
  if (a.request.dry_run) return absl::OkStatus();
  if (a.host.hooks.served) a.candidate = a.host.hooks.served(std::move(a.candidate));
  auto servable = std::make_shared<Servable>();
  servable->name = a.request.name;
  servable->version = a.request.version;
  servable->spec = a.spec;
  servable->model = a.candidate;
  servable->tokenizer = a.tokenizer;
  servable->metrics = a.metrics;
  EngineOptions options = a.host.options.engine;
  options.kv_format = KvFormatOf(a.recipe());
  if (OnGpu(a)) options.kv_bytes = a.gpu_memory.kv;
  DriftMonitor* drift = a.host.options.drift;
  const EngineHost host{
      a.host.pool, a.host.clock, a.metrics,
      drift == nullptr ? nullptr : drift->Watch(a.report, a.spec.task, a.checkpoint)};
  if (a.spec.task == ModelTask::kGenerate) {
    ASSIGN_OR_RETURN(servable->generate,
                     GenerateEngine::Start(a.candidate, a.tokenizer, options, host));
  } else {
    ASSIGN_OR_RETURN(servable->encode, EncodeEngine::Start(a.candidate, options, host));
  }
  a.SamplePeak();
  servable->report = a.report;
  PublishMetrics(*servable, a);
  a.candidate.reset();
  a.linears.clear();
  if (a.request.canary_share > 0) {
    return a.host.registry.PublishCanary(std::move(servable), a.request.canary_share);
  }
  a.host.registry.Publish(std::move(servable), a.request.instead_of);
  return absl::OkStatus();
}

}  // namespace assay
