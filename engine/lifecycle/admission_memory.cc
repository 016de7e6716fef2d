// Profile, second part: whether a model fits, on the host and on its GPU.
#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/lifecycle/document_streams.h"
#include "engine/lifecycle/memory_model.h"
#include "engine/model/cuda/scratch_bound.h"
#include "engine/runtime/kv_cache.h"
#include "quant/kernels/cuda/cuda_encode.h"

namespace assay {
namespace {

constexpr char kNeeded[] = "its memory is needed by an admission";
// Where the configuration does not say how long a sequence may be, a GPU that has no room for one
// of so many tokens is too small.
constexpr int kLeastContext = 2048;

EvaluationSize EvaluationOf(const Admission& a) {
  return a.host.hooks.evaluation.value_or(EvaluationSize{});
}

MemoryEstimate MemoryOf(const Admission& a, bool calibrated) {
  EngineOptions engine = a.host.options.engine;
  engine.kv_format = KvFormatOf(a.recipe());
  return EstimateMemory({.spec = a.spec,
                         .slots = a.slots,
                         .plan = a.plan,
                         .other_bytes = OtherElements(a) * 4,
                         .engine = engine,
                         .on_gpu = OnGpu(a),
                         .serves = !a.request.dry_run,
                         .calibrated = calibrated,
                         .long_context = HasIntegerKv(a.recipe()),
                         .evaluation = EvaluationOf(a)});
}

uint64_t AvailableBytes(const AdmissionOptions& options) {
  const uint64_t free = CpuDevice().free_bytes();
  if (options.memory_limit_bytes == 0) return free;
  const uint64_t used = CpuDevice().allocated_bytes();
  return std::min(free, options.memory_limit_bytes - std::min(options.memory_limit_bytes, used));
}

int ContextOf(const Admission& a) {
  const int most = a.host.options.engine.max_context;
  return most > 0 ? std::min(most, a.spec.max_context) : a.spec.max_context;
}

// Scratch of a pass on the GPU: of the candidate, or what it may be at most.
using ScratchOf = std::function<uint64_t(const ScratchRows& rows)>;

// What the engine and drift take, and the proof of a candidate.
void AddPasses(const Admission& a, const ScratchOf& scratch, GpuMemoryInputs& in) {
  const EngineOptions& engine = a.host.options.engine;
  const EvaluationSize evaluation = EvaluationOf(a);
  const DriftMonitor* const drift = a.host.options.drift;
  const auto compared =
      drift == nullptr ? 0 : static_cast<int64_t>(drift->options().sampler.max_tokens);
  const bool watched = drift != nullptr && drift->options().sampler.rate > 0;
  const auto tuning = static_cast<const GpuBackend*>(a.backend)->has_cublas_lt();
  // While weights go up: two slots of what is quantized, and operands that are timed.
  const uint64_t weights_pass =
      std::max<uint64_t>(tuning ? TuningBound(a.slots) : 0, 2 * kEncodeSlotBytes);
  if (a.spec.task != ModelTask::kGenerate) {
    in.scratch = scratch({engine.max_batch_tokens, engine.max_sequences});
    if (watched) in.comparisons = scratch({std::min<int64_t>(compared, a.spec.max_context), 1});
    const int64_t sentence = std::min(evaluation.sentence_tokens, a.spec.max_context);
    in.admission =
        std::max(weights_pass, scratch({kEncoderSequences * sentence, int64_t{kEncoderSequences}}));
    return;
  }
  in.scratch = scratch({engine.max_step_tokens,
                        std::min(engine.max_sequences, engine.max_step_tokens), in.context_tokens});
  const auto keys = [&](int64_t tokens) {
    return in.token_bytes * static_cast<uint64_t>(KvCache::BlocksFor(tokens)) *
           KvCache::kBlockTokens;
  };
  if (watched) {
    const int64_t tokens = std::min<int64_t>(compared, ContextOf(a));
    in.comparisons = scratch({kChunkRows, drift->options().max_positions, tokens}) + keys(tokens);
  }
  const int64_t longest = std::min(
      HasIntegerKv(a.recipe()) ? evaluation.long_window : evaluation.window, a.spec.max_context);
  // Decode steps are compared between two passes.
  in.admission = std::max(weights_pass, 2 * scratch({kChunkRows, kChunkRows, longest}) +
                                            keys(longest) + 2 * keys(kChunkRows));
}

GpuMemoryInputs GpuInputs(const Admission& a, const ScratchOf& scratch) {
  const EngineOptions& engine = a.host.options.engine;
  const auto& device = static_cast<const CudaDevice&>(a.backend->device());
  GpuMemoryInputs in = {.free = device.free_bytes(),
                        .total = device.properties().memory_bytes,
                        .wanted_kv = a.host.options.gpu_kv_bytes};
  if (a.spec.task == ModelTask::kGenerate) {
    const KvPool::Layout layout = {.layers = a.spec.layers,
                                   .kv_heads = a.spec.kv_heads,
                                   .head_dim = a.spec.head_dim,
                                   .dtype = a.recipe().kv_dtype,
                                   .on_gpu = true};
    in.token_bytes = layout.block_bytes() / KvPool::kBlockTokens;
    in.context_tokens = KvCache::BlocksFor(ContextOf(a)) * int64_t{KvCache::kBlockTokens};
    in.useful_tokens = in.context_tokens * std::min(engine.max_sequences, engine.max_step_tokens);
    // Asked for: a context must be there whole, of a cache its bound holds.
    in.least_tokens = engine.max_context > 0 ? in.context_tokens
                      : a.host.options.gpu_kv_bytes > 0
                          ? int64_t{KvCache::kBlockTokens}
                          : std::min<int64_t>(in.context_tokens, kLeastContext);
  }
  AddPasses(a, scratch, in);
  return in;
}

}  // namespace

absl::Status FitsGpu(const Admission& a) {
  const uint64_t weights = MemoryOf(a, /*calibrated=*/false).weights;  // the same either way
  const auto fits = [&] {
    GpuMemoryInputs in =
        GpuInputs(a, [&](const ScratchRows& rows) { return ScratchBound(a.spec, a.slots, rows); });
    in.weights = weights;
    const absl::Status room = RoomForAdmission(in);
    return room.ok() ? PlanGpuMemory(in).status() : room;
  };
  absl::Status status = fits();
  // What is only kept for a rollback makes room.
  while (!status.ok() && a.host.registry.RetirePrevious(a.backend->device().name(), kNeeded))
    status = fits();
  return status;
}

absl::Status CheckFits(Admission& a) {
  const MemoryEstimate estimate = MemoryOf(a, NeedsCalibration(a));
  a.report.estimated_peak_bytes = estimate.peak;
  uint64_t available = AvailableBytes(a.host.options);
  while (a.report.estimated_peak_bytes > available &&
         a.host.registry.RetirePrevious(CpuDevice().name(), kNeeded)) {
    available = AvailableBytes(a.host.options);
  }
  if (a.report.estimated_peak_bytes <= available) return absl::OkStatus();
  return RejectSize(
      a, absl::StrFormat("does not fit: the admission needs up to %.1f MB, while it is at %s "
                         "(weights %.1f MB as %s, engine %.1f MB), %.1f MB are available",
                         estimate.peak / 1e6, estimate.moment, estimate.weights / 1e6,
                         a.recipe().scheme, estimate.engine / 1e6, available / 1e6));
}

absl::Status PlanGpu(Admission& a) {
  GpuMemoryInputs in = GpuInputs(a, [&](const ScratchRows& rows) {
    return a.candidate->scratch_bytes(rows.rows, rows.out_rows, rows.context_tokens);
  });
  in.weights = a.candidate->other_weight_bytes();
  for (const auto& [name, linear] : a.linears) in.weights += linear->bytes();
  in.free += in.weights;  // they lie there already
  const absl::StatusOr<GpuMemory> plan = PlanGpuMemory(in);
  if (!plan.ok()) return RejectSize(a, std::string(plan.status().message()));
  a.gpu_memory = *plan;
  a.report.decision.trace.push_back(
      absl::StrCat("memory of ", a.report.decision.device, ": ", a.gpu_memory.ToString()));
  return absl::OkStatus();
}

}  // namespace assay
