// The model of kernels_abi.h: the same CudaLlama that serves, with weights that no file has.
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "base/thread_pool.h"
#include "engine/model/cuda/cuda_llama.h"
#include "engine/model/families/llama_spec.h"
#include "tests/bench/cuda/kernels_abi.h"
#include "tests/bench/cuda/kernels_state.h"

namespace assay {
namespace {

// Norms of ones; nothing else.
class NormsOfOnes final : public Checkpoint {
 public:
  explicit NormsOfOnes(const ModelSpec& spec) {
    Add("model.norm.weight", spec.hidden);
    for (int i = 0; i < spec.layers; ++i) {
      Add(LlamaLayerPrefix(i) + "input_layernorm.weight", spec.hidden);
      Add(LlamaLayerPrefix(i) + "post_attention_layernorm.weight", spec.hidden);
    }
  }
  std::string_view format() const override { return "none"; }
  std::span<const CheckpointTensor> tensors() const override { return {}; }
  absl::StatusOr<const CheckpointTensor*> Find(std::string_view name) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return absl::NotFoundError(std::string(name));
    return &found->second;
  }
  absl::Status ReadRows(std::string_view, int64_t, int64_t, std::span<float> out) const override {
    std::fill(out.begin(), out.end(), 1.0f);
    return absl::OkStatus();
  }
  void DropResident(std::string_view) const override {}
  const nlohmann::json& config() const override { return json_; }
  const nlohmann::json& tokenizer() const override { return json_; }
  absl::StatusOr<std::string> ContentHash() const override {
    return absl::UnimplementedError("no file");
  }
  uint64_t file_bytes() const override { return 0; }

 private:
  void Add(const std::string& name, int width) {
    tensors_[name] = {name, Shape{width}, "f32", 4 * static_cast<uint64_t>(width)};
  }
  std::map<std::string, CheckpointTensor, std::less<>> tensors_;
  const nlohmann::json json_ = nlohmann::json::object();
};

ModelSpec SpecOf(const AssayModel& from) {
  ModelSpec spec;
  spec.family = "llama";
  spec.layers = from.layers;
  spec.hidden = from.hidden;
  spec.heads = from.heads;
  spec.kv_heads = from.kv_heads;
  spec.head_dim = from.head_dim;
  spec.ffn = from.ffn;
  spec.vocab = from.vocab;
  spec.max_context = from.max_context;
  spec.norm_eps = from.norm_eps;
  spec.rope_theta = from.rope_theta;
  for (int i = 0; i < from.head_dim / 2; ++i) {
    spec.rope_inv_freq.push_back(static_cast<float>(
        std::pow(static_cast<double>(from.rope_theta), -2.0 * i / from.head_dim)));
  }
  return spec;
}

absl::StatusOr<LinearMap> MakeLinears(const AssayModel& args, const ModelSpec& spec) {
  LinearMap linears;
  for (const LinearSlot& slot : LlamaSlots(spec)) {
    const bool table = slot.kind == LinearSlot::Kind::kEmbedding;
    const bool head = slot.kind == LinearSlot::Kind::kHead;
    ASSIGN_OR_RETURN(const LinearProblem problem,
                     ProblemOf(table  ? "int8_channel"
                               : head ? args.head_scheme
                                      : args.scheme,
                               table || head ? "a16" : args.activation,
                               static_cast<int>(slot.shape[0]), static_cast<int>(slot.shape[1])));
    ASSIGN_OR_RETURN(auto linear, QuantizedOnDevice(problem, args.weights));
    ASSIGN_OR_RETURN(QuantizedLinear quantized,
                     QuantizedLinear::Of(problem, *State().kernel, std::move(linear), Tensor()));
    linears[slot.name] = std::make_shared<const QuantizedLinear>(std::move(quantized));
  }
  return linears;
}

absl::StatusOr<std::unique_ptr<const Model>> MakeModel(const AssayModel& args) {
  const ModelSpec spec = SpecOf(args);
  ASSIGN_OR_RETURN(LinearMap linears, MakeLinears(args, spec));
  return BuildCudaLlama(State().Backend(), kOpsKernels, spec, NormsOfOnes(spec), std::move(linears),
                        {.decode_splits = args.splits, .pdl = args.pdl != 0});
}

class Pass {
 public:
  struct Size {
    int sequences, context, rows, kv_format;
  };
  static absl::StatusOr<std::unique_ptr<Pass>> Create(const Model& model, const Size& size) {
    std::unique_ptr<Pass> pass(new Pass(model, size));
    ASSIGN_OR_RETURN(pass->arena_,
                     Arena::Create(model.device(),
                                   model.scratch_bytes(size.rows, size.sequences, size.context)));
    const KvFormat format = size.kv_format == 1 ? DType::kI8 : DType::kF16;
    KvPool::Layout layout = model.kv_layout(format);
    layout.keys = nullptr;
    ASSIGN_OR_RETURN(KvPool kv, KvPool::Create(model.device(), layout,
                                               size.sequences * pass->BlocksPerSequence()));
    pass->kv_.emplace(std::move(kv));
    const size_t bytes = sizeof(float) * static_cast<size_t>(size.sequences) *
                         static_cast<size_t>(model.spec().vocab);
    ASSIGN_OR_RETURN(pass->logits_, BenchRuntime()->AllocatePinned(bytes));
    pass->blocks_.resize(static_cast<size_t>(size.sequences) *
                         static_cast<size_t>(pass->BlocksPerSequence()));
    std::iota(pass->blocks_.begin(), pass->blocks_.end(), 0);
    return pass;
  }
  ~Pass() {
    if (logits_ != nullptr) BenchRuntime()->FreePinned(logits_);
  }

