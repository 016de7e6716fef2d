// One admission and its stages (design.md section 5). Internal to engine/lifecycle and its tests.
// Everything here runs on the admission thread.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "engine/lifecycle/admission.h"
#include "engine/lifecycle/artifact_cache.h"
#include "engine/lifecycle/calibrate_keys.h"
#include "engine/lifecycle/calibration_set.h"
#include "engine/lifecycle/evaluation.h"
#include "engine/lifecycle/input_profile.h"
#include "engine/lifecycle/layer_source.h"
#include "engine/lifecycle/plan_search.h"
#include "engine/lifecycle/verifier.h"
#include "quant/activation.h"
#include "quant/linear_parts.h"
#include "quant/methods/rounding.h"
#include "quant/methods/sensitivity.h"
#include "quant/methods/transform_list.h"

namespace assay {

// What tests reach for: nothing in the product sets these.
struct AdmissionHooks {
  // Between quantization and everything that looks at its result.
  std::function<void(const LinearSlot& slot, QuantizedTensor& tensor)> after_quantize;
  // The built candidate may be replaced by one that misbehaves.
  std::function<std::shared_ptr<const Model>(std::shared_ptr<const Model>)> candidate;
  // What goes into service may be another model than was proven: memory that went bad.
  std::function<std::shared_ptr<const Model>(std::shared_ptr<const Model>)> served;
  // The folded checkpoint may be replaced by one that lacks a part of a fold.
  std::function<std::unique_ptr<const Checkpoint>(std::unique_ptr<const Checkpoint>)> folded;
  std::optional<std::string> host_isa;       // instead of CpuInfo::isa() in certificates
  std::optional<EvaluationSize> evaluation;  // instead of the default size
  const CudaWorld* cuda = nullptr;           // of the server: instead of the driver's
};

// What an admission works with; all of it outlives the admission.
struct AdmissionHost {
  ModelRegistry& registry;
  ThreadPool& pool;
  Metrics& metrics;
  const Clock& clock;
  const AdmissionOptions& options;
  const AdmissionHooks& hooks;
  ArtifactCache& cache;
};

struct Admission {
  AdmissionHost host;
  AdmissionRequest request;  // name and version are final
  // Of the recipes that the decision names (ladder.h).
  std::optional<size_t> rung;
  bool remembered = false;  // the rung is that of an earlier admission
  absl::Time climb_began;   // of the first attempt
  // Shown to whoever watches. Unavailable: the server is shutting down, and the stage ends here.
  std::function<absl::Status(double fraction, const std::string& message)> progress;

  // Open
  std::shared_ptr<const Checkpoint> checkpoint;
  const ModelFamily* family = nullptr;
  ModelSpec spec;
  std::vector<LinearSlot> slots;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<ModelMetrics> metrics;
  // Profile
  const ModelBackend* backend = &CpuBackend();
  GpuMemory gpu_memory;  // of models that a GPU serves
  Plan plan;
  const Rounding* rounding = nullptr;
  std::vector<TransformSpec> transforms;
  EvaluationSet evaluation;
  EvaluationSet long_context;  // of decoders whose KV cache is quantized; else empty
  // LookUp
  std::string artifact_key, certificate_key;
  std::unique_ptr<ArtifactReader> stored;
  std::unique_ptr<ArtifactWriter> writer;
  bool certified = false;
  // Search
  std::optional<SearchTable> search;
  PlanPoint chosen;  // of the search
  // Transform or Load
  std::vector<int8_t> stream_signs;           // of the stream's rotation; empty: none
  std::unique_ptr<const Checkpoint> rotated;  // null without it
  std::vector<Fold> folds;                    // one per group
  std::unique_ptr<const Checkpoint> folded;   // null without rotation and folds
  std::vector<std::vector<float>> proof;      // outputs of the model before it was folded
  // CalibrateKeys, Load
  KeyMeasures reference_keys;                         // on the evaluation text
  std::map<std::string, KeyParts, std::less<>> keys;  // by slot, of recipes that want them
  // Load or Quantize
  bool scanned = false;        // the checkpoint holds no NaN
  CalibrationSet calibration;  // loaded on first use
  std::map<std::string, ActivationParams, std::less<>> activation_params;
  LinearMap linears;
  std::map<std::string, uint64_t> bytes_stored;  // by slot
  std::map<std::string, std::string> integrity;  // slot -> what its stored numbers show
  std::shared_ptr<const Model> candidate;
  // Reference, Verify, Tasks
  std::shared_ptr<const Model> reference;  // whole, where it is run many times; else null
  std::unique_ptr<Verifier> verifier, long_verifier;
  std::map<std::string, double> weight_sqnr, output_sqnr;  // dB
  std::map<std::string, InputSummary> inputs;              // by slot, as the candidate has them