  absl::StatusOr<const float*> Step(const AssayStep& step) {
    std::vector<SequenceSpan> sequences;
    std::vector<int32_t> logit_rows;
    int32_t row = 0;
    for (int i = 0; i < step.sequences; ++i) {
      const int32_t start = step.host_starts[i], count = step.host_counts[i];
      if (count == 0) continue;
      const auto per = static_cast<size_t>(BlocksPerSequence());
      sequences.push_back(
          {.first_row = row,
           .num_rows = count,
           .start_position = start,
           .first_decode_position = step.decode != 0 ? start : INT32_MAX,
           .blocks = std::span(blocks_)
                         .subspan(static_cast<size_t>(i) * per, per)
                         .first(static_cast<size_t>((start + count + KvPool::kBlockTokens - 1) /
                                                    KvPool::kBlockTokens))});
      row += count;
      logit_rows.push_back(row - 1);
    }
    const ForwardBatch batch = {.tokens = {step.host_tokens, static_cast<size_t>(row)},
                                .sequences = sequences,
                                .logit_rows = logit_rows,
                                .token_types = {}};
    ComputeContext context{pool_, arena_};
    RETURN_IF_ERROR(
        model_.Forward({.batch = batch,
                        .kv = &*kv_,
                        .out = {logits_,
                                {static_cast<int64_t>(logit_rows.size()), model_.spec().vocab},
                                DType::kF32,
                                &CpuDevice()},
                        .head_input = {}},
                       context));
    return reinterpret_cast<const float*>(logits_);
  }

 private:
  Pass(const Model& model, const Size& size) : model_(model), size_(size) {}
  int BlocksPerSequence() const {
    return (size_.context + KvPool::kBlockTokens - 1) / KvPool::kBlockTokens;
  }

  const Model& model_;
  const Size size_;
  ThreadPool pool_{{.num_threads = 1}};
  Arena arena_;
  std::optional<KvPool> kv_;
  std::byte* logits_ = nullptr;
  std::vector<int32_t> blocks_;
};

}  // namespace
}  // namespace assay

void* assay_model_create(const AssayModel* args) {
  return const_cast<assay::Model*>(assay::ReportPointer(assay::MakeModel(*args)));
}
void assay_model_destroy(void* model) { delete static_cast<assay::Model*>(model); }
size_t assay_model_bytes(const void* model) {
  const auto& of = *static_cast<const assay::Model*>(model);
  size_t bytes = of.other_weight_bytes();
  for (const auto& [name, linear] : of.linears()) bytes += linear->weight().bytes();
  return bytes;
}
void* assay_pass_create(void* model, int sequences, int context, int rows, int kv_format) {
  return assay::ReportPointer(assay::Pass::Create(*static_cast<const assay::Model*>(model),
                                                  {sequences, context, rows, kv_format}));
}
void assay_pass_destroy(void* pass) { delete static_cast<assay::Pass*>(pass); }
const float* assay_pass_step(void* pass, const AssayStep* step) {
  const auto logits = static_cast<assay::Pass*>(pass)->Step(*step);
  if (logits.ok()) return *logits;
  assay::Report(logits.status());
  return nullptr;
}