  AdmissionReport report;
  std::string note;  // of the running stage
  size_t allocated_before = 0;

  Recipe& recipe() { return report.decision.recipe; }
  const Recipe& recipe() const { return report.decision.recipe; }
  // What is quantized and built from.
  const Checkpoint& weights() const { return folded != nullptr ? *folded : *checkpoint; }
  // Notes how much memory is held just now.
  void SamplePeak();
};

// Every stage leaves `admission` ready for the next one or returns why not: FailedPrecondition with
// report.verdict "rejected" when the model is at fault, ResourceExhausted when it does not fit,
// anything else when the admission failed.
struct AdmissionStage {
  const char* name;
  absl::Status (*run)(Admission& admission);
  bool (*wanted)(const Admission& admission);
};
std::span<const AdmissionStage> AdmissionStages();

// admission_open.cc
absl::Status OpenStage(Admission& admission);
absl::Status ProfileStage(Admission& admission);
// admission_place.cc
bool Matches(const std::string& glob, const LinearSlot& slot);
// Of the checkpoint that are in no slot: norms, position tables, biases.
uint64_t OtherElements(const Admission& admission);
inline bool HasIntegerKv(const Recipe& recipe) {
  return recipe.kv_dtype == DType::kI8 || recipe.kv_dtype == DType::kU4;
}
inline bool OnGpu(const Admission& a) { return a.backend->device().kind() == DeviceKind::kCuda; }
// The policy's choice of recipe and device, unless the request brings its own recipe. A GPU that
// cannot run what was chosen, or has no room, is passed over, with the reason in the trace.
// ResourceExhausted (rejected): an earlier version serves on a GPU, and none has room for this one.
absl::Status PlaceModel(Admission& admission);
// The admission ends here: there is no memory.
absl::Status RejectSize(Admission& admission, const std::string& reason);
// admission_memory.cc
// ResourceExhausted: the GPU of the chosen backend has no room. Frees versions there that are only
// kept for a rollback.
absl::Status FitsGpu(const Admission& admission);
// ResourceExhausted (rejected): it does not fit into the memory of the host.
absl::Status CheckFits(Admission& admission);
// Once the candidate is built: what is left for keys and values. ResourceExhausted (rejected).
absl::Status PlanGpu(Admission& admission);
// admission_ranges.cc
absl::Status DisableLevelStage(Admission& admission);
// The linear layers that are still quantized, in pieces that share an input, highest range_parm
// first (quant/methods/sensitivity.h).
absl::StatusOr<std::vector<LayerScore>> RankByRange(Admission& admission);
// admission_transform.cc
absl::Status TransformStage(Admission& admission);
// Whether any of the recipe's transforms is fitted to calibration data.
bool FitsTransforms(const Admission& admission);
// The folded model in f32 is the original: measures both. Rejects.
absl::Status ProveFolds(Admission& admission);
// The scales of a slot's folds travel with its weight, the signs of a rotation with the embedding:
// into the tensor, and from the artifact.
absl::Status WriteFolds(const Admission& admission, const LinearSlot& slot,
                        QuantizedTensor& tensor);
absl::Status ReadFolds(Admission& admission);  // DataLoss
// admission_weights.cc
absl::Status LookUpStage(Admission& admission);
absl::Status LoadStage(Admission& admission);
absl::Status CalibrateKeysStage(Admission& admission);
bool NeedsKeys(const Admission& admission);  // that stage is to run
KvFormat KvFormatOf(const Recipe& recipe);
absl::Status QuantizeStage(Admission& admission);
absl::Status StoreStage(Admission& admission);
// From now on the artifact is one of this budget: a fallback or a search decides by it.
void UseBudgetKey(Admission& admission);
// admission_verify.cc
absl::Status ReferenceStage(Admission& admission);
absl::Status VerifyStage(Admission& admission);
absl::Status FallBackStage(Admission& admission);
absl::Status TasksStage(Admission& admission);
// admission_stages.cc
absl::Status WarmStage(Admission& admission);
absl::Status PublishStage(Admission& admission);

// What is known about a slot's input, and how long its rounding may take. Without statistics,
// methods that need them round to nearest.
struct SlotInput {
  const InputStatistics* statistics = nullptr;
  absl::Time deadline = absl::InfiniteFuture();
};
// Rejects a checkpoint with NaN or infinity outside of the slots' weights (in them too where
// calibration runs the model).
absl::Status ScanCheckpoint(Admission& admission);
// Quantizes one slot as the plan says, hands it to the writer and packs it. FailedPrecondition: the
// checkpoint's numbers cannot be quantized, or the calibration data is too little for the method.
absl::Status QuantizeSlot(Admission& admission, const LinearSlot& slot, const SlotInput& input);
// Every slot as the plan says, with calibration where the recipe needs it.
absl::Status QuantizeSlots(Admission& admission);

// admission_calibrate.cc
// Whether the recipe's rounding method, other than nearest, finds the slot's codes.
bool RoundedByMethod(const Admission& admission, const LinearSlot& slot);
bool FeedsErrorsBack(const Admission& admission);  // GPTQ
bool NeedsCalibration(const Admission& admission);
// The model in f32, to be read layer by layer.
StreamedLayers ReferenceLayers(const Admission& admission);
// Rejects where reading it found NaN or infinity.
absl::Status RejectDefect(Admission& admission, absl::Status status);
// All of it at once, for who runs it many times.
absl::Status MakeReference(Admission& admission);
// Of live requests where the request brings some, else of the recipe's file. Status codes of
// LoadCalibrationSet.
absl::StatusOr<CalibrationSet> ReadCalibration(const Admission& admission,
                                               const CalibrationSize& size);
// For messages that quote what was calibrated with; null: it is users' own.
inline const Tokenizer* Quoting(const Admission& admission) {
  return admission.request.traffic.empty() ? admission.tokenizer.get() : nullptr;
}
// Once: the calibration set. InvalidArgument: too small; FailedPrecondition: it shares text with
// the evaluation set; status codes of LoadCalibrationSet.
absl::Status LoadCalibration(Admission& admission);
// InvalidArgument: the weight holds NaN or infinity.
absl::StatusOr<QuantizedTensor> QuantizeWeight(Admission& admission, const LinearSlot& slot,
                                               const Tensor& weight, const SlotInput& input);
// GPTQ moves single weights far from where they were, so its codes are judged by what they are for:
// on the calibration inputs the layer's output must lie closer to the original's than with codes
// rounded to nearest. Empty, or what is wrong. `weight` [n, k] f32 is what `q` was made from.
absl::StatusOr<std::string> FeedbackDefect(Admission& admission, const LinearSlot& slot,
                                           TensorView weight, const QuantizedTensor& q,
                                           const InputStatistics& input);
// Calls `slot_done` after each slot.
absl::Status QuantizeWithCalibration(Admission& admission,
                                     const std::function<absl::Status()>& slot_done);

// admission_search.cc
// Chooses a candidate of the recipe's for every layer. FailedPrecondition (rejected): no choice
// keeps to the limits.
absl::Status SearchStage(Admission& admission);
// Whether the search may choose for this slot: it is multiplied, and the recipe does not keep it.
bool HasChoice(const Admission& admission, const LinearSlot& slot);
// After a measurement: remembers it, and, while it failed the gate, chooses again with what was
// learnt about the predictions. False: there is nothing better to try.
void NoteMeasuredPlan(Admission& admission);
absl::StatusOr<bool> ChooseAgain(Admission& admission);

// Whether the weights are still to be quantized.
bool NeedsWeights(const Admission& admission);
absl::Status BuildCandidate(Admission& admission);
// Sets the verdict and the reason; FailedPrecondition.
absl::Status Reject(Admission& admission, const std::string& reason);
// Fills report.layers, bytes and fallback_fraction from plan, linears and measurements.
void DescribeLayers(Admission& admission);
std::string CertificateKey(const Admission& admission);

// AdmissionPipeline::Start with hooks.
std::unique_ptr<AdmissionPipeline> StartAdmissionPipeline(ModelRegistry& registry, ThreadPool& pool,
                                                          Metrics& metrics, const Clock& clock,
                                                          AdmissionOptions options,
                                                          AdmissionHooks hooks);

}  // namespace assay
